"""add_relu_mask: the residual form of relu_mask, without a round trip of the sum. Twin of
`kernels/reference/add_relu_mask.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.bits import words
from .bits import pack
from .elementwise import activate, launch, tile, variants


@triton.jit
def add_relu_mask_kernel(
    a_ptr,
    b_ptr,
    h_ptr,
    bits_ptr,
    slope_ptr,
    rows,
    n,
    row_words,
    SLOPE: tl.constexpr,
    ROW: tl.constexpr,
    WORDS: tl.constexpr,
):
    """a, b [rows, n] to h [rows, n] and bits [rows, row_words]; the rest as in `tile` and `scaled`."""
    word, present, column, offset, valid = tile(rows, n, row_words, WORDS, ROW)
    a = tl.load(a_ptr + offset, mask=valid, other=0).to(tl.float32)
    b = tl.load(b_ptr + offset, mask=valid, other=0).to(tl.float32)
    # Rounded as PyTorch rounds the sum that it stores, so that mask and value are those of relu_mask(a + b).
    z = (a + b).to(h_ptr.dtype.element_ty).to(tl.float32)
    h, positive = activate(z, column, valid, slope_ptr, SLOPE)
    tl.store(h_ptr + offset, h.to(h_ptr.dtype.element_ty), mask=valid)
    tl.store(bits_ptr + word, tl.reshape(pack(positive), (WORDS,)), mask=present)


def add_relu_mask(a: Tensor, b: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """relu_mask(a + b). Shapes and meaning: the reference's; a and b in fp32, bf16 or fp16."""
    a, b = a.contiguous(), b.contiguous()
    h = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    bits = torch.empty((*a.shape[:-1], words(a.shape[-1])), dtype=torch.int32, device=a.device)
    launch(add_relu_mask_kernel, a.shape, slope, a, b, h, bits)
    return h, bits


VARIANTS = [*variants(add_relu_mask_kernel, ("a_ptr", "b_ptr", "h_ptr"))]
