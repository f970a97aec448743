"""Priors on where attribution may lie: total_variation, right_reasons, outside."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from ._batch import batch_mean
from ._check import check_attribution, check_tensor, fit_mask, ratio

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def total_variation(attribution: Tensor, *, group: "ProcessGroup | None" = None) -> Tensor:
    """Anisotropic total variation of attribution images: it smooths them.

    (1/B) sum_b,c,i,j |A_bc,i+1,j - A_bcij| + |A_bci,j+1 - A_bcij|: the pixel smoothness prior of Erion et al. 2021
    after Rudin, Osher and Fatemi 1992.

    attribution: [B, ..., H, W]. Returns [], in the units of the output: mean over the batch, sum over channels and
    pixel pairs. An empty batch gives 0. group: the processes that share the batch (`xattr_cuda.priors`).

    >>> import torch, xattr_cuda as xa
    >>> model, x = torch.nn.Conv2d(1, 1, 3, bias=False), torch.rand(4, 1, 3, 3)
    >>> output, attribution = xa.attribute(model, x, target=(0, 0, 0))
    >>> (output.square().mean() + 0.3 * xa.priors.total_variation(attribution)).backward()
    >>> xa.priors.total_variation(torch.tensor([[[1.0, 3.0], [1.0, 0.0]]])).item()
    6.0
    """
    wide = check_attribution(attribution, "total_variation", dims=3)
    steps = wide.diff(dim=-2).abs().sum() + wide.diff(dim=-1).abs().sum()
    return batch_mean(steps, len(wide), group, "total_variation").to(attribution.dtype)


def right_reasons(mask: Tensor, *, group: "ProcessGroup | None" = None) -> Callable[[Tensor], Tensor]:
    """The prior that attribution should vanish where `mask` is set: right for the right reasons.

    right_reasons(mask)(attribution) = (1/B) sum_bi (mask_bi A_bi)^2. Ross, Hughes and Doshi-Velez 2017, equation 1,
    second term, with the X-Gradient for the gradient of the log probabilities.

    mask: bool or nonnegative weights, broadcastable to the attribution: one for all samples, or [B, ...].
    Returns a prior: attribution [B, ...] to [], in squared units of the output; mean over the batch, sum over
    features. An empty batch gives 0. group: the processes that share the batch (`xattr_cuda.priors`).

    >>> import torch, xattr_cuda as xa
    >>> model, x = xa.models.xmlp([3, 8, 1]), torch.rand(4, 3)
    >>> prior = xa.priors.right_reasons(torch.tensor([True, False, False]))
    >>> prior(xa.attribute(model, x).attribution).backward()
    >>> prior(torch.tensor([[3.0, -1.0, 2.0], [1.0, 5.0, 0.0]])).item()
    5.0
    """
    check_tensor(mask, "right_reasons", "mask", "a tensor, set where attribution is wrong")

    def prior(attribution: Tensor) -> Tensor:
        wide = check_attribution(attribution, "right_reasons")
        total = (wide * fit_mask(mask, wide, "right_reasons")).square().sum()
        return batch_mean(total, len(wide), group, "right_reasons").to(attribution.dtype)

    return prior


def outside(mask: Tensor, *, share: bool = True, group: "ProcessGroup | None" = None) -> Callable[[Tensor], Tensor]:
    """The prior that attribution should lie within a soft `mask`.

    share=True: (1/B) sum_b [sum_i (1 - mask_bi) |A_bi|] / [sum_i |A_bi|], each sample's share of attribution outside.
    One minus the energy-based pointing game (Wang et al. 2020), the energy loss of Rao et al. 2023, there of positive
    attribution alone. A sample without attribution counts as 0.
    share=False: (1/B) sum_bi (1 - mask_bi) |A_bi|, the amount outside.
    `right_reasons` takes the opposite mask, set where attribution is wrong, and squares amounts; use it where anything
    outside is wrong, and the share where the amount of attribution, which is that of the output, should be left alone.

    mask: bool, or values in [0, 1], 1 where attribution is free; broadcastable to the attribution: one for all samples,
    or [B, ...]. Returns a prior: attribution [B, ...] to [], a share in [0, 1] in which the scale of the attribution
    cancels, or an amount in the units of the output. An empty batch gives 0. group: the processes that share the batch
    (`xattr_cuda.priors`).

    >>> import torch, xattr_cuda as xa
    >>> model, x = xa.models.xmlp([3, 8, 1]), torch.rand(4, 3)
    >>> prior = xa.priors.outside(torch.tensor([1.0, 0.5, 0.0]))
    >>> prior(xa.attribute(model, x).attribution).backward()
    >>> prior(torch.tensor([[1.0, -2.0, 1.0], [4.0, 0.0, 0.0]])).item()
    0.25
    """
    check_tensor(mask, "outside", "mask", "a tensor, 1 where attribution may lie and 0 where it may not")
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(
            "outside: `mask` has values outside of [0, 1]; wanted 1 where attribution may lie, 0 elsewhere"
        )

    def prior(attribution: Tensor) -> Tensor:
        wide = check_attribution(attribution, "outside", dims=2 if share else 1)
        size = wide.abs()
        amounts = (1 - fit_mask(mask, wide, "outside")) * size
        if share:
            amounts = ratio(amounts.flatten(1).sum(1), size.flatten(1).sum(1))
        return batch_mean(amounts.sum(), len(wide), group, "outside").to(attribution.dtype)

    return prior
