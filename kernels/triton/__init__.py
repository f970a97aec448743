"""Triton kernels and their launchers: one file an operator, the twin of `kernels/reference`. Importing needs Triton.

A launcher has its operator's name and signature, takes tensors that have passed the operator's checks, launches on the
current stream of their device, and waits for nothing. It serves fp32, bf16 and fp16. For what else it does not serve it
returns NotImplemented, and its caller (`xattr_cuda/ops/gpu.py`) goes to the reference.
"""

from .add_relu_mask import add_relu_mask
from .dual_weight_grad import dual_weight_grad
from .gini import gini
from .input_times_gradient import input_times_gradient
from .linear_relu_mask import linear_relu_mask
from .mask_mul import mask_mul
from .matmul_mask import matmul_mask
from .max_pool import max_pool
from .mlp_attribute import mlp_attribute
from .mlp_attribute_backward import mlp_attribute_backward
from .pool_pull import pool_pull
from .pool_push import pool_push
from .relu_mask import relu_mask

__all__ = [
    "add_relu_mask",
    "dual_weight_grad",
    "gini",
    "input_times_gradient",
    "linear_relu_mask",
    "mask_mul",
    "matmul_mask",
    "max_pool",
    "mlp_attribute",
    "mlp_attribute_backward",
    "pool_pull",
    "pool_push",
    "relu_mask",
]
