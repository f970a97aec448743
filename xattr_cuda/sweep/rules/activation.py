"""Rules of the piecewise linear activations: a packed mask, and a slope for what it leaves out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ..layer import Layer, Pair


class ActivationRule(Layer):
    """ReLU, and the base of its relatives. The residual is the packed mask."""

    maskable = True
    recomputes = True

    def slope(self, params: Sequence[Tensor], like: Tensor) -> Tensor | None:
        """The factor of what is not positive, as the operators take it: None for zero, or a tensor [1] or [N]."""
        return None

    def by_row(self, params: Sequence[Tensor], t: Tensor) -> Tensor:
        """t arranged so that the slope runs along its rows."""
        return t

    def forward(self, h: Tensor, params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        out, bits = ops.relu_mask(self.by_row(params, h), self.slope(params, h))
        return out.view(h.shape), bits

    def tangent(self, v: Tensor, params: Sequence[Tensor], residual: Tensor | None) -> Tensor:
        assert residual is not None
        return ops.mask_mul(self.by_row(params, v), residual, self.slope(params, v)).view(v.shape)

    def cotangent(self, g: Tensor, params: Sequence[Tensor], residual: Tensor | None, shape: torch.Size) -> Tensor:
        return self.tangent(g, params, residual)


class LeakyReLURule(ActivationRule):
    """LeakyReLU: a fixed slope."""

    def __init__(self, name: str, module: Any) -> None:
        super().__init__(name, module)
        self.negative_slope = float(module.negative_slope)
        self._slope: Tensor | None = None

    def slope(self, params: Sequence[Tensor], like: Tensor) -> Tensor:
        if self._slope is None:
            self._slope = like.new_full((1,), self.negative_slope)
        return self._slope


class PReLURule(ActivationRule):
    """PReLU: one learned slope, or one for each channel (dimension 1).

    Gradient of a slope: sum over chains of cotangent * tangent wherever the mask is off. This follows from section 2
    of the design because the layer is multilinear in its input and its slopes.
    """

    def parameters(self, module: Any) -> tuple[Tensor, ...]:
        return (module.weight,)

    def slope(self, params: Sequence[Tensor], like: Tensor) -> Tensor:
        (weight,) = params
        if weight.shape[0] == 1 or like.dim() == 2:
            return weight
        return weight.repeat_interleave(like.shape[2:].numel())  # [C * rest]

    def by_row(self, params: Sequence[Tensor], t: Tensor) -> Tensor:
        channels = params[0].shape[0]
        if channels > 1 and (t.dim() < 2 or t.shape[1] != channels):
            raise ValueError(
                f"layer {self.name!r} ({self.kind}) has {channels} slopes for dimension 1, got {list(t.shape)}"
            )
        return t if channels == 1 or t.dim() == 2 else t.flatten(1)

    def parameter_gradients(
        self, pairs: Sequence[Pair], params: Sequence[Tensor], residual: Tensor | None
    ) -> tuple[Tensor, ...]:
        assert residual is not None
        (slope,) = params
        off = ~residual
        total = torch.zeros(slope.shape, dtype=torch.float64, device=slope.device)
        for g, v in pairs:
            product = ops.mask_mul(self.by_row(params, g) * self.by_row(params, v), off)
            if slope.shape[0] == 1:
                total += product.sum(dtype=torch.float64)
            else:
                total += product.unflatten(1, (slope.shape[0], -1)).sum((0, 2), dtype=torch.float64)
        return (total.to(slope.dtype),)
