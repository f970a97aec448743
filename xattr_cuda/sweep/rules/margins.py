"""Margins around images: padding in every mode, and its transpose."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def sides(padding: Sequence[int]) -> list[tuple[int, int, int]]:
    """Padding as F.pad takes it, as (dimension, before, after) where there is any."""
    found = [(-1 - i, padding[2 * i], padding[2 * i + 1]) for i in range(len(padding) // 2)]
    return [side for side in found if any(side[1:])]


def pad(h: Tensor, padding: Sequence[int], mode: str) -> Tensor:
    """h with margins, `padding` being as F.pad takes it: zeros, or copies by reflection, replication or going round."""
    if not any(padding):
        return h
    if mode != "circular":
        return F.pad(h, padding, mode="constant" if mode == "zeros" else mode)
    for dim, before, after in sides(padding):  # F.pad would lose channels last
        parts = [h.narrow(dim, h.shape[dim] - before, before), h, h.narrow(dim, 0, after)]
        h = torch.cat([part for part in parts if part.shape[dim]], dim)
    return h


def _fold(g: Tensor, dim: int, before: int, after: int, mode: str) -> None:
    """Add the margins of one dimension to the elements that they were copied from, in place."""
    size = g.shape[dim] - before - after
    head, tail = g.narrow(dim, 0, before), g.narrow(dim, before + size, after)
    if mode == "circular":
        g.narrow(dim, size, before).add_(head)
        g.narrow(dim, before, after).add_(tail)
    elif mode == "reflect":
        g.narrow(dim, before + 1, before).add_(head.flip(dim))
        g.narrow(dim, before + size - 1 - after, after).add_(tail.flip(dim))
    elif mode == "replicate":
        g.narrow(dim, before, 1).add_(head.sum(dim, keepdim=True))
        g.narrow(dim, before + size - 1, 1).add_(tail.sum(dim, keepdim=True))


def unpad(g: Tensor, padding: Sequence[int], mode: str) -> Tensor:
    """The transpose of `pad`, from a cotangent that it may overwrite.

    By hand, because ATen's own transposes add with atomics on a GPU and announce the wrong strides for channels last.
    """
    if not any(padding):
        return g
    if mode != "zeros":
        for dim, before, after in sides(padding):
            _fold(g, dim, before, after, mode)
    return F.pad(g, [-p for p in padding])
