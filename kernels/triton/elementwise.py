"""What relu_mask, mask_mul and add_relu_mask share: the tile of words that a program works on, and their launch.

A tile is WORDS words by 32 lanes: a lane an element, a word the bits of a tile's row. Tensors are contiguous. Where
their rows are whole words these lie end to end, and a tensor of any shape is one long row. Elsewhere a row's last word
reaches beyond it and loads what it lacks as zero, whose bit is not set.
"""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.bits import WORD_BITS, words
from .configs import Config, architecture, by_config, configs
from .launching import run
from .tuned import chosen
from .variant import DTYPES, POINTERS, Variant

NO_SLOPE, ONE_SLOPE, SLOPES = 0, 1, 2  # values of the constant SLOPE of the kernels: of shape None, [1] and [N]
_SLOPE_WORDS = ("", "slope", "slopes")


@triton.jit
def tile(rows, n, row_words, WORDS: tl.constexpr, ROW: tl.constexpr):
    """The part of a tensor [rows, n] with masks [rows, row_words] that is this program's.

    Returns (word, present, column, offset, valid). word: index of the word, [WORDS], of which ROW lie in one row;
    present: whether there is one. column: place in its row, offset: place in the tensor, valid: whether there is such
    an element, [WORDS, 32].
    """
    blocks = tl.cdiv(row_words, ROW)
    row = tl.program_id(0) // blocks * (WORDS // ROW) + tl.arange(0, WORDS) // ROW
    place = tl.program_id(0) % blocks * ROW + tl.arange(0, WORDS) % ROW
    present = (row < rows) & (place < row_words)
    column = (place.to(tl.int64) * 32)[:, None] + tl.arange(0, 32)[None, :]
    offset = (row.to(tl.int64) * n)[:, None] + column
    return row * row_words + place, present, column, offset, present[:, None] & (column < n)


@triton.jit
def scaled(t, column, valid, slope_ptr, SLOPE: tl.constexpr):
    """slope * t in fp32; zero without a slope."""
    if SLOPE == 0:
        product = tl.zeros_like(t)
    elif SLOPE == 1:
        product = tl.load(slope_ptr).to(tl.float32) * t
    else:
        product = tl.load(slope_ptr + column, mask=valid, other=0).to(tl.float32) * t
    return product


@triton.jit
def activate(z, column, valid, slope_ptr, SLOPE: tl.constexpr):
    """Activation of fp32 values and where its derivative is one. Of NaN it is in ReLU alone, as in PyTorch."""
    positive = (z > 0) if SLOPE else ((z > 0) | (z != z))
    return tl.where(positive, z, scaled(z, column, valid, slope_ptr, SLOPE)), positive


def launch(kernel: Any, shape: torch.Size, slope: Tensor | None, *tensors: Tensor) -> None:
    """Run kernel(*tensors, slope, ...) over contiguous tensors of `shape` [..., N] and their packed masks."""
    first, n = tensors[0], shape[-1]
    if shape.numel() == 0:
        return
    rows, kind = shape.numel() // n, NO_SLOPE if slope is None else ONE_SLOPE if slope.numel() == 1 else SLOPES
    if n % WORD_BITS == 0 and kind != SLOPES:
        rows, n = 1, shape.numel()
    row_words = words(n)
    table = _config(first.dtype, kind, n, architecture(first.device))
    what = (_SLOPE_WORDS[kind], "odd" if n % 16 else "")
    config = chosen("elementwise", kernel.__name__, first.device, first.dtype, (rows, n), table, *what)
    tile_words = config.blocks["WORDS"]
    tile_row = min(tile_words, triton.next_power_of_2(row_words))
    programs = triton.cdiv(rows, tile_words // tile_row) * triton.cdiv(row_words, tile_row)
    run(
        *(kernel, (programs,), first),
        *(*tensors, None if slope is None else slope.contiguous(), rows, n, row_words),
        SLOPE=kind,
        ROW=tile_row,
        **config.blocks,
        num_warps=config.num_warps,
    )


def _config(dtype: torch.dtype, kind: int, n: int, arch: str) -> Config:
    """Threads move the same bytes at every dtype; less where rows are not aligned, and more is in registers."""
    four_bytes, two_bytes, unaligned = configs("elementwise", arch)
    if n % 16:
        return unaligned
    return two_bytes if dtype.itemsize == 2 and kind != SLOPES else four_bytes


def variants(kernel: Any, values: tuple[str, ...], bits: str = "bits_ptr") -> Iterator[Variant]:
    """What `launch` may compile a kernel for; `values`: its pointers to floating elements, `bits`: that to the masks.

    Rows of odd lengths are not aligned to 16 bytes, and their loads cannot be wide.
    """
    for (dtype, pointer), (what, slope, aligned, row) in itertools.product(POINTERS.items(), _KINDS):
        pointers = {bits: "*i32", **dict.fromkeys(values, pointer), **({"slope_ptr": pointer} if slope else {})}
        for config, archs in by_config(partial(_config, DTYPES[dtype], slope, 16 if aligned else 1)):
            constants: dict[str, Any] = {"SLOPE": slope, "ROW": row or config.blocks["WORDS"]}
            constants |= {} if slope else {"slope_ptr": None}
            constants |= {"rows": 1} if aligned and slope != SLOPES else {}
            sizes = {name: "i32" for name in ("rows", "n", "row_words") if name not in constants}
            yield Variant.of(
                *(kernel, config, dtype, {**pointers, **sizes}, constants),
                divisible=(*pointers, *(("n",) if aligned else ())),
                what=what,
                elementwise=aligned,
                architectures=archs,
            )


_KINDS = (  # name, SLOPE, whether the length of a row is a multiple of 16, words of a tile's row or 0 for all
    ("relu", NO_SLOPE, True, 0),
    ("slope", ONE_SLOPE, True, 0),
    ("slopes", SLOPES, True, 16),
    ("relu-odd", NO_SLOPE, False, 4),
    ("slopes-odd", SLOPES, False, 4),
)
