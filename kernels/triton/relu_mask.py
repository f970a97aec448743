"""relu_mask: ReLU or LeakyReLU and its packed mask, in one pass. Twin of `kernels/reference/relu_mask.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.bits import words
from .bits import pack
from .elementwise import activate, launch, tile, variants


@triton.jit
def relu_mask_kernel(
    z_ptr,
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
    """z [rows, n] to h [rows, n] and bits [rows, row_words]; the rest as in `tile` and `scaled`."""
    word, present, column, offset, valid = tile(rows, n, row_words, WORDS, ROW)
    z = tl.load(z_ptr + offset, mask=valid, other=0).to(tl.float32)
    h, positive = activate(z, column, valid, slope_ptr, SLOPE)
    tl.store(h_ptr + offset, h.to(h_ptr.dtype.element_ty), mask=valid)
    tl.store(bits_ptr + word, tl.reshape(pack(positive), (WORDS,)), mask=present)


def relu_mask(z: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Activation and its bit-packed mask. Shapes and meaning: the reference's; z in fp32, bf16 or fp16."""
    z = z.contiguous()
    h = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    bits = torch.empty((*z.shape[:-1], words(z.shape[-1])), dtype=torch.int32, device=z.device)
    launch(relu_mask_kernel, z.shape, slope, z, h, bits)
    return h, bits


VARIANTS = [*variants(relu_mask_kernel, ("z_ptr", "h_ptr"))]
