"""Priors for few features: gini, l1, l2."""

from typing import TYPE_CHECKING

from torch import Tensor

from .. import ops
from ._batch import batch_mean
from ._check import check_attribution, check_floating

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def gini(attribution: Tensor, *, group: "ProcessGroup | None" = None) -> Tensor:
    """Minus the Gini coefficient of the mean absolute attribution: minimised, it concentrates attribution.

    With m_i = mean over the batch of |A_bi|: -sum_ij |m_i - m_j| / (2 n sum_i m_i), computed by sorting in
    O(n log n). Hesse et al. 2021 and Erion et al. 2021, the sparsity prior (there without the 2, so twice this).

    attribution: [B, ...]; all dimensions after the batch are features. Returns [], in [-1, 0]: the scale of the
    attribution cancels, and the batch size enters through the mean only. An attribution that is zero everywhere
    (an empty batch too) gives 0. group: the processes that share the batch (`xattr_cuda.priors`).

    >>> import torch, xattr_cuda as xa
    >>> model, x = xa.models.xmlp([6, 8, 1]), torch.rand(4, 6)
    >>> output, attribution = xa.attribute(model, x)
    >>> (output.square().mean() + 0.3 * xa.priors.gini(attribution)).backward()
    >>> xa.priors.gini(torch.tensor([[3.0, -1.0]])).item()
    -0.25
    """
    wide = check_floating(attribution, "gini", dims=2)
    mean = batch_mean(attribution.abs().sum(0, dtype=wide), len(attribution), group, "gini")
    value, _ = ops.gini(mean.flatten())
    return -value.to(attribution.dtype)


def l1(attribution: Tensor, *, group: "ProcessGroup | None" = None) -> Tensor:
    """Mean over the batch of the sum over features of |A|: (1/B) sum_bi |A_bi|.

    The lasso penalty (Tibshirani 1996) on attributions. attribution: [B, ...]. Returns [], in the units of the
    output; independent of the batch size, proportional to the number of features. An empty batch gives 0.
    group: the processes that share the batch (`xattr_cuda.priors`).

    >>> import torch, xattr_cuda as xa
    >>> model, x = xa.models.xmlp([6, 8, 1]), torch.rand(4, 6)
    >>> output, attribution = xa.attribute(model, x)
    >>> (output.square().mean() + 0.3 * xa.priors.l1(attribution)).backward()
    >>> xa.priors.l1(torch.tensor([[3.0, -1.0], [0.0, 2.0]])).item()
    3.0
    """
    wide = check_floating(attribution, "l1")
    return batch_mean(attribution.abs().sum(dtype=wide), len(attribution), group, "l1").to(attribution.dtype)


def l2(attribution: Tensor, *, group: "ProcessGroup | None" = None) -> Tensor:
    """Mean over the batch of the sum over features of A^2: (1/B) sum_bi A_bi^2.

    The ridge penalty on attributions; on gradients it is double backpropagation (Drucker and LeCun 1992).
    attribution: [B, ...]. Returns [], in squared units of the output; independent of the batch size. An empty batch
    gives 0. group: the processes that share the batch (`xattr_cuda.priors`).

    >>> import torch, xattr_cuda as xa
    >>> model, x = xa.models.xmlp([6, 8, 1]), torch.rand(4, 6)
    >>> output, attribution = xa.attribute(model, x)
    >>> (output.square().mean() + 0.3 * xa.priors.l2(attribution)).backward()
    >>> xa.priors.l2(torch.tensor([[3.0, -1.0], [0.0, 2.0]])).item()
    7.0
    """
    wide = check_attribution(attribution, "l2")
    return batch_mean(wide.square().sum(), len(wide), group, "l2").to(attribution.dtype)
