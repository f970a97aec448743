"""matmul_mask: a product whose epilogue is a packed mask. Twin of `kernels/reference/matmul_mask.py`."""

from torch import Tensor

from .products import MASK, multiply, variants


def matmul_mask(t: Tensor, matrix: Tensor, bits: Tensor | None = None, slope: Tensor | None = None) -> Tensor:
    """mask_mul(t @ matrix). Shapes and meaning: the reference's; t in fp32, bf16 or fp16.

    A bare product is PyTorch's own, which has nothing to fuse.
    """
    if bits is None:
        return t @ matrix
    return multiply(t, matrix, bits.contiguous(), slope, MASK)


VARIANTS = [*variants(MASK, transposed=False, what="down"), *variants(MASK, transposed=True, what="up")]
