"""Rule of the weight layers of a perceptron."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import ops
from ..layer import Layer, Pair


class LinearRule(Layer):
    """h -> h W^T, for h [..., K] and W [N, K]. The `masked` forms apply a neighbouring activation on the way out."""

    product = True

    def parameters(self, module: Any) -> tuple[Tensor, ...]:
        if module.bias is not None:
            raise self.not_homogeneous(
                "it has a bias, and a network with biases is not homogeneous", "Build it with bias=False"
            )
        return (module.weight,)

    def _check(self, h: Tensor, weight: Tensor) -> None:
        if h.shape[-1] != weight.shape[1] or h.dim() < 2:
            raise ValueError(
                f"layer {self.name!r} ({self.kind}) wants [B, ..., {weight.shape[1]}], got {list(h.shape)}"
            )
        if h.dtype != weight.dtype or h.device != weight.device:
            raise ValueError(
                f"layer {self.name!r} ({self.kind}) has a weight of {weight.dtype} on {weight.device}, "
                f"got {h.dtype} on {h.device}; convert the inputs or the model"
            )

    def forward(self, h: Tensor, params: Sequence[Tensor]) -> tuple[Tensor, None]:
        self._check(h, params[0])
        return F.linear(h, params[0]), None

    def forward_masked(self, h: Tensor, params: Sequence[Tensor], slope: Tensor | None) -> tuple[Tensor, Tensor]:
        self._check(h, params[0])
        return ops.linear_relu_mask(h, params[0], slope)

    def tangent(self, v: Tensor, params: Sequence[Tensor], residual: Tensor | None) -> Tensor:
        return F.linear(v, params[0])

    def tangent_masked(self, v: Tensor, params: Sequence[Tensor], bits: Tensor, slope: Tensor | None) -> Tensor:
        return ops.matmul_mask(v, params[0].t(), bits, slope)

    def cotangent(self, g: Tensor, params: Sequence[Tensor], residual: Tensor | None, shape: torch.Size) -> Tensor:
        return ops.matmul_mask(g, params[0])

    def cotangent_masked(self, g: Tensor, params: Sequence[Tensor], bits: Tensor, slope: Tensor | None) -> Tensor:
        return ops.matmul_mask(g, params[0], bits, slope)

    def parameter_gradients(
        self, pairs: Sequence[Pair], params: Sequence[Tensor], residual: Tensor | None
    ) -> tuple[Tensor, ...]:
        return (ops.dual_weight_grad(*(t for pair in pairs for t in pair)),)
