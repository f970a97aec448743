"""matmul_mask: matrix product with a packed activation pattern as epilogue."""

from torch import Tensor

from .mask_mul import mask_mul


def matmul_mask(t: Tensor, matrix: Tensor, bits: Tensor | None = None, slope: Tensor | None = None) -> Tensor:
    """mask_mul(t @ matrix), or the bare product without bits.

    t: [..., K]; matrix: [K, N], any strides (the cotangent sweep sends W, the tangent sweep W.T);
    bits: None or int32 [..., ceil(N / 32)]; slope: None, [1] or [N]. Returns [..., N].
    """
    product = t @ matrix
    return product if bits is None else mask_mul(product, bits, slope)
