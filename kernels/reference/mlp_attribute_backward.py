"""mlp_attribute_backward: weight gradients of a whole bias-free perceptron, from one chain or two."""

from collections.abc import Sequence

from torch import Tensor

from .dual_weight_grad import dual_weight_grad
from .matmul_mask import matmul_mask
from .mlp_attribute import slope_tensor


def start_of_tangents(x: Tensor, a: Tensor | None, s: Tensor | None, c: Tensor | None) -> Tensor:
    """v_0 = (c a + s) x, [B, N_0]: c and s [B, 1]; an absent c is one, an absent a or s zero, though not both."""
    if a is None:
        assert s is not None, "one of them starts the chain"
        return x * s
    factor = a if c is None else a * c
    return x * (factor if s is None else factor + s)


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
    """The tangent sweep of the own chain, the cotangent sweep of the task's, and the weight gradients of both.

    x: None or [B, N_0]; with it the own chain's tangents start at (c a + s) x: a: None or [B, N_0], the gradient of the
    attribution; s: None or [B, 1], that of the output; c: None or [B, 1], the attribution's scale (section 2 of the
    design, one chain instead of two). delta: None or [B, N_L], where the task's cotangents start.
    weights, slopes, bits: as in mlp_attribute. trained: the layers (1 .. L, ascending) whose gradients are wanted.
    g: with x, for each of them the own chain's cotangent at its output, [B, N_l]; h: with delta, its input
    [B, N_{l-1}]; empty without.
    Returns the gradients g_l^T v_{l-1} + delta_l^T h_{l-1} [N_l, N_{l-1}] of the trained layers; v_L [B, N_L] if
    output_tangent, and delta_0 [B, N_0] if input_cotangent, else a tensor [0] (section 2 of the design).
    """
    last, like = len(weights), weights[0]
    masks = [(bits[k], slope_tensor(slopes[k], like)) for k in range(last - 1)]  # of h_1 .. h_{L-1}
    pairs: dict[int, list[Tensor]] = {k: [] for k in trained}
    delta_end = v_end = like.new_empty(0)
    if delta is not None:
        inputs = dict(zip(trained, h, strict=True))
        for k in range(last, 0, -1):
            if k in pairs:
                pairs[k] += [delta, inputs[k]]
            delta = matmul_mask(delta, weights[k - 1], *(masks[k - 2] if k > 1 else ()))
        delta_end = delta if input_cotangent else delta_end
    if x is not None:
        v = start_of_tangents(x, a, s, c)
        cotangents = dict(zip(trained, g, strict=True))
        for k in range(1, last + 1):
            if k in pairs:
                pairs[k] += [cotangents[k], v]
            v = matmul_mask(v, weights[k - 1].T, *(masks[k - 1] if k < last else ()))
        v_end = v if output_tangent else v_end
    return [dual_weight_grad(*pairs[k]) for k in trained], v_end, delta_end
