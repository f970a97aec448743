"""Attributions behind Captum's calling conventions, every one of them differentiable.

The classes are Captum's GradientAttributions where Captum is installed, which is imported when the first of them is
asked for: `import xattr_cuda` does not.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .expected_gradients import ExpectedGradients
    from .integrated_gradients import IntegratedGradients
    from .xgradient import XGradient

__all__ = ["ExpectedGradients", "IntegratedGradients", "XGradient"]

_HOMES = {
    "ExpectedGradients": "expected_gradients",
    "IntegratedGradients": "integrated_gradients",
    "XGradient": "xgradient",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
