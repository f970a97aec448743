"""Priors on where attribution may lie: total_variation, right_reasons."""

from collections.abc import Callable

import torch
from torch import Tensor

from ._check import check_attribution


def total_variation(attribution: Tensor) -> Tensor:
    """Anisotropic total variation of attribution images: it smooths them.

    (1/B) sum_b,c,i,j |A_bc,i+1,j - A_bcij| + |A_bci,j+1 - A_bcij|: the pixel smoothness prior of Erion et al. 2021
    after Rudin, Osher and Fatemi 1992.

    attribution: [B, ..., H, W]. Returns [], in the units of the output: mean over the batch, sum over channels and
    pixel pairs. An empty batch gives 0.
    """
    batch = check_attribution(attribution, "total_variation", dims=3)
    return (attribution.diff(dim=-2).abs().sum() + attribution.diff(dim=-1).abs().sum()) / batch


def right_reasons(mask: Tensor) -> Callable[[Tensor], Tensor]:
    """The prior that attribution should vanish where `mask` is set: right for the right reasons.

    right_reasons(mask)(attribution) = (1/B) sum_bi (mask_bi A_bi)^2. Ross, Hughes and Doshi-Velez 2017, equation 1,
    second term, with the X-Gradient for the gradient of the log probabilities.

    mask: bool or nonnegative weights, broadcastable to the attribution: one for all samples, or [B, ...].
    Returns a prior: attribution [B, ...] to [], in squared units of the output; mean over the batch, sum over
    features. An empty batch gives 0.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"right_reasons: `mask` is a {type(mask).__name__}; wanted a tensor, set where attribution is wrong"
        )

    def prior(attribution: Tensor) -> Tensor:
        batch = check_attribution(attribution, "right_reasons")
        try:
            same = torch.broadcast_shapes(mask.shape, attribution.shape) == attribution.shape
        except RuntimeError:
            same = False
        if not same:
            raise ValueError(
                f"right_reasons: `mask` has shape {list(mask.shape)}, which does not broadcast to the attribution's "
                f"{list(attribution.shape)}"
            )
        return (attribution * mask.to(attribution.device, attribution.dtype)).square().sum() / batch

    return prior
