"""Packing of boolean masks into int32 words, the layout that every back end shares.

Bit i of word j of a row is element 32*j + i, least significant bit first. A row is the last dimension; it is padded
with zero bits to whole words.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

WORD_BITS = 32


def words(elements: int) -> int:
    """Number of int32 words that hold one row of `elements` bits."""
    return (elements + WORD_BITS - 1) // WORD_BITS


def pack(mask: Tensor) -> Tensor:
    """Pack a boolean mask.

    mask: bool [..., N]. Returns int32 [..., ceil(N / 32)].
    """
    n = mask.shape[-1]
    grouped = pad(mask, (0, words(n) * WORD_BITS - n)).unflatten(-1, (words(n), WORD_BITS))  # [..., W, 32]
    place = torch.arange(WORD_BITS, device=mask.device, dtype=torch.int64)
    # Bit 31 is the sign of an int32, so the sum is taken in int64 and wrapped to the signed range explicitly.
    total = (grouped.to(torch.int64) << place).sum(-1)  # [..., W]
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


def unpack(bits: Tensor, elements: int) -> Tensor:
    """Inverse of `pack`.

    bits: int32 [..., ceil(N / 32)]; elements: N. Returns bool [..., N].
    """
    place = torch.arange(WORD_BITS, device=bits.device, dtype=torch.int32)
    mask = (bits.unsqueeze(-1) >> place) & 1  # [..., W, 32]
    return mask.flatten(-2)[..., :elements].to(torch.bool)
