"""mlp_attribute: output and attribution of a whole bias-free perceptron, and what its backward pass needs."""

from collections.abc import Sequence

from torch import Tensor

from .linear_relu_mask import linear_relu_mask
from .matmul_mask import matmul_mask


def slope_tensor(slope: float, like: Tensor) -> Tensor | None:
    """A slope as the operators of one layer take it: None for zero."""
    return None if slope == 0 else like.new_full((1,), slope)


def mlp_attribute(
    x: Tensor,
    weights: Sequence[Tensor],
    slopes: Sequence[float],
    u: Tensor | None,
    keep_h: Sequence[int],
    keep_g: Sequence[int],
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """The forward and the attribution sweep (section 2 of the design).

    x: [B, N_0]; weights: W_l [N_l, N_{l-1}] for l = 1 .. L; slopes: of the L - 1 activations between them, 0 for ReLU;
    u: [B, N_L], the output's cotangent, or None for the forward sweep alone. keep_h, keep_g: which values to return,
    ascending: 1 .. L - 1 and 0 .. L - 1.
    Returns y [B, N_L]; the attribution x * g_0 [B, N_0], without u a tensor [0]; bits, the masks m_l, int32
    [B, ceil(N_l / 32)] for l = 1 .. L - 1; the h_l of keep_h, [B, N_l]; and the masked cotangents g_l of keep_g,
    [B, N_l], of which there are none without u.
    """
    last = len(weights)
    h: list[Tensor] = [x]
    bits: list[Tensor] = []
    for weight, slope in zip(weights[:-1], slopes, strict=True):
        out, mask = linear_relu_mask(h[-1], weight, slope_tensor(slope, x))
        h.append(out)
        bits.append(mask)
    y = h[-1] @ weights[-1].T
    if u is None:
        return y, x.new_empty(0), bits, [h[k] for k in keep_h], []
    g: list[Tensor] = [u] * (last + 1)  # g[l] at the output of layer l
    for k in range(last, 0, -1):
        masked = (bits[k - 2], slope_tensor(slopes[k - 2], x)) if k > 1 else ()
        g[k - 1] = matmul_mask(g[k], weights[k - 1], *masked)
    return y, x * g[0], bits, [h[k] for k in keep_h], [g[k] for k in keep_g]
