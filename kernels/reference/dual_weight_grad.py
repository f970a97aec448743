"""dual_weight_grad: the weight gradient of one or two chains in one accumulation."""

from torch import Tensor


def _transposed_product(left: Tensor, right: Tensor) -> Tensor:
    return left.flatten(0, -2).T @ right.flatten(0, -2)


def dual_weight_grad(delta: Tensor, h: Tensor, g: Tensor | None = None, v: Tensor | None = None) -> Tensor:
    """delta.T @ h + g.T @ v, summed over all leading dimensions; without g and v, the first term.

    delta, g: [..., N], the cotangents at the layer's output; h, v: [..., K], the tangents at its input. The two pairs
    may differ in their leading dimensions.
    Returns [N, K], the gradient of a weight (section 2 of the design: "Gradient of everything").
    """
    gradient = _transposed_product(delta, h)
    return gradient if g is None or v is None else gradient + _transposed_product(g, v)
