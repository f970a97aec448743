"""The prior that protected features should not carry the answer: fairness."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._batch import batch_mean
from ._check import check_attribution, ratio

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def fairness(
    protected: Tensor | Sequence[int], *, share: bool = True, group: "ProcessGroup | None" = None
) -> Callable[[Tensor], Tensor]:
    """The prior that `protected` features (sex, origin, the columns of their one-hot code) should not be used.

    With P the protected features and m_i = mean over the batch of |A_bi|,
    share=True: sum_{i in P} m_i / sum_i m_i, the group's share of all attribution;
    share=False: sum_{i in P} m_i, its amount.
    The squared amount, (1/B) sum_b sum_{i in P} A_bi^2, with which Liu and Avci 2019 bring the attribution of identity
    terms to zero, is `right_reasons(mask)` with the mask of P. All three ask that the network does not
    read the features themselves; what others reveal of them (a proxy) is seen by none.

    protected: a bool tensor of the shape of the features, or the numbers of features, counted over all dimensions after
    the batch. Returns a prior: attribution [B, ...] to [], a share in [0, 1] in which the scale of the attribution
    cancels, or an amount in the units of the output. An attribution that is zero everywhere (an empty batch too) gives
    0. group: the processes that share the batch (`xattr_cuda.priors`).

    >>> import torch, xattr_cuda as xa
    >>> model, x = xa.models.xmlp([3, 8, 1]), torch.rand(4, 3)
    >>> prior = xa.priors.fairness([0, 2])
    >>> prior(xa.attribute(model, x).attribution).backward()
    >>> prior(torch.tensor([[1.0, -4.0, 0.0], [-1.0, 2.0, 0.0]])).item()
    0.25
    """
    columns, shape = _columns(protected)
    beyond = max(columns.tolist(), default=-1)

    def prior(attribution: Tensor) -> Tensor:
        size = check_attribution(attribution, "fairness", dims=2).abs()
        features = size.shape[1:]
        if shape is not None and features != shape:
            raise ValueError(
                f"fairness: `protected` has shape {list(shape)}; wanted {list(features)}, that of the features of the "
                f"attribution {list(size.shape)}"
            )
        if beyond >= math.prod(features):
            raise ValueError(
                f"fairness: `protected` names feature {beyond}, but the attribution {list(size.shape)} has "
                f"{math.prod(features)}, counted from 0"
            )
        mean = batch_mean(size.sum(0), len(size), group, "fairness").flatten()
        amount = mean[columns.to(mean.device)].sum()
        return (ratio(amount, mean.sum()) if share else amount).to(attribution.dtype)

    return prior


def _columns(protected: Tensor | Sequence[int]) -> tuple[Tensor, torch.Size | None]:
    """The protected features' numbers, each once, and the shape of the features where a mask says it."""
    given = protected if isinstance(protected, Tensor) else torch.tensor(protected)
    if given.dtype == torch.bool:
        return given.flatten().nonzero().flatten(), given.shape
    if given.numel() == 0:
        raise ValueError("fairness: `protected` names no feature")
    if given.is_floating_point() or given.is_complex() or given.dim() != 1:
        raise TypeError(
            f"fairness: `protected` is a {given.dtype} tensor of shape {list(given.shape)}; wanted a bool mask of the "
            "features, or a list of their numbers"
        )
    if given.min() < 0:
        raise ValueError(f"fairness: `protected` names feature {given.min().item()}; wanted numbers from 0")
    return given.unique(), None
