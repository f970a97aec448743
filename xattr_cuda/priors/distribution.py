"""The prior that attribution should be spread as a given distribution: target_distribution."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._batch import batch_mean
from ._check import check_attribution, check_tensor, check_weights, is_zero, ratio

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def target_distribution(
    target: Tensor,
    *,
    of_mean: bool = False,
    smoothing: float = 1e-3,
    group: "ProcessGroup | None" = None,
) -> Callable[[Tensor], Tensor]:
    """The prior that attribution should be spread over the features as `target` is, by Kullback-Leibler divergence.

    KL(t || p) = sum_i t_i log(t_i / p_i) with p_i = |A_i| / sum_j |A_j| (Kullback and Leibler 1951; as a criterion that
    aligns attributions with human rationales: Joshi et al. 2022). Both are mixed with the uniform distribution first,
    t_i <- (t_i + s/n) / (1 + s), the same for p, with s = `smoothing`: features without attribution cost much, but not
    infinity, and the divergence is still zero where and only where p = t.
    of_mean=False: the mean over the batch of each sample's divergence. A sample without attribution counts as 0, and so
    does one whose own target is all zero: nothing is asked of it.
    of_mean=True: one divergence, of m_i = mean over the batch of |A_bi|: samples may differ, the whole is held.

    target: nonnegative, of the shape of the features, or [B, ...] for one distribution a sample (not of the mean); each
    is normalised to the sum 1. Returns a prior: attribution [B, ...] to [], in nats, at most log(1 + n/s); the scale
    of the attribution cancels. An attribution that is zero everywhere (an empty batch too) gives 0.
    group: the processes that share the batch (`xattr_cuda.priors`).

    >>> import torch, xattr_cuda as xa
    >>> model, x = xa.models.xmlp([3, 8, 1]), torch.rand(4, 3)
    >>> prior = xa.priors.target_distribution(torch.tensor([1.0, 1.0, 2.0]))
    >>> prior(xa.attribute(model, x).attribution).backward()
    >>> prior(torch.tensor([[2.0, -2.0, 4.0], [0.5, 0.5, -1.0]])).item()
    0.0
    """
    check_tensor(target, "target_distribution", "target", "a tensor of the shape of the features")
    check_weights(target, "target_distribution", "target")
    if not smoothing > 0:
        raise ValueError(f"target_distribution: `smoothing` is {smoothing}; wanted a number above 0")

    def prior(attribution: Tensor) -> Tensor:
        size = check_attribution(attribution, "target_distribution", dims=2).abs()
        if target.shape != size.shape[1:] and (of_mean or target.shape != size.shape):
            raise ValueError(
                f"target_distribution: `target` has shape {list(target.shape)}; wanted {list(size.shape[1:])}, that of "
                f"the features{'' if of_mean else f', or {list(size.shape)}, that of the attribution'}"
            )
        wanted = target.to(size.device, size.dtype).reshape(-1 if target.dim() == size.dim() else 1, *size.shape[1:])
        if of_mean:
            mean = batch_mean(size.sum(0), len(size), group, "target_distribution")
            return _divergence(wanted, mean[None], smoothing).sum().to(attribution.dtype)
        total = _divergence(wanted, size, smoothing).sum()
        return batch_mean(total, len(size), group, "target_distribution").to(attribution.dtype)

    return prior


def _divergence(target: Tensor, size: Tensor, smoothing: float) -> Tensor:
    """KL of each row, [B], between target [B or 1, ...] and size [B, ...]; 0 where either row is all zero."""
    (t, no_target), (p, no_size) = (_mixed(a.flatten(1), smoothing) for a in (target, size))
    rows = (t * (t.log() - p.log())).sum(1)
    return torch.where(no_target | no_size, 0, rows)


def _mixed(a: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Rows of a [B, n] as distributions mixed with the uniform one, and which of them, [B], are no distribution."""
    total = a.sum(1, keepdim=True)
    mixed = (ratio(a, total) + smoothing / max(a.shape[1], 1)) / (1 + smoothing)
    return mixed, is_zero(total).squeeze(1)
