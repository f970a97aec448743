"""What the attribution classes are derived from: Captum's GradientAttribution, where Captum is installed."""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

Method = TypeVar("Method", bound=Callable[..., Any])


class _WithoutCaptum:
    def __init__(self, forward_func: Callable[..., Any]) -> None:
        self.forward_func = forward_func


if TYPE_CHECKING:
    _Base = _WithoutCaptum
else:
    try:
        from captum.attr import GradientAttribution as _Base
    except ImportError:
        _Base = _WithoutCaptum


class GradientAttribution(_Base):
    """A way to attribute by gradients, multiplied by the inputs, that knows how far it is from completeness.

    Where Captum is installed it is a `captum.attr.GradientAttribution`: Captum's utilities take it, and
    `compute_convergence_delta` is Captum's. forward_func: what is explained, also called `model`.
    """

    @property
    def model(self) -> Any:
        """What is explained."""
        return self.forward_func

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: an attribution is in units of the output, not of the gradient."""
        return True

    def has_convergence_delta(self) -> bool:
        """True: `attribute` takes `return_convergence_delta`."""
        return True


def as_in_captum(method: Method) -> Method:
    """`method` in a wrapper that holds it as `__wrapped__`, as Captum's own are: its utilities call what that holds."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return cast(Method, call)
