"""Where the bits of a mask lie: a sample is one row, in the order in which memory holds its elements.

Rows of whole samples waste no bits on padding, whatever the width of an image. The layout can be told from the mask:
[B, words] for contiguous tensors, [B, 1, words] for channels_last ones of four or five dimensions. Where a product has
made the mask on its way out, rows are the last dimension and the mask has the dimensions of the tensor.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Restore = Callable[[Tensor], Tensor]

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(t: Tensor) -> bool:
    """Whether the channels (dimension 1) of an image or a volume lie closest in memory, batch by batch or in part."""
    return t.dim() in _CHANNELS_LAST and t.stride(1) == 1 and t.stride(-1) >= t.shape[1]


def memory_format_of(t: Tensor) -> torch.memory_format:
    """The memory format of t: a channels_last one or the default."""
    return _CHANNELS_LAST[t.dim()] if is_channels_last(t) else torch.contiguous_format


def by_rows(t: Tensor, bits: Tensor | None = None) -> tuple[Tensor, Restore]:
    """(t in rows that fit the mask `bits`, or the mask that t would get; the way back to the shape of t)."""
    if t.dim() <= 2 or (bits is not None and bits.dim() == t.dim()):
        return t, lambda rows: rows
    batch, size, shape = t.shape[0], math.prod(t.shape[1:]), t.shape
    if is_channels_last(t) if bits is None else bits.dim() == 3:
        last = t.contiguous(memory_format=_CHANNELS_LAST[t.dim()]).movedim(1, -1)  # [B, ..., C]
        return last.reshape(batch, 1, size), lambda rows: rows.view(last.shape).movedim(-1, 1)
    return t.reshape(batch, size), lambda rows: rows.view(shape)


def by_channel(values: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    """values [C], one for each channel (dimension 1) of t, repeated along its rows from `by_rows`."""
    if t.dim() <= 2:
        return values
    rest = math.prod(t.shape[2:])
    return values.repeat(rest) if rows.dim() == 3 else values.repeat_interleave(rest)
