"""Rules of the convolutions and the transposed ones, in one to three dimensions."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layer import Frame, Layer, Pair, Residual, biased, not_homogeneous, unsupported
from .margins import pad, sides, unpad
from .registry import Call, Constant, Value, refuse, register_function, register_module
from .rows import is_channels_last, memory_format_of

_SPACE = {1: "L", 2: "H, W", 3: "D, H, W"}


def stand_in(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor of this shape, for operators that ask their input for its shape, dtype and memory format, not values.

    The format is that of `like`. Nothing is written; the default format does not even take memory. Channels last does:
    no tensor without memory can show it.
    """
    if is_channels_last(like):
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format_of(like))
    return like.new_empty(1).expand(shape)


class ConvRule(Layer):
    """h -> h * W, for h [B, C, *space] and W [O, C / groups, *kernel]; transposed: W [C, O / groups, *kernel].

    The settings are those of torch.nn's modules, a number standing for one in each dimension.
    """

    apart = True

    def __init__(
        self,
        dims: int,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: Any,
        *,
        transposed: bool = False,
        output_padding: Any = 0,
        padding_mode: str = "zeros",
    ) -> None:
        self.dims, self.stride, self.padding, self.dilation, self.groups = dims, stride, padding, dilation, groups
        self.transposed, self.output_padding, self.padding_mode = transposed, output_padding, padding_mode

    def _each(self, setting: Any) -> list[int]:
        """A setting for each dimension."""
        values = list(setting) if isinstance(setting, (tuple, list)) else [setting]
        return values * self.dims if len(values) == 1 else values

    def _margins(self, weight: Tensor) -> list[tuple[int, int]]:
        """Padding (before, after) of each dimension; 'same' puts an odd one out after, as PyTorch does."""
        if self.padding == "same":
            if any(s != 1 for s in self._each(self.stride)):
                raise ValueError(f"{self.where} has padding='same', which wants stride 1, got {self.stride}")
            totals = [d * (k - 1) for d, k in zip(self._each(self.dilation), weight.shape[2:], strict=True)]
            return [(total // 2, total - total // 2) for total in totals]
        return [(p, p) for p in self._each(0 if self.padding == "valid" else self.padding)]

    def paddings(self, weight: Tensor) -> tuple[list[int], list[int]]:
        """The padding that the convolution itself applies, and what must come before it, as F.pad takes it."""
        margins = self._margins(weight)
        inner = [before if self.padding_mode == "zeros" else 0 for before, _ in margins]
        pairs = zip(margins, inner, strict=True)
        outer = [(before - within, after - within) for (before, after), within in pairs]
        return inner, [p for pair in reversed(outer) for p in pair]

    def geometry(self, inner: list[int]) -> tuple[Any, ...]:
        """The settings as ATen takes them."""
        stride, dilation, output_padding = map(self._each, (self.stride, self.dilation, self.output_padding))
        return stride, inner, dilation, self.transposed, output_padding, self.groups

    def _check(self, h: Tensor, weight: Tensor) -> None:
        channels = weight.shape[0] if self.transposed else weight.shape[1] * self.groups
        if h.dim() != self.dims + 2 or h.shape[1] != channels:
            raise ValueError(f"{self.where} wants [B, {channels}, {_SPACE[self.dims]}], got {list(h.shape)}")
        if h.dtype != weight.dtype or h.device != weight.device:
            raise ValueError(
                f"{self.where} has a weight of {weight.dtype} on {weight.device}, got {h.dtype} on {h.device}; "
                "convert the inputs or the model"
            )

    def _convolve(self, h: Tensor, weight: Tensor) -> Tensor:
        inner, outer = self.paddings(weight)
        h = pad(h, outer, self.padding_mode)
        return torch.ops.aten.convolution(h, weight, None, *self.geometry(inner))

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        self._check(inputs[0], params[0])
        return self._convolve(inputs[0], params[0]), ()

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return self._convolve(tangents[0], frame.params[0])

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        (weight,), (shape,) = frame.params, frame.shapes
        inner, outer = self.paddings(weight)
        padded = list(shape)
        for dim, before, after in sides(outer):
            padded[dim] += before + after
        settings = (*self.geometry(inner), [True, False, False])
        found = torch.ops.aten.convolution_backward(g, stand_in(g, padded), weight, None, *settings)
        return unpad(found[0], outer, self.padding_mode)

    def parameter_gradients(self, frame: Frame, pairs: Sequence[Pair]) -> tuple[Tensor, ...]:
        (weight,) = frame.params
        if len(pairs) == 2 and self.joins_chains(frame):
            pairs = [(torch.cat([pairs[0][0], pairs[1][0]]), torch.cat([pairs[0][1], pairs[1][1]]))]
        total, *others = (self._weight_gradient(g, v, weight) for g, v in pairs)
        for other in others:
            total.add_(other)
        return (total,)

    def joins_chains(self, frame: Frame) -> bool:
        # Where writing the gradient a second time would cost more than laying the chains end to end.
        return frame.params[0].numel() > math.prod(frame.out_shape) + math.prod(frame.shapes[0])

    def _weight_gradient(self, g: Tensor, v: Tensor, weight: Tensor) -> Tensor:
        inner, outer = self.paddings(weight)
        settings = (*self.geometry(inner), [False, True, False])
        v = pad(v, outer, self.padding_mode)
        return torch.ops.aten.convolution_backward(g, v, weight, None, *settings)[1]


def _operands(input: Any, weight: Any, bias: Any) -> tuple[tuple[Value], tuple[Constant]]:  # noqa: A002
    """The input and the parameter of a call, where it is one that a rule can carry."""
    if bias is not None:
        raise biased()
    if not isinstance(weight, Constant):
        if isinstance(input, Value):
            reason = "its input and its weight both depend on the network's inputs, so it squares their scale"
            raise not_homogeneous(reason, "Compute the weight from parameters only")
        reason = "its weight, and not its input, depends on the network's inputs"
        raise unsupported(reason, "Compute the weight from parameters only")
    return (input,), (weight,)


def _conv(
    dims: int,
    input: Any,  # noqa: A002
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> Call:
    return Call(ConvRule(dims, stride, padding, dilation, groups), *_operands(input, weight, bias))


def _conv_transpose(
    dims: int,
    input: Any,  # noqa: A002
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
) -> Call:
    layer = ConvRule(dims, stride, padding, dilation, groups, transposed=True, output_padding=output_padding)
    return Call(layer, *_operands(input, weight, bias))


def _module(module: Any) -> ConvRule:
    if module.bias is not None:
        raise biased()
    return ConvRule(
        len(module.kernel_size),
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        transposed=module.transposed,
        output_padding=module.output_padding,
        padding_mode=module.padding_mode,
    )


register_module(nn.Conv1d, nn.Conv2d, nn.Conv3d, build=_module, tensors=("weight",))
register_module(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, build=_module, tensors=("weight",))
register_function(F.conv1d, build=partial(_conv, 1))
register_function(F.conv2d, build=partial(_conv, 2))
register_function(F.conv3d, build=partial(_conv, 3))
register_function(F.conv_transpose1d, build=partial(_conv_transpose, 1))
register_function(F.conv_transpose2d, build=partial(_conv_transpose, 2))
register_function(F.conv_transpose3d, build=partial(_conv_transpose, 3))
refuse(F.conv_tbc, reason="it adds a bias", remedy="Use F.conv1d without a bias, on [B, C, L]")
