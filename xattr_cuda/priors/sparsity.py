"""Priors for few features: gini, l1, l2."""

from torch import Tensor

from .. import ops
from ._check import check_attribution


def gini(attribution: Tensor) -> Tensor:
    """Minus the Gini coefficient of the mean absolute attribution: minimised, it concentrates attribution.

    With m_i = mean over the batch of |A_bi|: -sum_ij |m_i - m_j| / (2 n sum_i m_i), computed by sorting in
    O(n log n). Hesse et al. 2021 and Erion et al. 2021, the sparsity prior (there without the 2, so twice this).

    attribution: [B, ...]; all dimensions after the batch are features. Returns [], in [-1, 0]: the scale of the
    attribution cancels, and the batch size enters through the mean only. An attribution that is zero everywhere
    (an empty batch too) gives 0.
    """
    batch = check_attribution(attribution, "gini", dims=2)
    value, _ = ops.gini((attribution.abs().sum(0) / batch).flatten())
    return -value


def l1(attribution: Tensor) -> Tensor:
    """Mean over the batch of the sum over features of |A|: (1/B) sum_bi |A_bi|.

    The lasso penalty (Tibshirani 1996) on attributions. attribution: [B, ...]. Returns [], in the units of the
    output; independent of the batch size, proportional to the number of features. An empty batch gives 0.
    """
    batch = check_attribution(attribution, "l1")
    return attribution.abs().sum() / batch


def l2(attribution: Tensor) -> Tensor:
    """Mean over the batch of the sum over features of A^2: (1/B) sum_bi A_bi^2.

    The ridge penalty on attributions; on gradients it is double backpropagation (Drucker and LeCun 1992).
    attribution: [B, ...]. Returns [], in squared units of the output; independent of the batch size. An empty batch
    gives 0.
    """
    batch = check_attribution(attribution, "l2")
    return attribution.square().sum() / batch
