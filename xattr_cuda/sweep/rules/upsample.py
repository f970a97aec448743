"""Rules of resampling: interpolation in every mode, and the shuffles between channels and space."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layer import Frame, Layer, Residual
from .conv import stand_in
from .registry import Call, register_function, register_module
from .rows import is_channels_last, memory_format_of


class InterpolateRule(Layer):
    """F.interpolate: every output element is a fixed weighting of input elements, in every mode.

    h [B, C, *space] with one to three dimensions of space; the settings are those of F.interpolate.
    """

    apart = True
    recomputes = True

    def __init__(
        self,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
        antialias: bool = False,
    ) -> None:
        self.size, self.scale_factor, self.mode = size, scale_factor, mode
        self.align_corners, self.recompute, self.antialias = align_corners, recompute_scale_factor, antialias

    def _scales(self, dims: int) -> list[float | None]:
        """The scales that weigh the elements; None for one that is the ratio of the sizes."""
        if self.scale_factor is None or self.recompute:
            return [None] * dims
        given = self.scale_factor if isinstance(self.scale_factor, (tuple, list)) else [self.scale_factor] * dims
        return [float(s) for s in given]

    def _resample(self, h: Tensor) -> Tensor:
        return F.interpolate(
            h, self.size, self.scale_factor, self.mode, self.align_corners, self.recompute, self.antialias
        )

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        return self._resample(inputs[0]), ()

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return self._resample(tangents[0])

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        (shape,) = frame.shapes
        if self.mode == "area":
            found = _spread(g, shape)
        elif torch.are_deterministic_algorithms_enabled() or any(
            isinstance(s, torch.SymInt) for s in (*g.shape, *shape)
        ):
            # ATen's transposes take known sizes only, and on a GPU some of them add with atomics.
            found = self.by_matrices(g, shape)
        else:
            dims = len(shape) - 2
            settings = () if self.mode.startswith("nearest") else (bool(self.align_corners),)
            backward = getattr(torch.ops.aten, self._backward(dims))
            found = backward(g, list(frame.out_shape[2:]), list(shape), *settings, *self._scales(dims))
        return found.contiguous(memory_format=memory_format_of(g))  # some of them lose channels last

    def _backward(self, dims: int) -> str:
        """The name of ATen's transpose of this mode."""
        if self.mode == "nearest-exact":
            return f"_upsample_nearest_exact{dims}d_backward"
        return f"_upsample_{self.mode}2d_aa_backward" if self.antialias else f"upsample_{self.mode}{dims}d_backward"

    def by_matrices(self, g: Tensor, shape: Sequence[int]) -> Tensor:
        """The cotangent at an input of this shape, one dimension after the other: every mode but area is separable."""
        ones = [1] * (len(shape) - 3)
        for dim, scale in enumerate(self._scales(len(shape) - 2), 2):
            n, m = shape[dim], g.shape[dim]
            rows = torch.eye(n, dtype=g.dtype, device=g.device).view(n, 1, *ones, n)
            size = [*ones, m] if scale is None else None
            scales = None if scale is None else [*map(float, ones), scale]
            matrix = F.interpolate(rows, size, scales, self.mode, self.align_corners, antialias=self.antialias)
            g = (g.movedim(dim, -1) @ matrix.reshape(n, m).t()).movedim(-1, dim)
        return g


def _spread(g: Tensor, shape: Sequence[int]) -> Tensor:
    """The transpose of averaging over areas, for an input of this shape."""
    if len(shape) == 3:
        return _spread(g.unsqueeze(2), [*shape[:2], 1, shape[2]]).squeeze(2)
    backward = getattr(torch.ops.aten, f"_adaptive_avg_pool{len(shape) - 2}d_backward")
    return backward(g, stand_in(g, shape))


