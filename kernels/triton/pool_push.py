"""pool_push: what each window's maximum was taken from, of a tangent. Twin of `kernels/reference/pool_push.py`."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.max_pool import memory_format
from .pooling import geometry, launch, offset, position, variants, within


@triton.jit
def pool_push_kernel(
    v_ptr,
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
    """v of spatial size (D, H, W) and idx of size (OD, OH, OW) to out of the latter."""
    present, n, od, oh, ow, c = position(rows, inner, OD, OH, OW, ROWS, INNER, LAST)
    place = offset(n, od, oh, ow, c, inner, OD, OH, OW, LAST, LARGE)
    k = tl.load(idx_ptr + place, mask=present, other=0).to(tl.int32)
    d = od * STRIDE[0] - PADDING[0] + k // (KERNEL[2] * KERNEL[1]) * DILATION[0]
    h = oh * STRIDE[1] - PADDING[1] + k // KERNEL[2] % KERNEL[1] * DILATION[1]
    w = ow * STRIDE[2] - PADDING[2] + k % KERNEL[2] * DILATION[2]
    inside = present & (k < KERNEL[0] * KERNEL[1] * KERNEL[2]) & within(d, h, w, D, H, W)
    value = tl.load(v_ptr + offset(n, d, h, w, c, inner, D, H, W, LAST, LARGE), mask=inside, other=0)
    tl.store(out_ptr + place, value, mask=present)


def pool_push(
    v: Tensor,
    idx: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Any:
    """The element of each window that idx names. Shapes, layouts and meaning: the reference's; fp32, bf16 or fp16."""
    layout = memory_format(idx)
    v, idx = v.contiguous(memory_format=layout), idx.contiguous(memory_format=layout)
    out = torch.empty(idx.shape, dtype=v.dtype, device=v.device, memory_format=layout)
    window = geometry(kernel, stride, padding, dilation)
    served = launch(pool_push_kernel, (v, idx, out), out, v.shape[2:], idx.shape[2:], window, layout)
    return out if served else NotImplemented


VARIANTS = [*variants(pool_push_kernel, ("v_ptr", "out_ptr"), wide=False)]
