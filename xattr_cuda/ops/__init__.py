"""The operators as Python functions. Shapes, dtypes and meaning: the reference of the same name in `kernels/reference`.

All are differentiable and run on the back end that `use_backend` has chosen.
"""

from torch import Tensor

from .backend import active, check_device, implementation, unavailable, use_backend
from .library import extension
from .schemas import SCHEMAS

__all__ = [
    "SCHEMAS",
    "active",
    "add_relu_mask",
    "check_device",
    "dual_weight_grad",
    "extension",
    "gini",
    "linear_relu_mask",
    "mask_mul",
    "matmul_mask",
    "relu_mask",
    "unavailable",
    "use_backend",
]


def relu_mask(z: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Activation of z [..., N] and its packed mask: (h [..., N], bits int32 [..., ceil(N / 32)])."""
    return implementation("relu_mask")(z, slope)


def mask_mul(t: Tensor, bits: Tensor, slope: Tensor | None = None) -> Tensor:
    """t [..., N] where its bit is set, slope * t (None: zero) elsewhere."""
    return implementation("mask_mul")(t, bits, slope)


def add_relu_mask(a: Tensor, b: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """relu_mask(a + b) for a and b of one shape [..., N]."""
    return implementation("add_relu_mask")(a, b, slope)


def linear_relu_mask(x: Tensor, weight: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """relu_mask(x @ weight.T) for x [..., K] and weight [N, K]."""
    return implementation("linear_relu_mask")(x, weight, slope)


def matmul_mask(t: Tensor, matrix: Tensor, bits: Tensor | None = None, slope: Tensor | None = None) -> Tensor:
    """mask_mul(t @ matrix), or the bare product without bits, for t [..., K] and matrix [K, N] of any strides."""
    return implementation("matmul_mask")(t, matrix, bits, slope)


def dual_weight_grad(delta: Tensor, h: Tensor, g: Tensor | None = None, v: Tensor | None = None) -> Tensor:
    """delta.T @ h + g.T @ v, [N, K], for delta, g [..., N] and h, v [..., K]; without g and v, the first term."""
    return implementation("dual_weight_grad")(delta, h, g, v)


def gini(a: Tensor) -> tuple[Tensor, Tensor]:
    """Gini coefficient [] of a nonnegative vector a [n], and its gradient [n], in O(n log n)."""
    return implementation("gini")(a)
