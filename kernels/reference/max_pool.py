"""max_pool: max pooling that also returns where in each window its maximum lies; and the geometry of all pooling."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_WINDOW = 256
"""Elements of the largest window: the values of a uint8."""

_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def memory_format(t: Tensor) -> torch.memory_format:
    """The layout of t that pooling keeps: channels last in two or three dimensions, or contiguous.

    The strides decide where a dimension of size one would let both pass.
    """
    last = _CHANNELS_LAST.get(t.dim())
    if last is None or t.stride(1) != 1 or t.stride(-1) != t.shape[1] or not t.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def arranged(t: Tensor, layout: torch.memory_format) -> Tensor:
    """t with the very strides of a new tensor of that layout."""
    wanted = torch.empty(t.shape, device="meta", memory_format=layout).stride()
    return t if t.stride() == wanted else t.clone(memory_format=layout)


def pooled_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """How many windows lie along a dimension of `size` elements, as PyTorch counts them.

    With ceil_mode the last window may reach over the end, but it starts within the input or the padding before it.
    """
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    count = (room + stride - 1) // stride + 1
    return count - 1 if (count - 1) * stride >= size + padding else count


def places(out: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Iterator[Any]:
    """For each index in a window, the slices of the padded input that hold this element of all windows."""
    for index in itertools.product(*map(range, kernel)):
        starts = [i * d for i, d in zip(index, dilation, strict=True)]
        yield (
            ...,
            *(slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, out, stride, strict=True)),
        )


def margins(
    size: Sequence[int],
    out: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[tuple[int, int]]:
    """What the windows need before and after each spatial dimension of `size`."""
    ends = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(out, stride, kernel, dilation, strict=True)]
    return [(p, max(p, end - p - n)) for n, p, end in zip(size, padding, ends, strict=True)]


def _within_window(flat: Tensor, size: Sequence[int], geometry: Sequence[Sequence[int]]) -> Tensor:
    """Indices into the flattened spatial dimensions [B, C, *out], as PyTorch gives them, to indices in the windows."""
    index = torch.zeros_like(flat)
    inner = 1
    for dim, (n, k, s, p, d) in reversed(list(enumerate(zip(size, *geometry, strict=True)))):
        start = torch.arange(flat.shape[2 + dim], device=flat.device) * s - p
        start = start.view(-1, *[1] * (len(size) - 1 - dim))
        index += (flat % n - start) // d * inner
        flat, inner = flat // n, inner * k
    return index.to(torch.uint8)


def max_pool(
    h: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    """Max pooling over one to three spatial dimensions.

    h: [B, C, *size], floating; kernel, stride, padding, dilation: a number for each spatial dimension, as in PyTorch,
    with windows of at most 256 elements.
    Returns the maxima [B, C, *out], and idx, uint8 [B, C, *out]: the row-major place in its window of the first
    maximum (of the last NaN, where there is one). Both are in the layout of h.
    """
    pool, layout, args = _POOL[len(kernel)], memory_format(h), [list(a) for a in (kernel, stride, padding, dilation)]
    out, flat = pool(h, *args, ceil_mode=ceil_mode, return_indices=True)  # type: ignore[call-overload]
    return arranged(out, layout), arranged(_within_window(flat, h.shape[2:], args), layout)
