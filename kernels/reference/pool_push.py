"""pool_push: the tangent map of a max pooling, which takes from each window what the maximum was taken from."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .max_pool import arranged, margins, memory_format, places


def pool_push(
    v: Tensor,
    idx: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The element of each window of v that idx names.

    v: [B, C, *size], floating; idx: uint8 [B, C, *out], as from max_pool.
    Returns [B, C, *out] in the layout of idx. An index that points into the padding or out of its window gives zero.
    """
    out = idx.shape[2:]
    edges = margins(v.shape[2:], out, kernel, stride, padding, dilation)
    padded = pad(v, [n for edge in reversed(edges) for n in edge])
    taken = v.new_zeros(idx.shape)
    for k, place in enumerate(places(out, kernel, stride, dilation)):
        taken = torch.where(idx == k, padded[place], taken)
    return arranged(taken, memory_format(idx))
