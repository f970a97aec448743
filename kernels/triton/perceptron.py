"""What the two kernels of a whole perceptron share: products of a tile of rows, activations, and the choice of sizes.

A program takes rows of the batch through all layers. The values of its rows pass from layer to layer through memory
that no other program reads, written and read by one block between barriers, so that they come from a cache. A program
takes its rows once: were they counted up in a loop, the compiler would hold the places of all layers in registers
throughout. Layers count from 1 and 0 is the input, as in section 2 of the design; tuples by layer hold None where
nothing is wanted.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.bits import words
from . import bits as packing
from .configs import ARCHITECTURES, Config, architecture, by_config, configs
from .precision import add_product, input_precision, kind
from .products import PRECISIONS, multiprocessors
from .tuned import chosen
from .variant import DTYPES, POINTERS, Variant

WIDEST, DEEPEST = 512, 8  # of the networks that one launch serves; others go layer by layer
FASTER = 3 * 2**17  # weights of those that are faster so, as measured on an H200 (in C++: csrc/cuda/perceptron.h)
MOST_ROWS = 128  # that a program takes
FARTHEST = 2**31 // MOST_ROWS - WIDEST  # elements from row to row
LAUNCHED = 2**16  # rows of one launch, a bound on the memory that it passes values through; more take another


@triton.jit
def product(
    in_ptr, in_stride, weight_ptr, along, across, valid, start,
    DEPTH: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """in [valid, DEPTH] times a weight [DEPTH, COUNT]: the columns start .. start + BLOCK, fp32 [ROWS, BLOCK].

    along, across: the strides of the weight, so that it may be a transpose. What does not exist counts as zero.
    """
    row = tl.arange(0, ROWS)
    column = start + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for first in range(0, DEPTH, STEP):
        k = first + tl.arange(0, STEP)
        left = tl.load(
            in_ptr + row[:, None] * in_stride + k[None, :], mask=(row[:, None] < valid) & (k[None, :] < DEPTH), other=0
        )
        right = tl.load(
            weight_ptr + k[:, None] * along + column[None, :] * across,
            mask=(k[:, None] < DEPTH) & (column[None, :] < COUNT),
            other=0,
        )
        total = add_product(left, right, total, PRECISION)
    return total


@triton.jit
def activate(z, SLOPE: tl.constexpr):
    """The activation of z and where its derivative is one; the slope of ReLU is None."""
    if SLOPE is None:
        positive = (z > 0) | (z != z)
        h = tl.where(positive, z, 0.0)
    else:
        positive = z > 0
        h = tl.where(positive, z, SLOPE * z)
    return h, positive


@triton.jit
def masked(t, bits_ptr, valid, start, COUNT: tl.constexpr, SLOPE: tl.constexpr):
    """m * t for t [ROWS, BLOCK] at the columns start .., and the mask of the tile's first row [valid, COUNT] on."""
    row = tl.arange(0, t.shape[0])
    word = start // 32 + tl.arange(0, t.shape[1] // 32)
    ROW_WORDS: tl.constexpr = (COUNT + 31) // 32
    place = row[:, None] * ROW_WORDS + word[None, :]
    mask = packing.unpack(tl.load(bits_ptr + place, mask=(row[:, None] < valid) & (word[None, :] < ROW_WORDS), other=0))
    return tl.where(mask, t, 0.0 if SLOPE is None else SLOPE * t)


@triton.jit
def store_mask(positive, bits_ptr, valid, start, COUNT: tl.constexpr):
    """Pack where a tile [ROWS, BLOCK] is positive."""
    row = tl.arange(0, positive.shape[0])
    word = start // 32 + tl.arange(0, positive.shape[1] // 32)
    column = start + tl.arange(0, positive.shape[1])
    ROW_WORDS: tl.constexpr = (COUNT + 31) // 32
    place = row[:, None] * ROW_WORDS + word[None, :]
    found = packing.pack(positive & (column[None, :] < COUNT))
    tl.store(bits_ptr + place, found, mask=(row[:, None] < valid) & (word[None, :] < ROW_WORDS))


