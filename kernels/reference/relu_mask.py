"""relu_mask: ReLU or LeakyReLU that also returns its activation pattern as packed bits."""

import torch
from torch import Tensor

from . import bits


def activation_pattern(z: Tensor, slope: Tensor | None) -> Tensor:
    """Where the derivative of the activation is one: bool, the shape of z.

    NaN follows PyTorch: relu passes its gradient on, leaky_relu and prelu take the slope.
    """
    return ~(z <= 0) if slope is None else z > 0


def relu_mask(z: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Activation and its bit-packed mask.

    z: [..., N], floating; slope: None for ReLU, or [1] or [N], the factor of what is not positive.
    Returns h [..., N], contiguous: z where positive and slope * z elsewhere; and bits, int32 [..., ceil(N / 32)], in
    the layout of bits.py.
    """
    z = z.contiguous()
    mask = activation_pattern(z, slope)
    if slope is None:
        return torch.relu(z), bits.pack(mask)
    # The inner choice keeps infinity out of the slope's gradient where the slope has no part.
    return torch.where(mask, z, slope * torch.where(mask, 0, z)), bits.pack(mask)
