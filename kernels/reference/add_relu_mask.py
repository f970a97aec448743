"""add_relu_mask: the residual form of relu_mask."""

from torch import Tensor

from .relu_mask import relu_mask


def add_relu_mask(a: Tensor, b: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """relu_mask(a + b).

    a, b: [..., N], floating, one shape; slope as in relu_mask.
    Returns h [..., N] and bits, int32 [..., ceil(N / 32)].
    """
    return relu_mask(a + b, slope)
