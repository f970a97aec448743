"""Rules of the piecewise linear activations: a packed mask, and a slope for what it leaves out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import ops
from ..layer import Frame, Layer, Pair, Residual, unsupported
from .registry import Call, Constant, Value, register_function, register_module
from .rows import by_channel, by_rows


class ActivationRule(Layer):
    """ReLU, and the base of its relatives. The residual is the packed mask."""

    apart = True
    maskable = True
    recomputes = True

    def slope(self, params: Sequence[Tensor], like: Tensor) -> Tensor | None:
        """The factor of what is not positive: None for zero, a tensor [1], or [C] for the channels of `like`."""
        return None

    def along_rows(self, params: Sequence[Tensor], t: Tensor, rows: Tensor) -> Tensor | None:
        """The slope as the operators take it: None, [1], or one value for each element of a row."""
        slope = self.slope(params, t)
        return slope if slope is None or slope.shape[0] == 1 else by_channel(slope, t, rows)

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        (h,) = inputs
        rows, restore = by_rows(h)
        out, bits = ops.relu_mask(rows, self.along_rows(params, h, rows))
        return restore(out), (bits,)

    def apply(self, frame: Frame, t: Tensor) -> Tensor:
        """The layer's map, which is its own transpose."""
        (bits,) = frame.residual
        rows, restore = by_rows(t, bits)
        return restore(ops.mask_mul(rows, bits, self.along_rows(frame.params, t, rows)))

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return self.apply(frame, *tangents)

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        return self.apply(frame, g)


class LeakyReLURule(ActivationRule):
    """LeakyReLU: a fixed slope."""

    def __init__(self, negative_slope: float) -> None:
        self.negative_slope = negative_slope

    def slope(self, params: Sequence[Tensor], like: Tensor) -> Tensor:
        return like.new_full((1,), self.negative_slope)


class PReLURule(ActivationRule):
    """PReLU: one learned slope, or one for each channel (dimension 1).

    Gradient of a slope: sum over chains of cotangent * tangent wherever the mask is off. This follows from section 2
    of the design because the layer is multilinear in its input and its slopes.
    """

    def slope(self, params: Sequence[Tensor], like: Tensor) -> Tensor:
        (weight,) = params
        channels = weight.shape[0]
        if channels > 1 and (like.dim() < 2 or like.shape[1] != channels):
            raise ValueError(f"{self.where} has {channels} slopes for dimension 1, got {list(like.shape)}")
        return weight

    def parameter_gradients(self, frame: Frame, pairs: Sequence[Pair]) -> tuple[Tensor, ...]:
        (slope,), (bits,) = frame.params, frame.residual
        off = ~bits
        total = torch.zeros(slope.shape, dtype=torch.float64, device=slope.device)
        for g, v in pairs:
            rows, restore = by_rows(g * v, bits)
            product = restore(ops.mask_mul(rows, off))
            if slope.shape[0] == 1:
                total += product.sum(dtype=torch.float64)
            else:
                total += product.transpose(0, 1).flatten(1).sum(1, dtype=torch.float64)
        return (total.to(slope.dtype),)


def _relu(input: Any, inplace: bool = False) -> Call:  # noqa: A002
    return Call(ActivationRule(), (input,))


def _leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Call:  # noqa: A002
    return Call(LeakyReLURule(negative_slope), (input,))


def _prelu(input: Any, weight: Any) -> Call:  # noqa: A002
    if not isinstance(input, Value) or not isinstance(weight, Constant):
        raise unsupported("its slope depends on the network's input", "Use a parameter as the slope")
    return Call(PReLURule(), (input,), (weight,))


register_module(nn.ReLU, build=lambda m: ActivationRule())
register_module(nn.LeakyReLU, build=lambda m: LeakyReLURule(float(m.negative_slope)))
register_module(nn.PReLU, build=lambda m: PReLURule(), tensors=("weight",))
register_function(F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_", build=_relu)
register_function(F.leaky_relu, F.leaky_relu_, build=_leaky_relu)
register_function(F.prelu, torch.prelu, "prelu", build=_prelu)
