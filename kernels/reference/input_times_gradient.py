"""input_times_gradient: the attribution of an X-DNN from its gradient, with the sums that priors take of it."""

import torch
from torch import Tensor


def input_times_gradient(x: Tensor, g: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x * g, or scale * x * g, and what priors need of it.

    x, g: [B, ...], floating, one shape; scale: None, or [B], a factor of each sample (c of design section 2).
    Returns the attribution A [B, ...], contiguous, and of it, in fp32 at least: mean_abs [...], the mean over the batch
    of |A|, zero of an empty batch; l1 [B] and l2 [B], the sums over the features of |A| and of A^2.
    """
    x, g = x.contiguous(), g.contiguous()
    a = x * g
    if scale is not None:
        a = a * scale.reshape(-1, *[1] * (x.dim() - 1))
    wide = torch.promote_types(a.dtype, torch.float32)
    size, features = a.to(wide).abs(), tuple(range(1, a.dim()))
    mean_abs = size.sum(0) / max(a.shape[0], 1)
    if not features:
        return a, mean_abs, size, size.square()
    return a, mean_abs, size.sum(features), size.square().sum(features)
