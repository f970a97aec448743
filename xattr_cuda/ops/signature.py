"""What each operator accepts and what it returns: the checks, and the shapes and dtypes of the results.

One function an operator: it validates the arguments and returns a `Spec` for each result, a list of them for a list.
The fake (meta) kernels allocate from it and the reference is guarded by it. The C++ kernels make the same checks in
`csrc/signature.h` and `csrc/cpu/perceptron.h`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.reference.bits import words
from ..kernels.reference.max_pool import MAX_WINDOW, memory_format, pooled_size

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Spec(NamedTuple):
    """Shape, dtype and layout of a result."""

    shape: Sequence[int]
    dtype: torch.dtype
    layout: torch.memory_format = torch.contiguous_format


def _require(condition: bool, op: str, message: str) -> None:
    if not condition:
        raise ValueError(f"xattr::{op}: {message}")


def _check_values(op: str, **tensors: Tensor) -> None:
    """Floating, at least one dimension, one dtype and one device."""
    first_name, first = next(iter(tensors.items()))
    for name, t in tensors.items():
        _require(t.dtype in DTYPES, op, f"`{name}` has dtype {t.dtype}; wanted fp32, fp64, bf16 or fp16")
        _require(t.dim() >= 1, op, f"`{name}` is a scalar; wanted at least one dimension")
        same = t.dtype == first.dtype and t.device == first.device
        _require(
            same,
            op,
            f"`{name}` is {t.dtype} on {t.device}, `{first_name}` is {first.dtype} on {first.device}; "
            "wanted one dtype and one device",
        )


def _check_slope(op: str, slope: Tensor | None, t: Tensor, n: int) -> None:
    if slope is not None:
        _require(
            slope.dim() == 1 and slope.shape[0] in (1, n),
            op,
            f"`slope` has shape {list(slope.shape)}; wanted [1] or [{n}]",
        )
        _require(
            slope.dtype == t.dtype and slope.device == t.device,
            op,
            f"`slope` is {slope.dtype} on {slope.device}; wanted {t.dtype} on {t.device}",
        )


def _check_bits(op: str, bits: Tensor, shape: Sequence[int], device: torch.device) -> None:
    wanted = [*shape[:-1], words(shape[-1])]
    _require(
        list(bits.shape) == wanted and bits.dtype == torch.int32 and bits.device == device,
        op,
        f"`bits` is {bits.dtype} {list(bits.shape)} on {bits.device}; wanted torch.int32 {wanted} on {device}",
    )


def _bits_of(shape: Sequence[int]) -> Spec:
    return Spec([*shape[:-1], words(shape[-1])], torch.int32)


def relu_mask(z: Tensor, slope: Tensor | None = None) -> list[Spec]:
    _check_values("relu_mask", z=z)
    _check_slope("relu_mask", slope, z, z.shape[-1])
    return [Spec(z.shape, z.dtype), _bits_of(z.shape)]


def mask_mul(t: Tensor, bits: Tensor, slope: Tensor | None = None) -> list[Spec]:
    _check_values("mask_mul", t=t)
    _check_bits("mask_mul", bits, t.shape, t.device)
    _check_slope("mask_mul", slope, t, t.shape[-1])
    return [Spec(t.shape, t.dtype)]


def add_relu_mask(a: Tensor, b: Tensor, slope: Tensor | None = None) -> list[Spec]:
    _check_values("add_relu_mask", a=a, b=b)
    _require(
        a.shape == b.shape,
        "add_relu_mask",
        f"`a` has shape {list(a.shape)} and `b` {list(b.shape)}; wanted one shape (expand the smaller first)",
    )
    _check_slope("add_relu_mask", slope, a, a.shape[-1])
    return [Spec(a.shape, a.dtype), _bits_of(a.shape)]


def linear_relu_mask(x: Tensor, weight: Tensor, slope: Tensor | None = None) -> list[Spec]:
    _check_values("linear_relu_mask", x=x, weight=weight)
    _require(
        weight.dim() == 2 and weight.shape[1] == x.shape[-1],
        "linear_relu_mask",
        f"`weight` has shape {list(weight.shape)}; wanted [N, {x.shape[-1]}] for `x` of shape {list(x.shape)}",
    )
    _check_slope("linear_relu_mask", slope, x, weight.shape[0])
    shape = [*x.shape[:-1], weight.shape[0]]
    return [Spec(shape, x.dtype), _bits_of(shape)]


def matmul_mask(t: Tensor, matrix: Tensor, bits: Tensor | None = None, slope: Tensor | None = None) -> list[Spec]:
    _check_values("matmul_mask", t=t, matrix=matrix)
    _require(
        matrix.dim() == 2 and matrix.shape[0] == t.shape[-1],
        "matmul_mask",
        f"`matrix` has shape {list(matrix.shape)}; wanted [{t.shape[-1]}, N] for `t` of shape {list(t.shape)}",
    )
    shape = [*t.shape[:-1], matrix.shape[1]]
    if bits is not None:
        _check_bits("matmul_mask", bits, shape, t.device)
    _require(bits is not None or slope is None, "matmul_mask", "`slope` was given without `bits`; give both or neither")
    _check_slope("matmul_mask", slope, t, matrix.shape[1])
    return [Spec(shape, t.dtype)]


def _check_pair(left_name: str, left: Tensor, right_name: str, right: Tensor) -> None:
    _require(
        left.dim() >= 2 and left.shape[:-1] == right.shape[:-1],
        "dual_weight_grad",
        f"`{left_name}` has shape {list(left.shape)} and `{right_name}` {list(right.shape)}; "
        "wanted [..., N] and [..., K] with the same leading dimensions",
    )


def dual_weight_grad(delta: Tensor, h: Tensor, g: Tensor | None = None, v: Tensor | None = None) -> list[Spec]:
    _check_values("dual_weight_grad", delta=delta, h=h)
    _check_pair("delta", delta, "h", h)
    _require((g is None) == (v is None), "dual_weight_grad", "`g` and `v` are one pair; give both or neither")
    if g is not None and v is not None:
        _check_values("dual_weight_grad", delta=delta, g=g, v=v)
        _check_pair("g", g, "v", v)
        ends, wanted = [g.shape[-1], v.shape[-1]], [delta.shape[-1], h.shape[-1]]
        _require(ends == wanted, "dual_weight_grad", f"the pairs end in {wanted} and {ends}; wanted the same [N, K]")
    return [Spec([delta.shape[-1], h.shape[-1]], delta.dtype)]


_Numbers = Sequence[int]
_LARGEST = 2**31 - 1  # of a window's settings, so that no product of two overflows


def _check_windows(op: str, kernel: _Numbers, stride: _Numbers, padding: _Numbers, dilation: _Numbers) -> None:
    """One number for each of one to three spatial dimensions, and what PyTorch asks of them."""
    counts = [len(kernel), len(stride), len(padding), len(dilation)]
    _require(
        counts in ([1] * 4, [2] * 4, [3] * 4),
        op,
        f"`kernel`, `stride`, `padding` and `dilation` have {counts} numbers; wanted one for each of 1 to 3 spatial "
        "dimensions",
    )
    for name, numbers in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
        fits = all(1 <= n <= _LARGEST for n in numbers)
        _require(fits, op, f"`{name}` is {list(numbers)}; wanted numbers from 1 to {_LARGEST}")
    limits = [((k - 1) * d + 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    _require(
        all(0 <= p <= limit for p, limit in zip(padding, limits, strict=True)),
        op,
        f"`padding` is {list(padding)}; wanted numbers from 0 to half of the window, {limits}",
    )
    _require(
        math.prod(kernel) <= MAX_WINDOW,
        op,
        f"`kernel` is {list(kernel)}; wanted windows of at most {MAX_WINDOW} elements, whose index is a uint8",
    )


def _check_batch(op: str, name: str, shape: _Numbers, dims: int) -> None:
    _require(
        len(shape) == dims + 2 and all(n > 0 for n in shape[1:]),
        op,
        f"`{name}` has shape {list(shape)}; wanted [B, C] and {dims} spatial dimensions, none empty but B",
    )


def _pooled(shape: _Numbers, geometry: Sequence[_Numbers], ceil_mode: bool) -> list[int]:
    sizes = zip(shape[2:], *geometry, strict=True)
    return [*shape[:2], *(pooled_size(n, k, s, p, d, ceil_mode) for n, k, s, p, d in sizes)]


def _check_idx(op: str, idx: Tensor, shape: _Numbers, geometry: Sequence[_Numbers], device: torch.device) -> None:
    """uint8, of the shape that pooling an input of `shape` has with or without ceil_mode."""
    least, most = (_pooled(shape, geometry, ceil_mode) for ceil_mode in (False, True))
    fits = len(idx.shape) == len(shape) and all(
        n in (low, high) for n, low, high in zip(idx.shape, least, most, strict=True)
    )
    _require(
        fits and idx.dtype == torch.uint8 and idx.device == device,
        op,
        f"`idx` is {idx.dtype} {list(idx.shape)} on {idx.device}; wanted torch.uint8 {least} "
        f"(with ceil_mode {most}) on {device}",
    )


def max_pool(
    h: Tensor, kernel: _Numbers, stride: _Numbers, padding: _Numbers, dilation: _Numbers, ceil_mode: bool
) -> list[Spec]:
    geometry = (kernel, stride, padding, dilation)
    _check_values("max_pool", h=h)
    _check_windows("max_pool", *geometry)
    _check_batch("max_pool", "h", h.shape, len(kernel))
    shape = _pooled(h.shape, geometry, ceil_mode)
    some = all(n > 0 for n in shape[2:])
    _require(some, "max_pool", f"`h` has shape {list(h.shape)}; wanted room for a window of {list(kernel)}")
    for n, out, s, p, d in zip(h.shape[2:], shape[2:], stride, padding, dilation, strict=True):
        # The first element of a window that does not lie before the input must not lie behind it.
        met = d <= n or all(start % d < n for start in range(-p, min(0, out * s - p), s))
        _require(met, "max_pool", f"`dilation` is {list(dilation)}; wanted no window that holds padding alone")
    layout = memory_format(h)
    return [Spec(shape, h.dtype, layout), Spec(shape, torch.uint8, layout)]


def pool_pull(
    g: Tensor,
    idx: Tensor,
    shape: _Numbers,
    kernel: _Numbers,
    stride: _Numbers,
    padding: _Numbers,
    dilation: _Numbers,
) -> list[Spec]:
    geometry = (kernel, stride, padding, dilation)
    _check_values("pool_pull", g=g)
    _check_windows("pool_pull", *geometry)
    _check_batch("pool_pull", "shape", shape, len(kernel))
    _check_idx("pool_pull", idx, shape, geometry, g.device)
    same = list(g.shape) == list(idx.shape)
    _require(same, "pool_pull", f"`g` has shape {list(g.shape)}; wanted that of `idx`, {list(idx.shape)}")
    return [Spec(shape, g.dtype, memory_format(idx))]


def pool_push(
    v: Tensor, idx: Tensor, kernel: _Numbers, stride: _Numbers, padding: _Numbers, dilation: _Numbers
) -> list[Spec]:
    geometry = (kernel, stride, padding, dilation)
    _check_values("pool_push", v=v)
    _check_windows("pool_push", *geometry)
    _check_batch("pool_push", "v", v.shape, len(kernel))
    _check_idx("pool_push", idx, v.shape, geometry, v.device)
    return [Spec(idx.shape, v.dtype, memory_format(idx))]


def _check_matrix(op: str, name: str, t: Tensor, shape: Sequence[int], like: Tensor) -> None:
    same = list(t.shape) == list(shape) and t.dtype == like.dtype and t.device == like.device
    _require(
        same,
        op,
        f"`{name}` is {t.dtype} {list(t.shape)} on {t.device}; wanted {like.dtype} {list(shape)} on {like.device}",
    )


def _check_perceptron(op: str, like: Tensor, weights: Sequence[Tensor], slopes: Sequence[float]) -> list[int]:
    """The widths N_0 .. N_L."""
    _require(len(weights) > 0, op, "`weights` is empty; wanted at least one layer")
    count = f"`slopes` has {len(slopes)} numbers for {len(weights)} weights"
    _require(len(slopes) + 1 == len(weights), op, f"{count}; wanted one for each activation between them")
    widths = [weights[0].shape[-1]]
    for i, weight in enumerate(weights):
        given = f"`weights[{i}]` is {weight.dtype} {list(weight.shape)} on {weight.device}"
        fits = weight.dim() == 2 and weight.shape[1] == widths[-1]
        fits = fits and weight.dtype == like.dtype and weight.device == like.device
        wanted = f"{like.dtype} [N, K] on {like.device} with the K of the layer before's N"
        _require(fits, op, f"{given}; wanted {wanted}")
        widths.append(weight.shape[0])
    return widths


def _check_layers(op: str, name: str, layers: Sequence[int], first: int, last: int) -> None:
    fits = sorted({*layers}) == list(layers) and all(first <= layer <= last for layer in layers)
    _require(fits, op, f"`{name}` is {list(layers)}; wanted ascending layers from {first} to {last}")


def mlp_attribute(
    x: Tensor,
    weights: Sequence[Tensor],
    slopes: Sequence[float],
    u: Tensor | None,
    keep_h: Sequence[int],
    keep_g: Sequence[int],
) -> list[Spec | list[Spec]]:
    op = "mlp_attribute"
    _check_values(op, x=x)
    widths = _check_perceptron(op, x, weights, slopes)
    rows, last = x.shape[0], len(weights)
    _check_matrix(op, "x", x, [rows, widths[0]], x)
    if u is not None:
        _check_matrix(op, "u", u, [rows, widths[last]], x)
    _check_layers(op, "keep_h", keep_h, 1, last - 1)
    _check_layers(op, "keep_g", keep_g, 0, last - 1)
    swept = u is not None or not keep_g
    _require(swept, op, f"`keep_g` is {list(keep_g)}; wanted none, since `u` is None and no g is swept")
    values = [Spec([rows, n], x.dtype) for n in widths]
    attribution = Spec([0], x.dtype) if u is None else values[0]
    bits = [_bits_of(spec.shape) for spec in values[1:last]]
    return [values[last], attribution, bits, [values[k] for k in keep_h], [values[k] for k in keep_g]]


def mlp_attribute_backward(
    x: Tensor | None,
    a: Tensor | None,
    s: Tensor | None,
    c: Tensor | None,
    delta: Tensor | None,
    weights: Sequence[Tensor],
    slopes: Sequence[float],
    bits: Sequence[Tensor],
    g: Sequence[Tensor],
    h: Sequence[Tensor],
    trained: Sequence[int],
    output_tangent: bool = False,
    input_cotangent: bool = False,
) -> list[Spec | list[Spec]]:
    op = "mlp_attribute_backward"
    like = delta if x is None else x
    if like is None:
        raise ValueError(f"xattr::{op}: `x` and `delta` are both None; wanted one chain at least")
    starts = x is None or a is not None or s is not None
    _require(starts, op, "`a` and `s` are both None; wanted one of them at least to start from `x`")
    _check_values(op, **{"delta" if x is None else "x": like})
    widths = _check_perceptron(op, like, weights, slopes)
    rows, last = like.shape[0], len(weights)
    masks = f"`bits` has {len(bits)} masks; wanted one for each of {last - 1} activations"
    _require(len(bits) == last - 1, op, masks)
    for mask, n in zip(bits, widths[1:], strict=False):
        _check_bits(op, mask, [rows, n], like.device)
    _check_layers(op, "trained", trained, 1, last)
    ends = (x is not None or not output_tangent) and (delta is not None or not input_cotangent)
    _require(ends, op, "the end of a chain was asked for that was not given")
    for name, start, width in (("a", a, widths[0]), ("s", s, 1), ("c", c, 1)):
        if x is not None and start is not None:
            _check_matrix(op, name, start, [rows, width], like)
    for name, start, width, partners, below in (("x", x, widths[0], g, 0), ("delta", delta, widths[last], h, 1)):
        if start is None:
            continue
        _check_matrix(op, name, start, [rows, width], like)
        partner = "h" if below else "g"
        count = f"`{partner}` has {len(partners)} tensors; wanted {len(trained)}, one for each trained layer"
        _require(len(partners) == len(trained), op, count)
        for t, layer in zip(partners, trained, strict=True):
            _check_matrix(op, partner, t, [rows, widths[layer - below]], like)
    none = Spec([0], like.dtype)
    gradients = [Spec(weights[layer - 1].shape, like.dtype) for layer in trained]
    v_end = Spec([rows, widths[last]], like.dtype) if output_tangent else none
    return [gradients, v_end, Spec([rows, widths[0]], like.dtype) if input_cotangent else none]


def input_times_gradient(x: Tensor, g: Tensor, scale: Tensor | None = None) -> list[Spec]:
    op = "input_times_gradient"
    _check_values(op, x=x, g=g)
    same = x.shape == g.shape
    _require(same, op, f"`g` has shape {list(g.shape)}; wanted that of `x`, {list(x.shape)}")
    if scale is not None:
        _check_values(op, x=x, scale=scale)
        given = f"`scale` has shape {list(scale.shape)}"
        _require(list(scale.shape) == [x.shape[0]], op, f"{given}; wanted [{x.shape[0]}], a factor of each sample")
    wide = torch.promote_types(x.dtype, torch.float32)
    return [Spec(x.shape, x.dtype), Spec(x.shape[1:], wide), *[Spec([x.shape[0]], wide)] * 2]


def gini(a: Tensor) -> list[Spec]:
    _check_values("gini", a=a)
    _require(a.dim() == 1, "gini", f"`a` has shape {list(a.shape)}; wanted a vector [n] (flatten it first)")
    return [Spec([], a.dtype), Spec(a.shape, a.dtype)]
