"""Layers in plain PyTorch: the forward map and its transpose without operators of the package, packed masks or ATen's
backward operators, so that exporters and other engines can take them.

Each entry of the table serves one family of rules. A layer that has none is taken as its rule is.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..sweep.layer import Frame, Layer, unsupported
from ..sweep.rules.activation import ActivationRule
from ..sweep.rules.conv import ConvRule
from ..sweep.rules.elementwise import AbsRule, ClampRule, ExtremeRule, HardtanhRule
from ..sweep.rules.linear import LinearRule
from ..sweep.rules.margins import sides, unpad
from ..sweep.rules.pooling import (
    AdaptiveAverageRule,
    AdaptiveMaxRule,
    AmaxRule,
    AvgPoolRule,
    MaxPoolRule,
)
from ..sweep.rules.upsample import InterpolateRule

Transpose = Callable[[Tensor], Tensor | tuple[Tensor, ...]]
Params = Sequence[Tensor]

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def plain(layer: Layer, params: Params, *inputs: Tensor) -> tuple[Tensor, Transpose]:
    """The layer's output, and the transpose of its linear map: cotangent at the output to that at each input."""
    for kind in type(layer).__mro__:
        if kind in _PLAIN:
            return _PLAIN[kind](layer, params, *inputs)
    out, residual = layer.forward(params, *inputs)
    frame = Frame(tuple(params), tuple(h.shape for h in inputs), out.shape, residual)
    return out, lambda g: layer.cotangent(frame, g)


def _activation(layer: Any, params: Params, h: Tensor) -> tuple[Tensor, Transpose]:
    slope = layer.slope(params, h)
    if slope is None:
        return torch.relu(h), lambda g: torch.where(h <= 0, 0, g)
    if slope.shape[0] > 1:
        slope = slope.view(-1, *[1] * (h.dim() - 2))
    return torch.where(h > 0, h, slope * h), lambda g: torch.where(h > 0, g, slope * g)


def _abs(layer: Any, params: Params, h: Tensor) -> tuple[Tensor, Transpose]:
    return h.abs(), lambda g: torch.where(h > 0, g, torch.where(h < 0, -g, 0))


def _clamp(layer: Any, params: Params, h: Tensor) -> tuple[Tensor, Transpose]:
    kept = layer.inside(h)
    return torch.where(kept, h, 0), lambda g: torch.where(kept, g, 0)


def _extreme(layer: Any, params: Params, a: Tensor, b: Tensor) -> tuple[Tensor, Transpose]:
    beats, beaten = (a > b, a < b) if layer.largest else (a < b, a > b)

    def transpose(g: Tensor) -> tuple[Tensor, ...]:
        share = torch.where(a == b, g / 2, g)  # beside a NaN, the whole
        to_a, to_b = torch.where(beaten, 0, share), torch.where(beats, 0, share)
        return to_a.sum_to_size(a.shape), to_b.sum_to_size(b.shape)

    return torch.maximum(a, b) if layer.largest else torch.minimum(a, b), transpose


def _linear(layer: Any, params: Params, h: Tensor) -> tuple[Tensor, Transpose]:
    out, _ = layer.forward(params, h)
    return out, lambda g: g @ params[0]


def _convolution(layer: ConvRule, params: Params, h: Tensor) -> tuple[Tensor, Transpose]:
    """The transpose of a convolution is the other kind with the same weight."""
    out, _ = layer.forward(params, h)
    (weight,) = params
    inner, outer = layer.paddings(weight)
    stride, _, dilation, transposed, _, groups = layer.geometry(inner)
    size = list(h.shape[2:])
    for dim, before, after in sides(outer):
        size[dim] += before + after

    def transpose(g: Tensor) -> Tensor:
        if transposed:
            found = torch.ops.aten.convolution(g, weight, None, stride, inner, dilation, False, [0] * len(size), groups)
            for dim, n in enumerate(size, 2):
                found = found.narrow(dim, 0, n)
        else:
            windows = zip(size, g.shape[2:], weight.shape[2:], stride, inner, dilation, strict=True)
            rest = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, k, s, p, d in windows]
            found = torch.ops.aten.convolution(g, weight, None, stride, inner, dilation, True, rest, groups)
        return unpad(found, outer, layer.padding_mode)

    return out, transpose


def _scattered(out: Tensor, index: Tensor, shape: torch.Size) -> tuple[Tensor, Transpose]:
    """Maxima and their indices in the flattened space of an input of this shape: each cotangent goes where its maximum
    came from. Sums are taken in fp32 at least.
    """

    def transpose(g: Tensor) -> Tensor:
        total = g.new_zeros((*shape[:2], math.prod(shape[2:])), dtype=torch.promote_types(g.dtype, torch.float32))
        return total.scatter_add(2, index.flatten(2), g.flatten(2).to(total.dtype)).reshape(shape).to(g.dtype)

    return out, transpose


