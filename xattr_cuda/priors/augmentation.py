"""The prior that an attribution should follow its input under augmentation: consistency."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from ._batch import batch_mean
from ._check import check_attribution

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def consistency(
    attribution: Tensor,
    augmented: Tensor,
    inverse: Callable[[Tensor], Tensor] | None = None,
    *,
    group: "ProcessGroup | None" = None,
) -> Tensor:
    """Distance of two attributions: of an input, and of an augmented copy (flipped, shifted, noisy).

    (1/B) sum_bi (A_bi - inverse(A')_bi)^2, where A' is the attribution of T(x) and `inverse` undoes T. Attention
    consistency under image transforms (Guo et al. 2019), there of class activation maps and averaged over pixels. A
    gradient flows into both; detach one to hold it as the target. Zero attributions are consistent too: the task loss
    must keep them apart from zero.

    attribution, augmented: [B, ...], of one shape after `inverse`. inverse: a differentiable function; None where
    nothing moves (noise, brightness) or the caller has undone it. Returns [], in squared units of the output; mean over
    the batch, sum over features. An empty batch gives 0. group: the processes that share the batch
    (`xattr_cuda.priors`).

    >>> import torch, xattr_cuda as xa
    >>> model, x = xa.models.xmlp([3, 8, 1]), torch.rand(4, 3)
    >>> first, second = (xa.attribute(model, view).attribution for view in (x, x.flip(1)))
    >>> xa.priors.consistency(first, second, lambda a: a.flip(1)).backward()
    >>> xa.priors.consistency(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]])).item()
    4.0
    """
    wide = check_attribution(attribution, "consistency")
    other = check_attribution(augmented if inverse is None else inverse(augmented), "consistency", name="augmented")
    if other.shape != wide.shape:
        raise ValueError(
            f"consistency: `augmented` has shape {list(other.shape)}{'' if inverse is None else ' after `inverse`'}; "
            f"wanted that of `attribution`, {list(wide.shape)}"
        )
    return batch_mean((wide - other).square().sum(), len(wide), group, "consistency").to(attribution.dtype)
