"""Rules of the piecewise linear functions of elements beside ReLU: abs, the larger and the smaller of two, clamp.

The residuals are packed masks. Subgradients are PyTorch's: abs has none at zero, maximum and minimum share a tie, clamp
keeps an element that lies on its bound.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import ops
from ..layer import Frame, Layer, Residual, not_homogeneous, unsupported
from .join import check_dtypes
from .maps import of_one, register
from .registry import Call, Constant, Value
from .rows import by_rows


def pack(condition: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask of a condition, laid out for tensors of its shape and memory format."""
    rows, _ = by_rows(condition.to(dtype))
    return ops.relu_mask(rows)[1]


def keep(t: Tensor, bits: Tensor, slope: float = 0.0) -> Tensor:
    """t where its bit is set, slope * t elsewhere."""
    rows, restore = by_rows(t, bits)
    return restore(ops.mask_mul(rows, bits, t.new_full((1,), slope) if slope else None))


class AbsRule(Layer):
    """abs. The residual: the masks of what is positive and of what is negative."""

    apart = True
    recomputes = True

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        (h,) = inputs
        return h.abs(), (pack(h > 0, h.dtype), pack(h < 0, h.dtype))

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        (v,), (positive, negative) = tangents, frame.residual
        return keep(v, positive) - keep(v, negative)

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        return self.tangent(frame, g)


class ExtremeRule(Layer):
    """The larger (or the smaller) of two tensors, with broadcasting. A tie gives half to each.

    The residual: the masks of where the first is not beaten, and of where the second is not. Where a NaN leaves both
    unset, each input has the whole of the cotangent, as in PyTorch.
    """

    apart = True
    recomputes = True

    def __init__(self, *, largest: bool) -> None:
        self.largest = largest

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        check_dtypes(self, inputs)
        a, b = inputs
        out = torch.maximum(a, b) if self.largest else torch.minimum(a, b)
        first, second = (a >= b, a <= b) if self.largest else (a <= b, a >= b)
        return out, (pack(first, a.dtype), pack(second, a.dtype))

    def shares(self, frame: Frame, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """What of two tensors, of the shape of the output, belongs to the first input and to the second."""
        one, other = frame.residual
        alone = ~(one & other)  # no tie
        return keep(keep(first, alone, 0.5), one | ~other), keep(keep(second, alone, 0.5), other | ~one)

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        first, second = self.shares(frame, *(v.expand(frame.out_shape) for v in tangents))
        return first + second

    def cotangent(self, frame: Frame, g: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.sum_to_size(shape) for t, shape in zip(self.shares(frame, g, g), frame.shapes, strict=True))


@cache
def _keeps_bound() -> bool:
    """Whether this release's clamp has the derivative 1 at its bound: until 2.13; later ones have 0."""
    with torch.inference_mode(False), torch.enable_grad():
        bound = torch.zeros(1, requires_grad=True)
        (gradient,) = torch.autograd.grad(bound.clamp(min=0).sum(), bound)
    return bool(gradient == 1)


class ClampRule(Layer):
    """clamp at zero, from below or from above. The residual is the packed mask.

    The derivative at zero is that of the PyTorch at hand.
    """

    apart = True
    recomputes = True

    def __init__(self, *, below: bool) -> None:
        self.below = below

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        (h,) = inputs
        return h.clamp(min=0) if self.below else h.clamp(max=0), (pack(self.inside(h), h.dtype),)

    def inside(self, h: Tensor) -> Tensor:
        """Where the derivative is one."""
        if _keeps_bound():
            return h >= 0 if self.below else h <= 0
        return h > 0 if self.below else h < 0

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return keep(tangents[0], frame.residual[0])

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        return keep(g, frame.residual[0])


class HardtanhRule(ClampRule):
    """hardtanh from zero to infinity: ReLU, but for its derivative at infinity, which is zero."""

    def __init__(self) -> None:
        super().__init__(below=True)

    def inside(self, h: Tensor) -> Tensor:
        return (h > 0) & (h < math.inf)


def _extreme(input: Any, other: Any, *, largest: bool) -> Call:  # noqa: A002
    if isinstance(input, Value) and isinstance(other, Value):
        return Call(ExtremeRule(largest=largest), (input, other))
    raise not_homogeneous(
        "it compares with a constant, which does not scale with the input",
        "Compare two tensors that depend on the input, or use ReLU to compare with zero",
    )


def _maximum(input: Any, other: Any) -> Call:  # noqa: A002
    return _extreme(input, other, largest=True)


def _minimum(input: Any, other: Any) -> Call:  # noqa: A002
    return _extreme(input, other, largest=False)


def _max_or_reduce(build: Callable[..., Call]) -> Callable[..., Call]:
    """The build of torch.max and torch.min, which reduce unless they are given a second tensor."""

    def of_two(input: Any, other: Any = None, *args: Any, **kwargs: Any) -> Call:  # noqa: A002
        if args or kwargs or not isinstance(other, (Value, Constant)):
            raise unsupported("it reduces over dimensions", "Use a max pooling layer, or the maximum of two tensors")
        return build(input, other)

    return of_two


def _clamp(input: Any, min: Any = None, max: Any = None) -> Call:  # noqa: A002
    lower = None if isinstance(min, float) and min == -math.inf else min
    upper = None if isinstance(max, float) and max == math.inf else max
    if any(isinstance(bound, Value) for bound in (input if not isinstance(input, Value) else None, lower, upper)):
        raise unsupported("its bounds depend on the network's input", "Use torch.maximum and torch.minimum")
    for bound, other, below in ((lower, upper, True), (upper, lower, False)):
        if other is None and isinstance(bound, (int, float)) and bound == 0:
            return Call(ClampRule(below=below), (input,))
    raise not_homogeneous("it clamps at bounds that do not scale with the input", "Clamp at zero on one side, as ReLU")


def _clamp_min(input: Any, min: Any) -> Call:  # noqa: A002
    return _clamp(input, min=min)


def _clamp_max(input: Any, max: Any) -> Call:  # noqa: A002
    return _clamp(input, max=max)


def _hardtanh(input: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> Call:  # noqa: A002
    if isinstance(min_val, (int, float)) and min_val == 0 and max_val == math.inf:
        return Call(HardtanhRule(), (input,))
    return _clamp(input, min_val, max_val)


def _choose(*args: Any, **kwargs: Any) -> Call:
    raise unsupported(
        "it compares or chooses elements by a condition",
        "Write it with ReLU, abs, maximum or minimum, or multiply by a mask that does not depend on the input",
    )


register(operator.abs, torch.abs, torch.absolute, build=of_one(AbsRule))
register("abs", "abs_", "absolute", "absolute_", build=of_one(AbsRule))
register(torch.maximum, "maximum", build=_maximum)
register(torch.minimum, "minimum", build=_minimum)
register(torch.max, "max", build=_max_or_reduce(_maximum))
register(torch.min, "min", build=_max_or_reduce(_minimum))
register(torch.clamp, torch.clamp_, torch.clip, torch.clip_, "clamp", "clamp_", "clip", "clip_", build=_clamp)
register(torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_", build=_clamp_min)
register(torch.clamp_max, torch.clamp_max_, "clamp_max", "clamp_max_", build=_clamp_max)
register(F.hardtanh, F.hardtanh_, build=_hardtanh)
register(torch.where, "where", build=_choose)
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    register(getattr(operator, _name), getattr(torch, _name), _name, build=_choose)
