"""The precision of products: of fp32, what `torch.get_float32_matmul_precision()` says; and how they are summed."""

import torch
import triton
import triton.language as tl


def input_precision(dtype: torch.dtype) -> str:
    """`input_precision` of tl.dot: exact unless the user allows fp32 to be multiplied as TF32."""
    exact = dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return "ieee" if exact else "tf32"


def kind(dtype: torch.dtype, precision: str) -> str:
    """How products are made, in a word of the table of configurations: `exact` and `tf32` of fp32, `half` of others."""
    return "half" if dtype != torch.float32 else "tf32" if precision == "tf32" else "exact"


@triton.jit
def add_product(left, right, total, PRECISION: tl.constexpr):
    """total + left right, in fp32.

    Exact products of fp32 have no error but that of their sum, which one long chain of additions would let grow beyond
    PyTorch's; so every step is summed apart. All others have lost more in their factors or in their result.
    """
    if PRECISION == "ieee" and left.dtype == tl.float32:
        # Triton would make a sum by `+` the start of the product, and so one chain again.
        total = tl.fma(tl.dot(left, right, input_precision=PRECISION), 1.0, total)
    else:
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total
