"""Rules of dropout: one mask for every sweep of the step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import ops
from ..layer import Frame, Layer, Residual
from .registry import Call, register_function, register_module
from .rows import by_rows


class DropoutRule(Layer):
    """Dropout in training mode; the identity otherwise.

    Draws the mask as PyTorch's CPU dropout does, from the same generator, and keeps it as packed bits. The maps
    multiply (slope zero) rather than select, as PyTorch does, so that NaN and infinity propagate alike.
    """

    apart = True
    recomputes = True
    aliases = True

    def __init__(self, p: float, training: bool) -> None:
        self.p = float(p) if training else 0.0
        self.scale = 1 / (1 - self.p) if self.p < 1 else 0.0

    def noise(self, h: Tensor) -> Tensor:
        """Where the mask is drawn, one element for each decision."""
        return torch.empty_like(h)

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        (h,) = inputs
        if self.p == 0:
            return h, ()
        noise = self.noise(h)
        keep, _ = by_rows(noise.bernoulli_(1 - self.p) if self.p < 1 else noise.zero_())
        _, bits = ops.relu_mask(keep)
        return self.apply(h, bits), (bits,)

    def apply(self, t: Tensor, bits: Tensor) -> Tensor:
        """The layer's map, which is its own transpose."""
        rows, restore = by_rows(t, bits)
        return restore(ops.mask_mul(rows, bits, t.new_zeros(1)).mul_(self.scale))

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return self.apply(tangents[0], *frame.residual) if frame.residual else tangents[0]

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        return self.tangent(frame, g)


class ChannelDropoutRule(DropoutRule):
    """Dropout of whole channels (dimension 1)."""

    def noise(self, h: Tensor) -> Tensor:
        if h.dim() < 3:
            raise ValueError(f"{self.where} wants [B, C, ...], got {list(h.shape)}")
        return h.new_empty(h.shape[:2])

    def apply(self, t: Tensor, bits: Tensor) -> Tensor:
        kept = ops.mask_mul(t.new_full(t.shape[:2], self.scale), bits)  # [B, C]
        return t * kept.reshape(*t.shape[:2], *[1] * (t.dim() - 2))


def _dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Call:  # noqa: A002
    return Call(DropoutRule(p, training), (input,))


def _torch_dropout(input: Any, p: float, train: bool) -> Call:  # noqa: A002
    return Call(DropoutRule(p, train), (input,))


def _channel_dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Call:  # noqa: A002
    return Call(ChannelDropoutRule(p, training), (input,))


register_module(nn.Dropout, build=lambda m: DropoutRule(m.p, m.training))
register_module(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, build=lambda m: ChannelDropoutRule(m.p, m.training))
register_function(F.dropout, build=_dropout)
register_function(torch.dropout, build=_torch_dropout)
register_function(F.dropout1d, F.dropout2d, F.dropout3d, build=_channel_dropout)
