"""What every prior asks of its argument."""

from torch import Tensor


def check_attribution(attribution: Tensor, prior: str, dims: int = 1) -> int:
    """Raise unless `attribution` is a floating tensor of at least `dims` dimensions; return max(B, 1)."""
    if not isinstance(attribution, Tensor) or not attribution.is_floating_point():
        given = (
            f"a {attribution.dtype} tensor" if isinstance(attribution, Tensor) else f"a {type(attribution).__name__}"
        )
        raise TypeError(f"{prior}: `attribution` is {given}; wanted one floating tensor [B, ...]")
    if attribution.dim() < dims:
        raise ValueError(
            f"{prior}: `attribution` has shape {list(attribution.shape)}; wanted at least {dims} dimensions"
        )
    return max(attribution.shape[0], 1)
