"""max_pool: maxima of windows, and the place of each in its window, a byte. Twin of `kernels/reference/max_pool.py`."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.max_pool import memory_format, pooled_size
from .pooling import geometry, launch, offset, position, variants, within

UNROLLED = tl.constexpr(16)  # elements of a window that are visited without a loop


@triton.jit
def visit(
    k,
    best,
    index,
    h_ptr,
    present,
    n,
    d,
    h,
    w,
    c,
    inner,
    D,
    H,
    W,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    LAST: tl.constexpr,
    LARGE: tl.constexpr,
):
    """Element k of the windows that start at (d, h, w) against the best so far and its index, negative for none.

    The first maximum stays, as does NaN but for a later NaN.
    """
    d += k // (KERNEL[2] * KERNEL[1]) * DILATION[0]
    h += k // KERNEL[2] % KERNEL[1] * DILATION[1]
    w += k % KERNEL[2] * DILATION[2]
    inside = present & within(d, h, w, D, H, W)
    value = tl.load(h_ptr + offset(n, d, h, w, c, inner, D, H, W, LAST, LARGE), mask=inside, other=0).to(tl.float32)
    better = inside & ((index < 0) | (value > best) | (value != value))
    return tl.where(better, value, best), tl.where(better, k, index)


@triton.jit
def max_pool_kernel(
    h_ptr,
    out_ptr,
    idx_ptr,
    rows,
    inner,
    D,
    H,
    W,
    OD,
    OH,
    OW,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    LAST: tl.constexpr,
    LARGE: tl.constexpr,
):
    """h of spatial size (D, H, W) to its maxima out and their places idx, of spatial size (OD, OH, OW)."""
    present, n, od, oh, ow, c = position(rows, inner, OD, OH, OW, ROWS, INNER, LAST)
    d, h, w = od * STRIDE[0] - PADDING[0], oh * STRIDE[1] - PADDING[1], ow * STRIDE[2] - PADDING[2]
    best = tl.zeros((ROWS, INNER), tl.float32)
    index = tl.full((ROWS, INNER), -1, tl.int32)
    window: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    if window <= UNROLLED:
        for k in tl.static_range(window):
            best, index = visit(
                k, best, index, h_ptr, present, n, d, h, w, c, inner, D, H, W, KERNEL, DILATION, LAST, LARGE
            )
    else:
        for k in range(window):
            best, index = visit(
                k, best, index, h_ptr, present, n, d, h, w, c, inner, D, H, W, KERNEL, DILATION, LAST, LARGE
            )
    place = offset(n, od, oh, ow, c, inner, OD, OH, OW, LAST, LARGE)
    tl.store(out_ptr + place, best.to(out_ptr.dtype.element_ty), mask=present)
    tl.store(idx_ptr + place, index.to(tl.uint8), mask=present)


def max_pool(
    h: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Any:
    """Maxima and their places. Shapes, layouts and meaning: the reference's; h in fp32, bf16 or fp16."""
    layout, size = memory_format(h), h.shape[2:]
    sizes = zip(size, kernel, stride, padding, dilation, strict=True)
    pooled = [pooled_size(*numbers, ceil_mode) for numbers in sizes]
    h = h.contiguous(memory_format=layout)
    out = torch.empty((*h.shape[:2], *pooled), dtype=h.dtype, device=h.device, memory_format=layout)
    idx = torch.empty(out.shape, dtype=torch.uint8, device=h.device, memory_format=layout)
    window = geometry(kernel, stride, padding, dilation)
    served = launch(max_pool_kernel, (h, out, idx), out, size, pooled, window, layout)
    return (out, idx) if served else NotImplemented


VARIANTS = [*variants(max_pool_kernel, ("h_ptr", "out_ptr"), wide=True)]
