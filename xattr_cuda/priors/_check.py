"""What every prior asks of its arguments."""

import torch
from torch import Tensor


def check_floating(attribution: Tensor, prior: str, dims: int = 1, name: str = "attribution") -> torch.dtype:
    """The dtype for sums, fp32 at least; raises unless this is a floating tensor of at least `dims` dimensions."""
    if not isinstance(attribution, Tensor) or not attribution.is_floating_point():
        given = (
            f"a {attribution.dtype} tensor" if isinstance(attribution, Tensor) else f"a {type(attribution).__name__}"
        )
        raise TypeError(f"{prior}: `{name}` is {given}; wanted one floating tensor [B, ...]")
    if attribution.dim() < dims:
        raise ValueError(f"{prior}: `{name}` has shape {list(attribution.shape)}; wanted at least {dims} dimensions")
    return torch.float64 if attribution.dtype == torch.float64 else torch.float32


def check_attribution(attribution: Tensor, prior: str, dims: int = 1, name: str = "attribution") -> Tensor:
    """`attribution` in the dtype for sums; raises as `check_floating` does."""
    wide = check_floating(attribution, prior, dims, name)
    return attribution.to(wide)


def check_tensor(value: Tensor, prior: str, name: str, wanted: str) -> None:
    """Raise unless `value` is a tensor; `wanted` says which."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{prior}: `{name}` is a {type(value).__name__}; wanted {wanted}")


def check_weights(weights: Tensor, prior: str, name: str) -> None:
    """Raise unless all of `weights` are finite and nonnegative."""
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError(f"{prior}: `{name}` has values that are negative or not finite")


def fit_mask(mask: Tensor, attribution: Tensor, prior: str) -> Tensor:
    """`mask` on the attribution's device, in its dtype; raises unless it broadcasts to the attribution's shape."""
    try:
        same = torch.broadcast_shapes(mask.shape, attribution.shape) == attribution.shape
    except RuntimeError:
        same = False
    if not same:
        raise ValueError(
            f"{prior}: `mask` has shape {list(mask.shape)}, which does not broadcast to the attribution's "
            f"{list(attribution.shape)}"
        )
    return mask.to(attribution.device, attribution.dtype)


def is_zero(total: Tensor) -> Tensor:
    """Where a nonnegative sum is 0, or below the normal numbers, of which the reciprocal overflows. Not where NaN."""
    return total < torch.finfo(total.dtype).tiny


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole; 0 with gradient 0 where `whole` is zero."""
    none = is_zero(whole)
    return torch.where(none, 0, part / torch.where(none, 1, whole))
