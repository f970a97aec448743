"""Triton kernels and their launchers: one file an operator, the twin of `kernels/reference`. Importing needs Triton.

A launcher has its operator's name and signature, takes tensors that have passed the operator's checks, launches on the
current stream of their device, and waits for nothing. What it does not serve, float64 above all, is for the caller to
send to the reference (`xattr_cuda/ops/gpu.py`).
"""

from .add_relu_mask import add_relu_mask
from .mask_mul import mask_mul
from .relu_mask import relu_mask

__all__ = [
    "add_relu_mask",
    "mask_mul",
    "relu_mask",
]
