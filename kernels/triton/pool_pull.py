"""pool_pull: cotangents of maxima to the places that they were taken from. Twin of `kernels/reference/pool_pull.py`.

An element of the result looks through the windows that cover it and adds up those whose index names it: no two threads
write to one place, and the order of the sum is fixed.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.max_pool import memory_format
from .pooling import geometry, launch, offset, position, variants

UNROLLED = tl.constexpr(9)  # windows over an element that are visited without a loop


@triton.jit
def covering(x, i, OUT, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr):
    """Along one dimension, the window that covers place x and has i such windows after it.

    Returns its index, the place of x within it, and whether there is such a window and place; the places ascend with i.
    """
    o = (x + PADDING) // STRIDE - i
    step = x + PADDING - o * STRIDE
    k = step // DILATION
    return o, k, (o >= 0) & (o < OUT) & (k < KERNEL) & (step % DILATION == 0)


@triton.jit
def visit(
    i,
    total,
    g_ptr,
    idx_ptr,
    at,
    size,
    NH: tl.constexpr,
    NW: tl.constexpr,
    inner,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    LAST: tl.constexpr,
    LARGE: tl.constexpr,
):
    """The sum with what window i adds, of those that cover the places `at`: NW along W, NH along H."""
    present, n, d, h, w, c = at
    OD, OH, OW = size
    od, kd, some_d = covering(d, i // (NH * NW), OD, KERNEL[0], STRIDE[0], PADDING[0], DILATION[0])
    oh, kh, some_h = covering(h, i // NW % NH, OH, KERNEL[1], STRIDE[1], PADDING[1], DILATION[1])
    ow, kw, some_w = covering(w, i % NW, OW, KERNEL[2], STRIDE[2], PADDING[2], DILATION[2])
    some = present & some_d & some_h & some_w
    place = offset(n, od, oh, ow, c, inner, OD, OH, OW, LAST, LARGE)
    index = tl.load(idx_ptr + place, mask=some, other=0).to(tl.int32)
    value = tl.load(g_ptr + place, mask=some, other=0).to(tl.float32)
    named = some & (index == (kd * KERNEL[1] + kh) * KERNEL[2] + kw)
    return total + tl.where(named, value, 0)


@triton.jit
def pool_pull_kernel(
    g_ptr,
    idx_ptr,
    out_ptr,
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
    """g and idx of spatial size (OD, OH, OW) to out of size (D, H, W)."""
    at = position(rows, inner, D, H, W, ROWS, INNER, LAST)
    present, n, d, h, w, c = at
    size = (OD, OH, OW)
    total = tl.zeros((ROWS, INNER), tl.float32)
    # Windows that may cover a place, along each dimension and in all.
    nd: tl.constexpr = (KERNEL[0] - 1) * DILATION[0] // STRIDE[0] + 1
    nh: tl.constexpr = (KERNEL[1] - 1) * DILATION[1] // STRIDE[1] + 1
    nw: tl.constexpr = (KERNEL[2] - 1) * DILATION[2] // STRIDE[2] + 1
    count: tl.constexpr = nd * nh * nw
    if count <= UNROLLED:
        for i in tl.static_range(count):
            total = visit(
                i, total, g_ptr, idx_ptr, at, size, nh, nw, inner, KERNEL, STRIDE, PADDING, DILATION, LAST, LARGE
            )
    else:
        for i in range(count):
            total = visit(
                i, total, g_ptr, idx_ptr, at, size, nh, nw, inner, KERNEL, STRIDE, PADDING, DILATION, LAST, LARGE
            )
    place = offset(n, d, h, w, c, inner, D, H, W, LAST, LARGE)
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=present)


def pool_pull(
    g: Tensor,
    idx: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Any:
    """Cotangents to where the maxima came from. Shapes, layouts and meaning: the reference's; fp32, bf16 or fp16."""
    layout = memory_format(idx)
    g, idx = g.contiguous(memory_format=layout), idx.contiguous(memory_format=layout)
    out = torch.empty(tuple(shape), dtype=g.dtype, device=g.device, memory_format=layout)
    window = geometry(kernel, stride, padding, dilation)
    served = launch(pool_pull_kernel, (g, idx, out), out, shape[2:], idx.shape[2:], window, layout)
    return out if served else NotImplemented


VARIANTS = [*variants(pool_pull_kernel, ("g_ptr", "out_ptr"), wide=True)]
