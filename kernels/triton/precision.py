"""The precision of products of fp32: what `torch.get_float32_matmul_precision()` says."""

import torch


def input_precision(dtype: torch.dtype) -> str:
    """`input_precision` of tl.dot: exact unless the user allows fp32 to be multiplied as TF32."""
    exact = dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return "ieee" if exact else "tf32"