class PixelShuffleRule(Layer):
    """PixelShuffle, [B, C * r * r, H, W] -> [B, C, H * r, W * r], or its inverse, which is its transpose."""

    apart = True
    recomputes = True

    def __init__(self, factor: Any, *, inverse: bool = False) -> None:
        self.factor, self.inverse = factor, inverse

    def _shuffle(self, h: Tensor, inverse: bool) -> Tensor:
        if h.dim() > 4:
            h = h.contiguous()  # the shuffles know no other format of more dimensions
        if not inverse:
            return F.pixel_shuffle(h, self.factor)
        if h.numel():
            return F.pixel_unshuffle(h, self.factor)
        *rest, C, H, W = h.shape  # F.pixel_unshuffle would leave the shape of an empty batch as it is
        return h.new_empty(*rest, C * self.factor**2, H // self.factor, W // self.factor)

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        (h,) = inputs
        if h.dim() < 4:
            raise ValueError(f"{self.where} wants [B, ..., C, H, W], got {list(h.shape)}")
        return self._shuffle(h, self.inverse), ()

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return self._shuffle(tangents[0], self.inverse)

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        return self._shuffle(g, not self.inverse)


class ChannelShuffleRule(Layer):
    """ChannelShuffle of h [B, C, *space]: channel i of group j becomes channel j of group i."""

    apart = True
    recomputes = True

    def __init__(self, groups: Any) -> None:
        self.groups = groups

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        (h,) = inputs
        if h.dim() < 3 or h.shape[1] % self.groups:
            wanted = f"[B, C, *] with C a multiple of {self.groups}"
            raise ValueError(f"{self.where} wants {wanted}, got {list(h.shape)}")
        return _swap(h, self.groups, h.shape[1] // self.groups), ()

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return _swap(tangents[0], self.groups, frame.shapes[0][1] // self.groups)

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        return _swap(g, frame.shapes[0][1] // self.groups, self.groups)


def _swap(h: Tensor, outer: int, inner: int) -> Tensor:
    """The channels as [outer, inner], transposed. F.channel_shuffle keeps channels last on some devices only."""
    if not is_channels_last(h):
        return h.unflatten(1, (outer, inner)).transpose(1, 2).flatten(1, 2)
    return h.movedim(1, -1).unflatten(-1, (outer, inner)).transpose(-1, -2).flatten(-2).movedim(-1, 1)


def _interpolate(
    input: Any,  # noqa: A002
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Call:
    layer = InterpolateRule(size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    return Call(layer, (input,))


def _upsample_nearest(input: Any, size: Any = None, scale_factor: Any = None) -> Call:  # noqa: A002
    return _interpolate(input, size, scale_factor)


def _upsample_bilinear(input: Any, size: Any = None, scale_factor: Any = None) -> Call:  # noqa: A002
    return _interpolate(input, size, scale_factor, "bilinear", True)


def _pixel_shuffle(input: Any, upscale_factor: Any) -> Call:  # noqa: A002
    return Call(PixelShuffleRule(upscale_factor), (input,))


def _pixel_unshuffle(input: Any, downscale_factor: Any) -> Call:  # noqa: A002
    return Call(PixelShuffleRule(downscale_factor, inverse=True), (input,))


def _channel_shuffle(input: Any, groups: Any) -> Call:  # noqa: A002
    return Call(ChannelShuffleRule(groups), (input,))


register_module(
    nn.Upsample,
    nn.UpsamplingNearest2d,
    nn.UpsamplingBilinear2d,
    build=lambda m: InterpolateRule(m.size, m.scale_factor, m.mode, m.align_corners, m.recompute_scale_factor),
)
register_module(nn.PixelShuffle, build=lambda m: PixelShuffleRule(m.upscale_factor))
register_module(nn.PixelUnshuffle, build=lambda m: PixelShuffleRule(m.downscale_factor, inverse=True))
register_module(nn.ChannelShuffle, build=lambda m: ChannelShuffleRule(m.groups))
register_function(F.interpolate, F.upsample, build=_interpolate)
register_function(F.upsample_nearest, build=_upsample_nearest)
register_function(F.upsample_bilinear, build=_upsample_bilinear)
register_function(F.pixel_shuffle, build=_pixel_shuffle)
register_function(F.pixel_unshuffle, build=_pixel_unshuffle)
register_function(F.channel_shuffle, build=_channel_shuffle)
