"""Registration: gives every operator of the list its schema, fake, reference fallback and derivative.

The C++ extension adds kernels under the dispatch key CPU when it is imported. Where it is absent, and on devices for
which no kernel exists, the dispatcher falls back to the reference.
"""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels import reference  # type: ignore[attr-defined]
from . import autograd, signature
from .schemas import NAMESPACE, SCHEMAS

_library = torch.library.Library(NAMESPACE, "DEF")


def checked_reference(name: str) -> Callable[..., Any]:
    """The reference of an operator behind the operator's own argument checks."""
    check, specification = getattr(signature, name), getattr(reference, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return specification(*args, **kwargs)

    return run


def _fake(name: str) -> Callable[..., Any]:
    check = getattr(signature, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        device = next(arg.device for arg in args if isinstance(arg, Tensor))

        def made(spec: Any) -> Any:
            if isinstance(spec, list):
                return [made(one) for one in spec]
            return torch.empty(spec.shape, dtype=spec.dtype, device=device, memory_format=spec.layout)

        results = made(check(*args, **kwargs))
        return results[0] if len(results) == 1 else tuple(results)

    return run


def _register(name: str) -> None:
    qualified = f"{NAMESPACE}::{name}"
    _library.define(name + SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, checked_reference(name), "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, _fake(name), lib=_library)
    derivative = autograd.DERIVATIVES[name]
    torch.library.register_autograd(
        qualified, derivative.backward, setup_context=derivative.setup_context, lib=_library
    )


def _import_extension() -> tuple[Any, str]:
    """The extension module and "", or None and the reason why it is missing."""
    try:
        return importlib.import_module("xattr_cuda._C"), ""
    except ModuleNotFoundError:
        return None, "not built (NO_EXT=1, or no C++ compiler at install time)"
    except ImportError as error:
        reason = f"built, but it does not load: {error}"
        warnings.warn(
            f"xattr_cuda: the C++ extension was {reason}. Running on the reference instead; "
            "reinstall xattr_cuda against the installed torch.",
            stacklevel=2,
        )
        return None, reason


for _name in SCHEMAS:
    _register(_name)

extension, extension_missing = _import_extension()
