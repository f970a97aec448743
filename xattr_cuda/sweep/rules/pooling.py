"""Rules of pooling: maxima and averages over windows, over adaptive bins, and maxima over whole dimensions."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import ops
from ..layer import Frame, Layer, Residual, unsupported
from .maps import register
from .registry import Call, register_module
from .rows import by_rows, memory_format_of

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE_MAX = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
_ADAPTIVE_AVERAGE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_LARGEST_WINDOW = 256  # of ops.max_pool, whose index is a byte


def _per_dim(given: Any, dims: int, default: list[int] | None = None) -> list[int]:
    """A setting as PyTorch takes it, as one number for each dimension; None or nothing is the default."""
    values = list(given) if isinstance(given, (tuple, list)) else [given]
    if default is not None and values in ([], [None]):
        return default
    return values * dims if len(values) == 1 else values


def _marked(h: Tensor) -> Tensor:
    """An empty tensor whose strides remember the memory format of h."""
    return torch.empty((0, *h.shape[1:]), dtype=h.dtype, device=h.device, memory_format=memory_format_of(h))


def _by_aten(name: str, mark: Tensor, shape: torch.Size, g: Tensor, *args: Any) -> Tensor:
    """ATen's transpose of a pooling whose input has `shape` [B, C, *size] and the format that `mark` remembers.

    One dimension goes as two, the first of size one.
    """
    memory_format = memory_format_of(mark)
    if memory_format == torch.contiguous_format:
        like = g.new_empty(1).expand(shape)  # asked for its shape and format only
    else:
        like = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=memory_format)
    if len(shape) > 3:
        found = getattr(torch.ops.aten, name.format(len(shape) - 2))(g, like, *args)
        return found.contiguous(memory_format=memory_format)
    lifted = [a.unsqueeze(2) if isinstance(a, Tensor) else a for a in (g, like, *args)]
    return getattr(torch.ops.aten, name.format(2))(*lifted).squeeze(2)


def _lifted(windows: Sequence[list[int]], first: Sequence[int]) -> list[list[int]]:
    """The windows of one dimension as those of two, the first of which has these settings."""
    return [[n, *given] if len(given) == 1 else given for n, given in zip(first, windows, strict=True)]


class PoolRule(Layer):
    """Pooling of h [B, C, *size] with one to three dimensions of space."""

    apart = True
    recomputes = True
    shrinks = True

    def __init__(self, dims: int) -> None:
        self.dims = dims

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        (h,) = inputs
        if h.dim() != self.dims + 2:
            space = ", ".join(("D", "H", "W")[-self.dims :]) if self.dims > 1 else "L"
            raise ValueError(f"{self.where} wants a batch [B, C, {space}], got {list(h.shape)}; unsqueeze it first")
        return self.pool(h)

    @abstractmethod
    def pool(self, h: Tensor) -> tuple[Tensor, Residual]:
        """The forward map of a batch."""


class FlatMaxRule(PoolRule):
    """Maxima whose places are kept as int32 indices into the flattened space of the input."""

    def pool(self, h: Tensor) -> tuple[Tensor, Residual]:
        out, index = self.indexed(h)
        # The indices stay in the format that they came in: not every transpose of ATen takes them in another.
        return out.contiguous(memory_format=memory_format_of(h)), (index.int(), _marked(h))

    @abstractmethod
    def indexed(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The maxima and their indices, as PyTorch gives them."""

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        index, mark = frame.residual
        found = tangents[0].flatten(2).gather(2, index.flatten(2).long()).reshape(index.shape)
        return found.contiguous(memory_format=memory_format_of(mark))


