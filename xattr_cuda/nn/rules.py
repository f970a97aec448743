"""The rule that carries BatchScale layers through the sweeps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..sweep.layer import Frame, Layer, Pair, Residual
from ..sweep.rules.registry import register_module
from .batch_scale import BatchScale1d, BatchScale2d, BatchScale3d, Setting, check_input, find_factor, scale


class BatchScaleRule(Layer):
    """h * weight * factor for every channel, the factor held constant. Parameters: weight [C], the running second
    moment [C] and the count of batches. The residual is the factor [C], in fp32 at least.

    The forward map updates the running moment in place, as the module does; the others need the weight alone.
    """

    recomputes = True
    keeps = 1
    maps_apart = True  # the factor is held constant

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.apart = setting.tracking and not setting.training  # else it takes the batch's own second moment

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        """The module's forward, and the factor."""
        (h,) = inputs
        weight, running_square, num_batches_tracked = params
        check_input(h, weight.shape[0], self.setting.ranks, self.where)
        factor = find_factor(h, running_square, num_batches_tracked, self.setting)
        return scale(h, weight, factor), (factor,)

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        """The map is diagonal, and so its own transpose."""
        (v,) = tangents
        return scale(v, frame.params[0], frame.residual[0])

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        """As `tangent`."""
        return scale(g, frame.params[0], frame.residual[0])

    def parameter_gradients(self, frame: Frame, pairs: Sequence[Pair]) -> tuple[Tensor | None, ...]:
        """Of the weight: factor times the sum over chains, batch and positions of cotangent times tangent."""
        weight, (factor,) = frame.params[0], frame.residual
        total = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
        for g, v in pairs:
            product = g.to(factor.dtype) * v.to(factor.dtype)
            total += product.sum([d for d in range(product.dim()) if d != 1], dtype=torch.float64)
        return (total * factor).to(weight.dtype), None, None

    def in_dtype(self, frame: Frame, dtype: torch.dtype) -> Frame:
        """The factor stays as it is."""
        return super().in_dtype(frame, dtype)._replace(residual=frame.residual)


def _batch_scale(module: Any) -> Layer:
    return BatchScaleRule(module.setting)


register_module(
    BatchScale1d,
    BatchScale2d,
    BatchScale3d,
    build=_batch_scale,
    tensors=("weight", "running_square", "num_batches_tracked"),
)
