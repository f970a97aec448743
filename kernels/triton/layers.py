"""Perceptrons by the kernels of their layers: those that are too wide or too deep for one launch."""

from collections.abc import Sequence

from torch import Tensor

from ..reference.mlp_attribute import slope_tensor
from ..reference.mlp_attribute_backward import start_of_tangents
from .dual_weight_grad import dual_weight_grad
from .linear_relu_mask import linear_relu_mask
from .matmul_mask import matmul_mask


def attribute(
    x: Tensor,
    weights: Sequence[Tensor],
    slopes: Sequence[float],
    u: Tensor,
    keep_h: Sequence[int],
    keep_g: Sequence[int],
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """mlp_attribute, layer by layer. Shapes and meaning: the reference's."""
    last = len(weights)
    h, bits = [x], []
    for weight, slope in zip(weights[:-1], slopes, strict=True):
        out, mask = linear_relu_mask(h[-1], weight, slope_tensor(slope, x))
        h.append(out)
        bits.append(mask)
    y = h[-1] @ weights[-1].T
    g = [u] * (last + 1)  # g[l] at the output of layer l
    for k in range(last, 1, -1):
        g[k - 1] = matmul_mask(g[k], weights[k - 1], bits[k - 2], slope_tensor(slopes[k - 2], x))
    g[0] = g[1] @ weights[0]
    return y, x * g[0], bits, [h[k] for k in keep_h], [g[k] for k in keep_g]


def backward(
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
    output_tangent: bool,
    input_cotangent: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """mlp_attribute_backward, layer by layer: no sweep goes beyond the last layer that it serves."""
    last, like = len(weights), weights[0]
    masks = [(bits[k], slope_tensor(slopes[k], like)) for k in range(last - 1)]  # of h_1 .. h_{L-1}
    pairs: dict[int, list[Tensor]] = {k: [] for k in trained}
    delta_end = v_end = like.new_empty(0)
    if delta is not None:
        inputs, lowest = dict(zip(trained, h, strict=True)), 1 if input_cotangent else min(trained, default=last + 1)
        for k in range(last, lowest - 1, -1):
            if k in pairs:
                pairs[k] += [delta, inputs[k]]
            if k > lowest or input_cotangent:
                delta = matmul_mask(delta, weights[k - 1], *(masks[k - 2] if k > 1 else ()))
        delta_end = delta if input_cotangent else delta_end
    if x is not None:
        v, own = start_of_tangents(x, a, s, c), dict(zip(trained, g, strict=True))
        highest = last if output_tangent else max(trained, default=0)
        for k in range(1, highest + 1):
            if k in pairs:
                pairs[k] += [own[k], v]
            if k < highest or output_tangent:
                v = matmul_mask(v, weights[k - 1].T, *(masks[k - 1] if k < last else ()))
        v_end = v if output_tangent else v_end
    return [dual_weight_grad(*pairs[k]) for k in trained], v_end, delta_end
