"""Bridges to other libraries: one file a library, which is imported when something of it is asked for."""

from typing import Any

from .. import extras

_HOMES = {  # name: the file, called like the library and the extra that brings it, and the name there
    "AttributionPrior": ("lightning", "AttributionPrior"),
    "export_onnx": ("onnx", "export_onnx"),
    "with_attribution": ("export", "with_attribution"),  # for torch.export, which needs no extra
    "XMLPClassifier": ("sklearn", "XMLPClassifier"),
    "XMLPRegressor": ("sklearn", "XMLPRegressor"),
    "quantus_explain": ("quantus", "explain"),
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    library, attribute = _HOMES[name]
    value = getattr(extras.load(f"{__name__}.{library}", needs=library, extra=library), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