class MaxPoolRule(FlatMaxRule):
    """Max pooling over windows. The residual is the index of each maximum in its window, a uint8; where windows have
    more than 256 elements, that of the base.
    """

    rectifies = True

    def __init__(
        self,
        dims: int,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: Any = False,
    ) -> None:
        super().__init__(dims)
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.ceil_mode = ceil_mode

    def windows(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """(kernel, stride, padding, dilation), a number for each dimension."""
        kernel = _per_dim(self.kernel_size, self.dims)
        return (
            kernel,
            _per_dim(self.stride, self.dims, kernel),
            _per_dim(self.padding, self.dims),
            _per_dim(self.dilation, self.dims),
        )

    def pool(self, h: Tensor) -> tuple[Tensor, Residual]:
        windows = self.windows()
        if math.prod(windows[0]) > _LARGEST_WINDOW:
            return super().pool(h)
        try:
            out, idx = ops.max_pool(h, *windows, self.ceil_mode)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from error
        return out, (idx,)

    def indexed(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return _MAX[self.dims](h, *self.windows(), ceil_mode=self.ceil_mode, return_indices=True)

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        if len(frame.residual) == 1:
            return ops.pool_push(tangents[0], *frame.residual, *self.windows())
        return super().tangent(frame, *tangents)

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        (shape,) = frame.shapes
        if len(frame.residual) == 1:
            return ops.pool_pull(g, *frame.residual, shape, *self.windows())
        index, mark = frame.residual
        windows = _lifted(self.windows(), (1, 1, 0, 1))
        settings = (*windows, self.ceil_mode, index.long())
        return _by_aten("max_pool{}d_with_indices_backward", mark, shape, g, *settings)


class AdaptiveMaxRule(FlatMaxRule):
    """Maxima over the bins that divide the input into a given number of parts."""

    def __init__(self, dims: int, output_size: Any) -> None:
        super().__init__(dims)
        self.output_size = output_size

    def indexed(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return _ADAPTIVE_MAX[self.dims](h, self.output_size, return_indices=True)

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        index, mark = frame.residual
        return _by_aten("adaptive_max_pool{}d_backward", mark, frame.shapes[0], g, index.long())


class AverageRule(PoolRule):
    """A fixed average of the input. The residual remembers its memory format."""

    @abstractmethod
    def average(self, h: Tensor) -> Tensor:
        """The map."""

    def pool(self, h: Tensor) -> tuple[Tensor, Residual]:
        mark = _marked(h)
        return self.average(h).contiguous(memory_format=memory_format_of(mark)), (mark,)

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return self.average(tangents[0]).contiguous(memory_format=memory_format_of(*frame.residual))


class AvgPoolRule(AverageRule):
    """Average pooling over windows."""

    def __init__(
        self,
        dims: int,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: Any = False,
        count_include_pad: Any = True,
        divisor_override: Any = None,
    ) -> None:
        super().__init__(dims)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.ceil_mode, self.count_include_pad, self.divisor_override = ceil_mode, count_include_pad, divisor_override

    def windows(self) -> tuple[list[int], list[int], list[int]]:
        """(kernel, stride, padding), a number for each dimension."""
        kernel = _per_dim(self.kernel_size, self.dims)
        return kernel, _per_dim(self.stride, self.dims, kernel), _per_dim(self.padding, self.dims)

    def average(self, h: Tensor) -> Tensor:
        divisor = () if self.dims == 1 else (self.divisor_override,)
        return _AVERAGE[self.dims](h, *self.windows(), self.ceil_mode, self.count_include_pad, *divisor)

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        windows = _lifted(self.windows(), (1, 1, 0))
        settings = (*windows, self.ceil_mode, self.count_include_pad, self.divisor_override)
        return _by_aten("avg_pool{}d_backward", frame.residual[0], frame.shapes[0], g, *settings)


class AdaptiveAverageRule(AverageRule):
    """Averages over the bins that divide the input into a given number of parts."""

    def __init__(self, dims: int, output_size: Any) -> None:
        super().__init__(dims)
        self.output_size = output_size

    def average(self, h: Tensor) -> Tensor:
        return _ADAPTIVE_AVERAGE[self.dims](h, self.output_size)

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        (shape,), (mark,) = frame.shapes, frame.residual
        if all(n == 1 for n in g.shape[2:]):  # one average of everything
            return (g / math.prod(shape[2:])).expand(shape).contiguous(memory_format=memory_format_of(mark))
        return _by_aten("_adaptive_avg_pool{}d_backward", mark, shape, g)


class AmaxRule(Layer):
    """Maxima over dimensions other than the batch. Equal maxima share their cotangent evenly, as in PyTorch.

    The residual is the packed mask of the maxima.
    """

    apart = True
    recomputes = True
    shrinks = True

    def __init__(self, dim: Any, keepdim: Any) -> None:
        self.dim, self.keepdim = dim, keepdim

    def dims_of(self, shape: Sequence[int]) -> list[int]:
        given = self.dim if isinstance(self.dim, (tuple, list)) else [self.dim]
        dims = [d % len(shape) for d in given]
        if not dims or 0 in dims:
            raise ValueError(
                f"{self.where} takes maxima over dimensions {list(given)} of {list(shape)}, the batch among them; "
                "give the dimensions without 0"
            )
        return dims

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        (h,) = inputs
        dims = self.dims_of(h.shape)
        rows, _ = by_rows((h == h.amax(dims, keepdim=True)).to(h.dtype))
        return h.amax(dims, keepdim=bool(self.keepdim)), (ops.relu_mask(rows)[1],)

    def _selected(self, frame: Frame, t: Tensor) -> Tensor:
        """t [*input] where the maxima are, divided by how many share their place in the output."""
        rows, restore = by_rows(t, *frame.residual)
        chosen = restore(ops.mask_mul(rows, *frame.residual))
        ones = restore(ops.mask_mul(torch.ones_like(rows), *frame.residual))
        return chosen / ones.sum(self.dims_of(t.shape), keepdim=True)

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        (v,) = tangents
        return self._selected(frame, v).sum(self.dims_of(v.shape), keepdim=bool(self.keepdim))

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        (shape,) = frame.shapes
        kept = [1 if d in self.dims_of(shape) else n for d, n in enumerate(shape)]
        return self._selected(frame, g.reshape(kept).expand(shape))


def _refuse_indices(*args: Any, **kwargs: Any) -> Call:
    raise unsupported("it returns the indices of its maxima", "Use it with return_indices=False")


def _max_pool(dims: int) -> Callable[..., Call]:
    def build(
        input: Any,  # noqa: A002
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: Any = False,
        return_indices: Any = False,
    ) -> Call:
        if return_indices:
            return _refuse_indices()
        return Call(MaxPoolRule(dims, kernel_size, stride, padding, dilation, ceil_mode), (input,))

    return build


def _avg_pool(dims: int) -> Callable[..., Call]:
    def build(input: Any, kernel_size: Any, *args: Any, **kwargs: Any) -> Call:  # noqa: A002
        return Call(AvgPoolRule(dims, kernel_size, *args, **kwargs), (input,))

    return build


def _adaptive(rule: Callable[[int, Any], Layer], dims: int) -> Callable[..., Call]:
    def build(input: Any, output_size: Any, return_indices: Any = False) -> Call:  # noqa: A002
        return _refuse_indices() if return_indices else Call(rule(dims, output_size), (input,))

    return build


def _amax(input: Any, dim: Any = (), keepdim: Any = False) -> Call:  # noqa: A002
    return Call(AmaxRule(dim, keepdim), (input,))


def _of_module(build: Callable[..., Call], *settings: str) -> Callable[[Any], Layer]:
    """The layer of a module by the build of its function, from those of these settings that the module has."""

    def layer(module: Any) -> Layer:
        given = {name: getattr(module, name) for name in settings if hasattr(module, name)}
        return build(None, **given).layer

    return layer


_MAX_SETTINGS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVERAGE_SETTINGS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")

for _n in (1, 2, 3):
    _builds = (_max_pool(_n), _avg_pool(_n), _adaptive(AdaptiveMaxRule, _n), _adaptive(AdaptiveAverageRule, _n))
    register(_MAX[_n], getattr(torch, f"max_pool{_n}d"), build=_builds[0])
    register(_AVERAGE[_n], build=_builds[1])
    register(_ADAPTIVE_MAX[_n], build=_builds[2])
    register(_ADAPTIVE_AVERAGE[_n], build=_builds[3])
    for _name in (f"max_pool{_n}d_with_indices", f"adaptive_max_pool{_n}d_with_indices"):
        register(getattr(F, _name), build=_refuse_indices)
    register_module(getattr(nn, f"MaxPool{_n}d"), build=_of_module(_builds[0], *_MAX_SETTINGS))
    register_module(getattr(nn, f"AvgPool{_n}d"), build=_of_module(_builds[1], *_AVERAGE_SETTINGS))
    register_module(getattr(nn, f"AdaptiveMaxPool{_n}d"), build=_of_module(_builds[2], "output_size", "return_indices"))
    register_module(getattr(nn, f"AdaptiveAvgPool{_n}d"), build=_of_module(_builds[3], "output_size"))
register(torch.max_pool1d_with_indices, torch.adaptive_max_pool1d, build=_refuse_indices)
register(torch.amax, "amax", build=_amax)
