"""The operators as Python functions. Shapes, dtypes and meaning: the reference of the same name in `kernels/reference`.

All are differentiable and run on the back end that `use_backend` has chosen.
"""

from collections.abc import Sequence

from torch import Tensor

from . import traced as _traced  # noqa: F401 - registers
from .backend import active, check_device, has_perceptron_kernels, implementation, unavailable, use_backend
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
    "has_perceptron_kernels",
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


def max_pool(
    h: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Maxima of the windows of h [B, C, *size], and where in its window each lies: (out, idx uint8), [B, C, *out]."""
    return implementation("max_pool")(h, kernel, stride, padding, dilation, ceil_mode)


def pool_pull(
    g: Tensor,
    idx: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The transpose of max_pool: g [B, C, *out] added up where idx points, in a tensor of `shape` [B, C, *size]."""
    return implementation("pool_pull")(g, idx, shape, kernel, stride, padding, dilation)


def pool_push(
    v: Tensor,
    idx: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The tangent map of max_pool: what idx [B, C, *out] names of the windows of v [B, C, *size]."""
    return implementation("pool_push")(v, idx, kernel, stride, padding, dilation)


def mlp_attribute(
    x: Tensor,
    weights: Sequence[Tensor],
    slopes: Sequence[float],
    u: Tensor | None,
    keep_h: Sequence[int],
    keep_g: Sequence[int],
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Forward and attribution sweep of a perceptron: (y, attribution, masks, h of keep_h, g of keep_g).

    Without u the forward sweep alone, and an empty attribution.
    """
    return implementation("mlp_attribute")(x, weights, slopes, u, keep_h, keep_g)


def mlp_attribute_backward(
    x: Tensor | None,
    a: Tensor | None,
    s: Tensor | None,
    c: Tensor | None,
    delta: Tensor | None,
    weights: Sequence[Tensor],
    slopes: Sequence[float],
    bits: Sequence[Tensor],
    g: Sequence[Tensor],
    h: Sequence[Tensor],
    trained: Sequence[int],
    output_tangent: bool = False,
    input_cotangent: bool = False,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Its backward pass, from tangents (c a + s) x and cotangents delta.

    Returns (gradients of the trained layers, v_L, delta_0), the ends [0] unless they are asked for.
    """
    run = implementation("mlp_attribute_backward")
    return run(x, a, s, c, delta, weights, slopes, bits, g, h, trained, output_tangent, input_cotangent)


def input_times_gradient(x: Tensor, g: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The attribution A = scale * x * g [B, ...], and of it (A, mean over the batch of |A| [...], l1 [B], l2 [B]).

    l1 and l2 are the sums over a sample's features of |A| and of A^2; scale: None for one, or [B].
    """
    return implementation("input_times_gradient")(x, g, scale)


def gini(a: Tensor) -> tuple[Tensor, Tensor]:
    """Gini coefficient [] of a nonnegative vector a [n], and its gradient [n], in O(n log n)."""
    return implementation("gini")(a)
