"""Rules of the layers that repeat elements or put margins around them: expand, repeat, padding, windows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layer import Frame, Layer, Pair, Residual, not_homogeneous, unsupported
from .maps import MapRule, MethodRule, by_numbers, register
from .margins import pad, unpad
from .registry import Call, Constant, Size, Value, register_module
from .rows import memory_format_of


class ExpandRule(MethodRule):
    """expand: dimensions are repeated without a copy."""

    apart = True

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        return g.sum_to_size(shape)


class RepeatRule(MethodRule):
    """repeat and tile."""

    aliases = False

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        times, sizes = list(self.args[0]), list(shape)
        times, sizes = [1] * (len(sizes) - len(times)) + times, [1] * (len(times) - len(sizes)) + sizes
        blocks = g.reshape([n for pair in zip(times, sizes, strict=True) for n in pair])
        return blocks.sum(list(range(0, blocks.dim(), 2))).reshape(shape) if times else g


class LikeRule(Layer):
    """view_as, reshape_as and expand_as. The second tensor, which gives only its shape, may be a parameter."""

    apart = True
    recomputes = True
    aliases = True

    def __init__(self, method: str) -> None:
        self.method = method

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        h, like = *inputs, *params
        return getattr(h, self.method)(like), ()

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        v = tangents[0]
        return v.expand(frame.out_shape) if self.method == "expand_as" else v.reshape(frame.out_shape)

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor | tuple[Tensor, ...]:
        shape, *others = frame.shapes
        back = g.sum_to_size(shape) if self.method == "expand_as" else g.reshape(shape)
        return (back, *(g.new_zeros(()).expand(other) for other in others)) if others else back

    def parameter_gradients(self, frame: Frame, pairs: Sequence[Pair]) -> tuple[Tensor | None, ...]:
        return (None,)


class PadRule(MapRule):
    """Margins around the last dimensions, as F.pad counts them, in a mode of `pad`."""

    def __init__(self, padding: Any, mode: str) -> None:
        self.padding, self.mode = padding, mode
        known = isinstance(padding, (tuple, list)) and all(isinstance(p, int) for p in padding)
        self.apart = known and min(padding, default=0) >= 0  # a negative one could move the batch

    def apply(self, t: Tensor) -> Tensor:
        return pad(t, self.padding, self.mode).contiguous(memory_format=memory_format_of(t))

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        return unpad(g if self.mode == "zeros" else g.clone(), self.padding, self.mode)


class UnfoldRule(MapRule):
    """F.unfold: [B, C, H, W] to its windows, [B, C * kernel, L]. Settings: kernel, dilation, padding, stride."""

    apart = True

    def __init__(self, *settings: Any) -> None:
        self.settings = settings

    def apply(self, t: Tensor) -> Tensor:
        return F.unfold(t, *self.settings)

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        return F.fold(g, shape[-2:], *self.settings)


class FoldRule(MapRule):
    """F.fold: windows [B, C * kernel, L] summed into an image [B, C, H, W]. Settings: size, then those of unfold."""

    apart = True

    def __init__(self, size: Any, *settings: Any) -> None:
        self.size, self.settings = size, settings

    def apply(self, t: Tensor) -> Tensor:
        return F.fold(t, self.size, *self.settings)

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        return F.unfold(g, *self.settings)


class WindowRule(MethodRule):
    """The tensor method unfold: a view of the windows along one dimension."""

    apart = True

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        out: Tensor = torch.ops.aten.unfold_backward(g, shape, *self.args)
        return out


def _like(method: str) -> Callable[..., Call]:
    def build(input: Any, other: Any) -> Call:  # noqa: A002
        if not isinstance(input, Value):
            raise unsupported("it only takes the shape of a tensor that depends on the input", "Expand it beforehand")
        tensors = (input, other)
        values = tuple(a for a in tensors if isinstance(a, Value))
        return Call(LikeRule(method), values, tuple(a for a in tensors if isinstance(a, Constant)))

    return build


def _expand(input: Any, *size: Any, implicit: bool = False, **named: Any) -> Call:  # noqa: A002
    return by_numbers("expand", ExpandRule)(input, *size, **named)


def _pad_rule(pad: Any, mode: str, value: Any) -> PadRule:
    if isinstance(value, Size) or value not in (None, 0):
        raise not_homogeneous("it pads with a constant that is not zero", "Pad with zeros, or in another mode")
    if mode != "constant" and any(isinstance(p, int) and p < 0 for p in pad):
        raise unsupported(f"it crops by negative padding in mode {mode}", "Crop with a slice")
    return PadRule(pad, "zeros" if mode == "constant" else mode)


def _pad(input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Call:  # noqa: A002
    return Call(_pad_rule(pad, mode, value), (input,))


def _constant_pad(input: Any, pad: Any, value: Any = 0) -> Call:  # noqa: A002
    return Call(_pad_rule(pad, "constant", value), (input,))


def _unfold(input: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Call:  # noqa: A002
    return Call(UnfoldRule(kernel_size, dilation, padding, stride), (input,))


def _fold(
    input: Any,  # noqa: A002
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Call:
    return Call(FoldRule(output_size, kernel_size, dilation, padding, stride), (input,))


def _windows(input: Any, dimension: Any, size: Any, step: Any) -> Call:  # noqa: A002
    return Call(WindowRule("unfold", dimension, size, step), (input,))


def _module(mode: str) -> Callable[[Any], PadRule]:
    return lambda m: _pad_rule(m.padding, mode, getattr(m, "value", None))


register_module(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, build=_module("constant"))
register_module(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, build=_module("constant"))
register_module(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, build=_module("reflect"))
register_module(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, build=_module("replicate"))
register_module(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d, build=_module("circular"))
register_module(nn.Unfold, build=lambda m: UnfoldRule(m.kernel_size, m.dilation, m.padding, m.stride))
register_module(nn.Fold, build=lambda m: FoldRule(m.output_size, m.kernel_size, m.dilation, m.padding, m.stride))
register("expand", build=_expand)
register(torch.broadcast_to, "broadcast_to", build=_expand)
register("repeat", build=by_numbers("repeat", RepeatRule))
register(torch.tile, "tile", build=by_numbers("tile", RepeatRule))
register("expand_as", build=_like("expand_as"))
register("view_as", build=_like("view_as"))
register("reshape_as", build=_like("reshape_as"))
register(F.pad, build=_pad)
register(torch.constant_pad_nd, build=_constant_pad)
register(F.unfold, build=_unfold)
register(F.fold, build=_fold)
register("unfold", build=_windows)
