"""The inputs of a network: checked, as a tuple, in autocast's dtype."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import ops

Inputs = Tensor | tuple[Tensor, ...]


def as_tuple(inputs: Inputs) -> tuple[Tensor, ...]:
    """The inputs as a tuple of floating tensors [B, ...]. Raises TypeError or ValueError that says which is not one."""
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if not tensors:
        raise ValueError("`inputs` is a tuple of 0; wanted a tensor [B, ...], or a tuple of them")
    for i, x in enumerate(tensors):
        name = f"`inputs[{i}]`" if isinstance(inputs, tuple) else "`inputs`"
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}; wanted a tensor [B, ...], or a tuple of them")
        if not x.is_floating_point():
            raise TypeError(f"{name} has dtype {x.dtype}; wanted a floating one, since it is differentiated")
        if x.dim() == 0:
            raise ValueError(f"{name} is a scalar; wanted a tensor [B, ...] with a batch dimension")
        ops.check_device(x.device)
    return tensors


def mirror(tensors: Sequence[Any], inputs: Inputs) -> Any:
    """One tensor for each input, in the form in which the inputs were given."""
    return tuple(tensors) if isinstance(inputs, tuple) else tensors[0]


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for a device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


_NOTHING: AbstractContextManager[Any] = nullcontext()


def without_autocast(device: torch.device, on: bool) -> AbstractContextManager[Any]:
    """Where autocast is on, it has been applied: nothing inside is cast again."""
    return torch.autocast(device.type, enabled=False) if on else _NOTHING


def to_autocast(t: Any, device: torch.device) -> Any:
    """t as autocast hands it to a matrix product: float64 and what is not floating stay as they are."""
    if not isinstance(t, Tensor) or not t.is_floating_point() or t.dtype == torch.float64 or not autocasts(device):
        return t
    return t.to(torch.get_autocast_dtype(device.type))
