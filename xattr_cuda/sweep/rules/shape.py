"""Rules of the layers that move or rename elements and compute nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layer import Layer


class IdentityRule(Layer):
    """Identity."""

    recomputes = True

    def forward(self, h: Tensor, params: Sequence[Tensor]) -> tuple[Tensor, None]:
        return h, None

    def tangent(self, v: Tensor, params: Sequence[Tensor], residual: Tensor | None) -> Tensor:
        return v

    def cotangent(self, g: Tensor, params: Sequence[Tensor], residual: Tensor | None, shape: torch.Size) -> Tensor:
        return g


class FlattenRule(IdentityRule):
    """Flatten, of any dimensions but the batch."""

    def __init__(self, name: str, module: Any) -> None:
        super().__init__(name, module)
        self.dims = (module.start_dim, module.end_dim)

    def forward(self, h: Tensor, params: Sequence[Tensor]) -> tuple[Tensor, None]:
        out = h.flatten(*self.dims)
        if out.dim() == 0 or out.shape[0] != h.shape[0]:
            raise self.unsupported(
                f"it merges the batch with other dimensions ({list(h.shape)} to {list(out.shape)})",
                "Use start_dim=1",
            )
        return out, None

    def tangent(self, v: Tensor, params: Sequence[Tensor], residual: Tensor | None) -> Tensor:
        return v.flatten(*self.dims)

    def cotangent(self, g: Tensor, params: Sequence[Tensor], residual: Tensor | None, shape: torch.Size) -> Tensor:
        return g.reshape(shape)
