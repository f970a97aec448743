"""What rules of fixed linear maps share: their base, and how a call's arguments are read."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ..layer import Frame, Layer, Residual, unsupported
from .registry import Call, Constant, Value, register_function
from .rows import memory_format_of

NUMPY = {"axis": "dim", "keepdims": "keepdim", "x": "input", "x1": "input", "x2": "other"}
"""NumPy's names of arguments, which torch takes too."""


def register(*targets: Any, build: Callable[..., Call]) -> None:
    """`register_function` for a build that takes torch's names: NumPy's are renamed as torch does, `out` is refused."""

    @wraps(build)
    def call(*args: Any, **kwargs: Any) -> Call:
        for name in ("out", "dtype"):
            if kwargs.pop(name, None) is not None:
                raise unsupported(f"it is called with {name}=", f"Leave {name}= out")
        return build(*args, **{NUMPY.get(name, name): a for name, a in kwargs.items()})

    register_function(*targets, build=call)


def numbers(args: Sequence[Any]) -> tuple[Any, ...]:
    """Numbers given one by one or as one sequence, as a tuple. A size that stands for a sequence stays alone in it."""
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else tuple(args)


def zeros(shape: torch.Size, like: Tensor) -> Tensor:
    """Zeros in the memory format of a tensor of as many dimensions."""
    memory_format = memory_format_of(like) if like.dim() == len(shape) else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format).zero_()


class MapRule(Layer):
    """A fixed linear map of one input, with its transpose."""

    recomputes = True

    @abstractmethod
    def apply(self, t: Tensor) -> Tensor:
        """The map."""

    @abstractmethod
    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        """Its transpose: a cotangent at the output to one of this shape at the input."""

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        return self.apply(*inputs), ()

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return self.apply(*tangents)

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        return self.transposed(g, frame.shapes[0])


class IdentityRule(MapRule):
    """Identity."""

    apart = True
    aliases = True

    def apply(self, t: Tensor) -> Tensor:
        return t

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        return g


class CopyRule(IdentityRule):
    """A copy. The sweeps need none, since they write to no tensor; in PyTorch it owns its memory."""

    aliases = False


class MethodRule(MapRule):
    """A tensor method and its settings. The output may be a view."""

    aliases = True

    def __init__(self, method: str, *args: Any) -> None:
        self.method, self.args = method, args

    def apply(self, t: Tensor) -> Tensor:
        out: Tensor = getattr(t, self.method)(*self.args)
        return out


def by_numbers(method: str, rule: Callable[..., Layer]) -> Callable[..., Call]:
    """The build of a tensor method whose settings are integers, one by one or in one sequence."""

    def build(input: Any, *args: Any, **kwargs: Any) -> Call:  # noqa: A002
        given = numbers((*args, *kwargs.values()))
        if any(isinstance(a, (torch.dtype, Value, Constant)) for a in given):
            raise unsupported(f"{method} is given a dtype or a tensor", "Give it integers")
        return Call(rule(method, given), (input,))

    return build


def of_one(rule: Callable[[], Layer]) -> Callable[..., Call]:
    """The build of a call that takes one tensor and no settings."""

    def build(input: Any) -> Call:  # noqa: A002
        return Call(rule(), (input,))

    return build