def _max_pool(layer: MaxPoolRule, params: Params, h: Tensor) -> tuple[Tensor, Transpose]:
    out, index = layer.indexed(h)
    return _scattered(out, index, h.shape)


def _bins(setting: Any, size: Sequence[int]) -> list[int]:
    """How many bins an adaptive pooling makes of each dimension; None keeps its size."""
    given = list(setting) if isinstance(setting, (tuple, list)) else [setting] * len(size)
    return [n if bins is None else bins for bins, n in zip(given, size, strict=True)]


def _adaptive_max(layer: AdaptiveMaxRule, params: Params, h: Tensor) -> tuple[Tensor, Transpose]:
    size = h.shape[2:]
    bins = _bins(layer.output_size, size)
    if any(n % b for n, b in zip(size, bins, strict=True)):
        reason = f"it divides {list(size)} into {bins} bins of different sizes, for which there is no plain form"
        raise unsupported(reason, "Choose sizes that divide, or MaxPool").at(layer.name, layer.kind)
    kernel = [n // b for n, b in zip(size, bins, strict=True)]
    return _scattered(*_MAX[layer.dims](h, kernel, return_indices=True), h.shape)


def _by_matrices(t: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """t [B, C, *size] times a matrix along each dimension of space."""
    for dim, matrix in enumerate(matrices, 2):
        t = (t.movedim(dim, -1) @ matrix).movedim(-1, dim)
    return t


def _averages(windows: Sequence[tuple[int, int, float]], n: int, like: Tensor) -> Tensor:
    """[n, windows]: the weights of n elements in each window (first, end, divisor)."""
    rows = [[1 / divisor if a <= i < b else 0.0 for a, b, divisor in windows] for i in range(n)]
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def _average_pool(layer: AvgPoolRule, params: Params, h: Tensor) -> tuple[Tensor, Transpose]:
    out, matrices = layer.average(h), []
    for n, m, k, s, p in zip(h.shape[2:], out.shape[2:], *layer.windows(), strict=True):
        spans = [(i * s - p, min(i * s - p + k, n + p)) for i in range(m)]
        inside = [(max(a, 0), min(b, n)) for a, b in spans]
        counted = spans if layer.count_include_pad else inside
        fixed = None if layer.divisor_override is None else 1.0
        windows = [(a, b, fixed or d - c) for (a, b), (c, d) in zip(inside, counted, strict=True)]
        matrices.append(_averages(windows, n, h))
    scale = layer.divisor_override or 1
    if layer.ceil_mode:  # engines disagree about windows that reach over the end
        out = _by_matrices(h, matrices) / scale
    return out, lambda g: _by_matrices(g, [m.t() for m in matrices]) / scale


def _adaptive_average(layer: Any, params: Params, h: Tensor) -> tuple[Tensor, Transpose]:
    return _over_bins(h, _bins(layer.output_size, h.shape[2:]))


def _over_bins(h: Tensor, bins: Sequence[int]) -> tuple[Tensor, Transpose]:
    """Averages over the bins that divide each dimension of space."""
    size, dims = h.shape[2:], list(range(2, h.dim()))
    if all(b == 1 for b in bins):
        return h.mean(dims, keepdim=True), lambda g: (g / math.prod(size)).expand(h.shape)
    matrices = []
    for n, b in zip(size, bins, strict=True):
        ends = [(i * n // b, -(-(i + 1) * n // b)) for i in range(b)]
        matrices.append(_averages([(first, end, end - first) for first, end in ends], n, h))
    return _by_matrices(h, matrices), lambda g: _by_matrices(g, [m.t() for m in matrices])


def _amax(layer: AmaxRule, params: Params, h: Tensor) -> tuple[Tensor, Transpose]:
    dims = layer.dims_of(h.shape)
    held = h.amax(dims, keepdim=True)
    chosen = (h == held).to(h.dtype)

    def transpose(g: Tensor) -> Tensor:
        return chosen / chosen.sum(dims, keepdim=True) * g.reshape(held.shape)

    return held if layer.keepdim else h.amax(dims), transpose


def _interpolate(layer: InterpolateRule, params: Params, h: Tensor) -> tuple[Tensor, Transpose]:
    out, _ = layer.forward(params, h)
    if layer.mode == "area":
        return _over_bins(h, out.shape[2:])
    return out, lambda g: layer.by_matrices(g, h.shape)


_PLAIN: dict[type[Layer], Callable[..., tuple[Tensor, Transpose]]] = {
    ActivationRule: _activation,
    AbsRule: _abs,
    ClampRule: _clamp,
    HardtanhRule: _clamp,
    ExtremeRule: _extreme,
    LinearRule: _linear,
    ConvRule: _convolution,
    MaxPoolRule: _max_pool,
    AdaptiveMaxRule: _adaptive_max,
    AvgPoolRule: _average_pool,
    AdaptiveAverageRule: _adaptive_average,
    AmaxRule: _amax,
    InterpolateRule: _interpolate,
}
