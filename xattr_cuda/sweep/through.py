"""The gradient of a loss, handed to outputs whose own chain does not speak for them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .function import first_order


class _Through(torch.autograd.Function):
    """(loss, outputs, cotangents) -> loss, whose gradient d reaches the loss, and each output times its cotangent."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *tensors: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(*tensors[len(tensors) // 2 :])
        return loss.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, d: Tensor) -> Any:  # type: ignore[override]
        seeds = ctx.saved_tensors
        return d, *(None if seed is None else d * seed for seed in seeds), *(None for _ in seeds)


def through_outputs(loss: Tensor, outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> Tensor:
    """The loss; a gradient d sent into it reaches the outputs as d times their cotangents, d loss / d output."""
    found: Tensor = _Through.apply(loss, *outputs, *cotangents)  # type: ignore[no-untyped-call]
    return found
