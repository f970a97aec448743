"""Rules of arithmetic: sums and differences, products with what does not depend on the input, sums and means."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layer import Frame, Layer, Pair, Residual, not_homogeneous, unsupported
from .join import check_dtypes
from .maps import CopyRule, IdentityRule, MapRule, MethodRule, of_one, register
from .registry import Call, Constant, Size, Value


class AddRule(Layer):
    """a + alpha * b, with broadcasting."""

    apart = True
    fuses = True
    recomputes = True

    def __init__(self, alpha: Any = 1) -> None:
        self.alpha = alpha

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        check_dtypes(self, inputs)
        return torch.add(*inputs, alpha=self.alpha), ()

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return torch.add(*tangents, alpha=self.alpha)

    def cotangent(self, frame: Frame, g: Tensor) -> tuple[Tensor, ...]:
        first, second = frame.shapes
        scaled = g if self.alpha == 1 else g * self.alpha
        return g.sum_to_size(first), scaled.sum_to_size(second)


class ScaleRule(MapRule):
    """Times a number, or divided by it."""

    apart = True

    def __init__(self, factor: Any, *, divide: bool = False) -> None:
        self.factor, self.divide = factor, divide

    def apply(self, t: Tensor) -> Tensor:
        return t / self.factor if self.divide else t * self.factor

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        return self.apply(g)


class FactorRule(Layer):
    """Times a tensor that does not depend on the input, or divided by it, with broadcasting either way.

    Gradient of a factor c: the sum over chains of cotangent * tangent, where they meet it; of a divisor: that sum
    divided by -c^2. This follows from section 2 of the design because the layer is linear in its input.
    """

    apart = True
    recomputes = True

    def __init__(self, *, divide: bool = False) -> None:
        self.divide = divide

    def apply(self, t: Tensor, factor: Tensor) -> Tensor:
        return t / factor if self.divide else t * factor

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        (h,), (factor,) = inputs, params
        out = self.apply(h, factor)
        if out.dtype != h.dtype:
            raise ValueError(f"{self.where} meets {h.dtype} with a factor of {factor.dtype}; convert it to {h.dtype}")
        return out, ()

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return self.apply(*tangents, *frame.params)

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        return self.apply(g, *frame.params).sum_to_size(frame.shapes[0])

    def parameter_gradients(self, frame: Frame, pairs: Sequence[Pair]) -> tuple[Tensor | None, ...]:
        (factor,) = frame.params
        if not factor.is_floating_point():
            return (None,)
        first, *others = ((g * v).sum_to_size(factor.shape) for g, v in pairs)
        total = sum(others, start=first)
        return ((-total / factor / factor if self.divide else total).to(factor),)


class SumRule(MapRule):
    """The sum over some dimensions, or over all (None)."""

    apart = True
    shrinks = True

    def __init__(self, dim: Any, keepdim: bool) -> None:
        self.dim, self.keepdim = dim, keepdim

    def over(self, dims: int) -> list[int]:
        """The dimensions that are summed, of a tensor of `dims`."""
        if self.dim is None or self.dim == () or dims == 0:
            return list(range(dims))
        return [d % dims for d in (self.dim if isinstance(self.dim, tuple) else (self.dim,))]

    def apply(self, t: Tensor) -> Tensor:
        return t.sum(self.dim, self.keepdim)

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        over = self.over(len(shape))
        return g.reshape([1 if d in over else n for d, n in enumerate(shape)]).expand(shape)


class MeanRule(SumRule):
    """The mean over some dimensions, or over all (None)."""

    def apply(self, t: Tensor) -> Tensor:
        return t.mean(self.dim, self.keepdim)

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        count = math.prod(shape[d] for d in self.over(len(shape)))
        return super().transposed(g / count, shape)


class CumsumRule(MethodRule):
    """cumsum along a dimension."""

    aliases = False

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        (dim,) = self.args
        return g.flip(dim).cumsum(dim).flip(dim) if g.dim() else g


def _is_zero(a: Any) -> bool:
    return isinstance(a, (int, float)) and a == 0


def _plus(first: Any, second: Any, alpha: Any) -> Call:
    """first + alpha * second."""
    if isinstance(first, Value) and isinstance(second, Value):
        return Call(AddRule(alpha), (first, second))
    if isinstance(first, Value) and _is_zero(second):
        return Call(CopyRule(), (first,))
    if isinstance(second, Value) and _is_zero(first):
        return Call(CopyRule() if _is_one(alpha) else ScaleRule(alpha), (second,))
    raise not_homogeneous(
        "it adds a constant to what depends on the network's input, as a bias does",
        "Leave the constant out, or use xa.convert",
    )


def _is_one(a: Any) -> bool:
    return isinstance(a, (int, float)) and a == 1


def _minus(alpha: Any) -> Any:
    """-alpha, once it is known."""
    return alpha if isinstance(alpha, Size) else -alpha


def _add(input: Any, other: Any, *, alpha: Any = 1) -> Call:  # noqa: A002
    return _plus(input, other, alpha)


def _sub(input: Any, other: Any, *, alpha: Any = 1) -> Call:  # noqa: A002
    return _plus(input, other, _minus(alpha))


def _rsub(input: Any, other: Any, *, alpha: Any = 1) -> Call:  # noqa: A002
    return _plus(other, input, _minus(alpha))


def _scaled(value: Any, factor: Any, *, divide: bool) -> Call:
    if isinstance(factor, Constant):
        return Call(FactorRule(divide=divide), (value,), (factor,))
    if isinstance(factor, complex):
        raise unsupported("it multiplies by a complex number", "Use a real one")
    return Call(ScaleRule(factor, divide=divide), (value,))


def _mul(input: Any, other: Any) -> Call:  # noqa: A002
    if isinstance(input, Value) and isinstance(other, Value):
        raise not_homogeneous(
            "it multiplies two tensors that both depend on the network's input, so it is of degree 2",
            "Multiply by a parameter instead",
        )
    value, factor = (input, other) if isinstance(input, Value) else (other, input)
    return _scaled(value, factor, divide=False)


def _div(input: Any, other: Any, *, rounding_mode: Any = None) -> Call:  # noqa: A002
    if isinstance(other, Value):
        raise not_homogeneous(
            "it divides by what depends on the network's input, so its output does not scale with the input",
            "Divide by a number or a parameter instead",
        )
    if rounding_mode is not None:
        raise not_homogeneous("it rounds to integers, which do not scale with the input", "Leave rounding_mode out")
    return _scaled(input, other, divide=True)


def _dims(dim: Any) -> Any:
    return tuple(dim) if isinstance(dim, list) else dim


def _sum(input: Any, dim: Any = None, keepdim: Any = False) -> Call:  # noqa: A002
    return Call(SumRule(_dims(dim), keepdim), (input,))


def _mean(input: Any, dim: Any = None, keepdim: Any = False) -> Call:  # noqa: A002
    return Call(MeanRule(_dims(dim), keepdim), (input,))


def _cumsum(input: Any, dim: Any) -> Call:  # noqa: A002
    return Call(CumsumRule("cumsum", dim), (input,))


register(operator.add, operator.iadd, torch.add, "add", "add_", build=_add)
register(operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_", "subtract", "subtract_", build=_sub)
register(torch.rsub, build=_rsub)
register(operator.mul, operator.imul, torch.mul, torch.multiply, build=_mul)
register("mul", "mul_", "multiply", "multiply_", build=_mul)
register(operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide, build=_div)
register("div", "div_", "divide", "divide_", "true_divide", "true_divide_", build=_div)
register(operator.neg, torch.neg, torch.negative, build=of_one(lambda: ScaleRule(-1)))
register("neg", "neg_", "negative", "negative_", build=of_one(lambda: ScaleRule(-1)))
register(operator.pos, torch.positive, "positive", build=of_one(IdentityRule))
register(torch.sum, "sum", build=_sum)
register(torch.mean, "mean", build=_mean)
register(torch.cumsum, "cumsum", build=_cumsum)
