"""mask_mul: apply a packed activation pattern, one read and one write. Twin of `kernels/reference/mask_mul.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementwise import launch, scaled, tile, variants


@triton.jit
def mask_mul_kernel(
    t_ptr,
    bits_ptr,
    out_ptr,
    slope_ptr,
    rows,
    n,
    row_words,
    SLOPE: tl.constexpr,
    ROW: tl.constexpr,
    WORDS: tl.constexpr,
):
    """t [rows, n] and bits [rows, row_words] to out [rows, n]; the rest as in `tile` and `scaled`."""
    word, present, column, offset, valid = tile(rows, n, row_words, WORDS, ROW)
    pattern = tl.load(bits_ptr + word, mask=present, other=0)
    mask = ((pattern[:, None] >> tl.arange(0, 32)[None, :]) & 1) != 0
    t = tl.load(t_ptr + offset, mask=valid, other=0).to(tl.float32)
    out = tl.where(mask, t, scaled(t, column, valid, slope_ptr, SLOPE))
    tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=valid)


def mask_mul(t: Tensor, bits: Tensor, slope: Tensor | None = None) -> Tensor:
    """t where its bit is set, slope * t or zero elsewhere. Shapes and meaning: the reference's; fp32, bf16 or fp16."""
    t = t.contiguous()
    out = torch.empty(t.shape, dtype=t.dtype, device=t.device)
    launch(mask_mul_kernel, t.shape, slope, t, bits.contiguous(), out)
    return out


VARIANTS = [*variants(mask_mul_kernel, ("t_ptr", "out_ptr"))]
