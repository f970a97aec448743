"""Products by PyTorch's own library with the masks by element-wise kernels: two launches where the fused one is slower.

Measured on an H200 (Triton 3.6, cuBLAS of CUDA 13.0): at 8192x4096x4096 the fused kernels take 1.25 to 1.7 times as
long in bf16 and 1.6 to 5.5 times in TF32, whose factors they cut off where cuBLAS rounds. Small products, of which
there are fewer tiles than a quarter of the multiprocessors, wait for launches, and the fused kernels need one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .mask_mul import mask_mul
from .products import LARGE_SIDE, as_rows, multiprocessors
from .relu_mask import relu_mask


def linear_relu_mask(x: Tensor, weight: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """relu_mask(x @ weight.T). Shapes and meaning: the reference's."""
    return relu_mask(x @ weight.T, slope)


def matmul_mask(t: Tensor, matrix: Tensor, bits: Tensor | None = None, slope: Tensor | None = None) -> Tensor:
    """mask_mul(t @ matrix). Shapes and meaning: the reference's."""
    product = t @ matrix
    return product if bits is None else mask_mul(product, bits, slope)


def dual_weight_grad(delta: Tensor, h: Tensor, g: Tensor | None = None, v: Tensor | None = None) -> Tensor:
    """delta.T @ h + g.T @ v. Shapes and meaning: the reference's."""
    delta, h = as_rows(delta), as_rows(h)
    if g is None or v is None:
        return delta.T @ h
    g, v = as_rows(g), as_rows(v)
    rows, n, k = len(delta) + len(g), delta.shape[1], h.shape[1]
    if n * k > rows * (n + k):
        # Few samples and a large weight: to write the gradient again would cost more than to lay the chains end to end.
        return torch.cat([delta, g]).T @ torch.cat([h, v])
    gradient, own = delta.T @ h, (g.T, v)
    # A sum of its own is more exact; in a dtype that rounds more than sums do, one from what is there is as good.
    return gradient.add_(own[0] @ own[1]) if h.dtype == torch.float32 else gradient.addmm_(*own)


LAUNCHERS: dict[str, Callable[..., Any]] = {
    "linear_relu_mask": linear_relu_mask,
    "matmul_mask": matmul_mask,
    "dual_weight_grad": dual_weight_grad,
}


def pays(name: str, left: Tensor, right: Tensor) -> bool:
    """Whether an operator, whose first two arguments these are, is faster by parts."""
    if left.dtype == torch.float32:
        return True
    rows, columns = left.shape[:-1].numel(), right.shape[0 if name == "linear_relu_mask" else -1]
    if name == "dual_weight_grad":
        rows, columns = left.shape[-1], right.shape[-1]
    tiles = -(-rows // LARGE_SIDE) * -(-columns // LARGE_SIDE)
    return 4 * tiles >= multiprocessors(left.device)
