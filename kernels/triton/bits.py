"""Packing of a boolean tile into int32 words and back, inside a kernel; the layout of `kernels/reference/bits.py`."""

import triton
import triton.language as tl


@triton.jit
def pack(mask):
    """Words of a boolean tile: [R, 32 * W] to int32 [R, W]. What lies beyond a row must be False already."""
    rows: tl.constexpr = mask.shape[0]
    words: tl.constexpr = mask.shape[1] // 32
    places = tl.reshape(mask.to(tl.int32), (rows, words, 32)) << tl.arange(0, 32)[None, None, :]
    return tl.sum(places, axis=2)  # no two have a bit in common: their sum is their union, with bit 31 as the sign


@triton.jit
def unpack(words):
    """Inverse of `pack`: int32 [R, W] to a boolean tile [R, 32 * W]."""
    rows: tl.constexpr = words.shape[0]
    count: tl.constexpr = words.shape[1]
    places = (words[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1  # [R, W, 32]
    return tl.reshape(places, (rows, 32 * count)) != 0
