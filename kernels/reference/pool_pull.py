"""pool_pull: the transpose of a max pooling, from cotangents of its maxima to the cotangent of its input."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .max_pool import arranged, margins, memory_format, places


def pool_pull(
    g: Tensor,
    idx: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Each element of g to the place that its window took its maximum from; what meets there is added.

    g: [B, C, *out], floating; idx: uint8 [B, C, *out], as from max_pool; shape: [B, C, *size] of the input.
    Returns [B, C, *size] in the layout of idx. Sums are taken in fp32 at least, in a fixed order. An index that points
    into the padding or out of its window counts for nothing.
    """
    size, out = shape[2:], idx.shape[2:]
    edges = margins(size, out, kernel, stride, padding, dilation)
    padded = [before + n + after for n, (before, after) in zip(size, edges, strict=True)]
    total = g.new_zeros((*shape[:2], *padded), dtype=torch.promote_types(g.dtype, torch.float32))
    for k, place in enumerate(places(out, kernel, stride, dilation)):
        total[place] += torch.where(idx == k, g, 0)
    inside = total
    for dim, (n, (before, _)) in enumerate(zip(size, edges, strict=True), 2):
        inside = inside.narrow(dim, before, n)
    return arranged(inside.to(g.dtype), memory_format(idx))
