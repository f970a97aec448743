"""mask_mul: apply a packed activation pattern to a cotangent or a tangent."""

import torch
from torch import Tensor

from . import bits as packing


def mask_mul(t: Tensor, bits: Tensor, slope: Tensor | None = None) -> Tensor:
    """t where its bit is set, slope * t (or zero) elsewhere.

    t: [..., N], floating; bits: int32 [..., ceil(N / 32)]; slope: None for zero, or [1] or [N].
    Returns [..., N], contiguous. Without a slope it selects, as PyTorch's relu backward does: infinity times nothing
    is zero.
    """
    t, mask = t.contiguous(), packing.unpack(bits, t.shape[-1])
    if slope is None:
        return torch.where(mask, t, 0)
    # The inner choice keeps infinity out of the slope's gradient where the slope has no part.
    return torch.where(mask, t, slope * torch.where(mask, 0, t))