@triton.jit
def store_rows(t, out_ptr, stride, valid, start, COUNT: tl.constexpr):
    """Write a tile [ROWS, BLOCK] at the columns start .. of rows that lie `stride` apart."""
    row = tl.arange(0, t.shape[0])
    column = start + tl.arange(0, t.shape[1])
    keep = (row[:, None] < valid) & (column[None, :] < COUNT)
    tl.store(out_ptr + row[:, None] * stride + column[None, :], t.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit
def sweep_rows(
    in_ptr, in_stride, weight_ptr, along, across, bits_ptr, out_ptr, out_stride, valid,
    DEPTH: tl.constexpr, COUNT: tl.constexpr, SLOPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = m * (in W) for rows [valid, DEPTH]; bits None: without a mask."""
    for start in range(0, COUNT, BLOCK):
        t = product(
            in_ptr, in_stride, weight_ptr, along, across, valid, start, DEPTH, COUNT, ROWS, BLOCK, STEP, PRECISION
        )
        if bits_ptr is not None:
            t = masked(t, bits_ptr, valid, start, COUNT, SLOPE)
        store_rows(t, out_ptr, out_stride, valid, start, COUNT)


class Sizes(NamedTuple):
    """How a network is taken through a kernel. blocks: by layer, columns of a tile of its values."""

    config: Config
    widths: tuple[int, ...]
    blocks: tuple[int, ...]

    @property
    def widest(self) -> int:
        """Elements of a row of memory that the values of any layer fit in."""
        return 16 * triton.cdiv(max(self.widths), 16)

    @property
    def columns(self) -> tuple[int, ...]:
        """Where in a row of memory the values of the layers 0 .. L - 1 begin, if they lie side by side, and its end."""
        return (0, *itertools.accumulate(16 * triton.cdiv(n, 16) for n in self.widths[:-1]))

    def constants(self, slopes: Sequence[float | None]) -> dict[str, Any]:
        """The constants that both kernels have."""
        return {"SLOPES": tuple(slopes), "WIDTHS": self.widths, "BLOCKS": self.blocks}


@functools.lru_cache(1024)
def size(widths: tuple[int, ...], config: Config) -> Sizes:
    """A network of these widths with a configuration."""
    blocks = tuple(min(config.blocks["BLOCK"], max(32, triton.next_power_of_2(n))) for n in widths)
    return Sizes(config, widths, blocks)


def tiles(dtype: torch.dtype, precision: str, arch: str) -> tuple[Config, ...]:
    """The configurations that a network may have, those of the most rows first."""
    return configs(f"perceptron-{kind(dtype, precision)}", arch)


@functools.lru_cache(1024)
def sizes(widths: tuple[int, ...], rows: int, dtype: torch.dtype, precision: str, arch: str, processors: int) -> Sizes:
    """The choice for a batch: as many rows to a program as leave three of four multiprocessors one."""
    *larger, smallest = tiles(dtype, precision, arch)
    enough = (one for one in larger if 4 * triton.cdiv(rows, one.blocks["ROWS"]) >= 3 * processors)
    return size(widths, next(enough, smallest))


def sizes_for(weights: Sequence[Tensor], rows: int) -> Sizes:
    """The choice for these weights where they lie, and a batch of `rows`."""
    first = weights[0]
    widths = (first.shape[1], *(w.shape[0] for w in weights))
    arch, processors = architecture(first.device), multiprocessors(first.device)
    table = sizes(widths, rows, first.dtype, input_precision(first.dtype), arch, processors).config
    family = f"perceptron-{kind(first.dtype, input_precision(first.dtype))}"
    return size(widths, chosen(family, "perceptron", first.device, first.dtype, (rows, *widths), table))


def serves(weights: Sequence[Tensor]) -> bool:
    """Whether one launch takes rows through all layers: a network of at most DEEPEST layers, none wider than WIDEST."""
    widths = (weights[0].shape[1], *(w.shape[0] for w in weights))
    return len(weights) <= DEEPEST and min(widths) > 0 and max(widths) <= WIDEST


def pays(weights: Sequence[Tensor]) -> bool:
    """Whether a network that is served is not better off layer by layer.

    fp32 is: PyTorch rounds to TF32 where Triton cuts, and has the faster exact products.
    """
    return weights[0].dtype != torch.float32 and sum(w.numel() for w in weights) <= FASTER


def kernel_slopes(slopes: Sequence[float]) -> tuple[float | None, ...]:
    """Slopes by layer, from 0, as the kernels take them: None for ReLU, whose slope the operators call zero."""
    return (None, *(s or None for s in slopes), None)


def by_layer(layers: Sequence[int], tensors: Sequence[Tensor], count: int) -> tuple[Tensor | None, ...]:
    """The tensors in the places 0 .. count of their layers."""
    found: list[Tensor | None] = [None] * (count + 1)
    for layer, t in zip(layers, tensors, strict=True):
        found[layer] = t
    return tuple(found)


def new_bits(x: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Memory for the masks of values [B, n] of these widths."""
    return [torch.empty(len(x), words(n), dtype=torch.int32, device=x.device) for n in widths]


def row_major(t: Tensor) -> Tensor:
    """t with unit column stride, and rows so near to one another that places in a tile of them fit 32 bits."""
    fits = t.stride(1) == 1 and (t.stride(0) == 0 or t.shape[1] <= t.stride(0) <= FARTHEST)
    return t if fits else t.contiguous()


NETWORKS = {
    "64x4": (64, 64, 64, 64, 1),
    "paper": (118, 512, 128, 32, 1),
    "256x6": (*(256,) * 6, 1),
    "ten": (64, 64, 10),
}
"""Widths that stand for all in the compile report, by name."""
ODD = "paper"  # the one whose rows are not aligned


class Compiled(NamedTuple):
    """A network and precision that the kernels may be compiled for: what they share of a variant."""

    name: str
    sizes: Sizes
    dtype: str
    precision: str
    architectures: tuple[str, ...]

    @property
    def pointer(self) -> str:
        """The type of a pointer to values."""
        return POINTERS[self.dtype]

    @property
    def depth(self) -> int:
        """Layers."""
        return len(self.sizes.widths) - 1

    @property
    def hidden(self) -> tuple[str | None, ...]:
        """Types of what the hidden layers have, by layer."""
        return (None, *(self.pointer,) * (self.depth - 1), None)

    def variant(self, kernel: Any, signature: dict[str, Any], constants: dict[str, Any], what: str = "") -> Variant:
        """The kernel for ReLU, its values aligned and its strides multiples of 16 where all widths are."""
        masks = tuple(None if kind is None else "*i32" for kind in self.hidden)
        signature = {"weights": (self.pointer,) * self.depth, "bits": masks, **signature}
        strides = tuple(name for name in signature if name.endswith("_stride") and self.sizes.widths[0] % 16 == 0)
        pointers = tuple(name for name, kind in signature.items() if isinstance(kind, tuple) or kind.startswith("*"))
        shared = self.sizes.constants((None,) * (self.depth + 1))
        return Variant.of(
            *(kernel, self.sizes.config, self.dtype, signature, {**shared, "PRECISION": self.precision, **constants}),
            divisible=pointers + strides,
            what="-".join(part for part in (self.name, what, self.precision if self.dtype == "fp32" else "") if part),
            gemm=True,
            architectures=self.architectures,
        )


def compiled() -> Iterator[Compiled]:
    """All that stand for what users have: every network, and the odd one in every configuration."""
    for (name, widths), (dtype, precision) in itertools.product(NETWORKS.items(), PRECISIONS):
        choices = {arch: tiles(DTYPES[dtype], precision, arch) for arch in ARCHITECTURES}
        for place in range(max(map(len, choices.values())) if name == ODD else 1):
            chosen = {arch: some[min(place, len(some) - 1)] for arch, some in choices.items()}
            for config, archs in by_config(chosen.__getitem__):
                yield Compiled(name, size(widths, config), dtype, precision, archs)
