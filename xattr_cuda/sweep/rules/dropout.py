"""Rule of dropout: one mask for every sweep of the step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ..layer import Layer


class DropoutRule(Layer):
    """Dropout in training mode; the identity otherwise.

    Draws the mask as PyTorch's CPU dropout does, from the same generator, and keeps it as packed bits. The maps
    multiply (slope zero) rather than select, as PyTorch does, so that NaN and infinity propagate alike.
    """

    recomputes = True

    def __init__(self, name: str, module: Any) -> None:
        super().__init__(name, module)
        self.p = float(module.p) if module.training else 0.0
        self._zero: Tensor | None = None

    @property
    def scale(self) -> float:
        return 1 / (1 - self.p) if self.p < 1 else 0.0

    def forward(self, h: Tensor, params: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        if self.p == 0:
            return h, None
        keep = torch.empty_like(h)
        keep = keep.bernoulli_(1 - self.p) if self.p < 1 else keep.zero_()
        _, bits = ops.relu_mask(keep)
        return self.tangent(h, params, bits), bits

    def tangent(self, v: Tensor, params: Sequence[Tensor], residual: Tensor | None) -> Tensor:
        if residual is None:
            return v
        if self._zero is None:
            self._zero = v.new_zeros(1)
        return ops.mask_mul(v, residual, self._zero).mul_(self.scale)

    def cotangent(self, g: Tensor, params: Sequence[Tensor], residual: Tensor | None, shape: torch.Size) -> Tensor:
        return self.tangent(g, params, residual)
