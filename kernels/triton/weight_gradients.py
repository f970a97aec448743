"""The weight gradients of all layers of a perceptron in one launch, and the sums of what its programs found in another.

A program multiplies the pairs of one tile of one layer's gradient over a share of the batch, and adds them up in an
order that does not depend on chance.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import perceptron
from .configs import ARCHITECTURES, Config, architecture, by_config, configs
from .dual_weight_grad import REDUCED, add_pair, stages
from .precision import input_precision, kind
from .products import PRECISIONS, config_name, multiprocessors, tile_of
from .tuned import chosen
from .variant import DTYPES, POINTERS, Variant

SHORTEST_SHARE = 256  # rows of the batch that are worth a program


class Pairs(NamedTuple):
    """Of a layer [N, K]: delta [B, N] with h [B, K], and g [B, N] with v [B, K]; None where a chain is absent."""

    delta: Tensor | None
    h: Tensor | None
    g: Tensor | None
    v: Tensor | None


@triton.jit
def of_layer(things, tile, TILES: tl.constexpr):
    """The one of these pointers or numbers, by layer, that belongs to the layer of a tile."""
    found = things[0]
    for l in tl.static_range(1, len(TILES) - 1):
        found = tl.where(tile >= TILES[l], things[l], found)
    return found


@triton.jit
def weight_gradients_kernel(
    deltas, delta_strides, hs, h_strides, gs, g_strides, vs, v_strides, outs, out_stride, rows, share,
    NS: tl.constexpr, KS: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr, TALL: tl.constexpr,
    WIDE: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """outs[l] [N, K] of each split, out_stride apart = delta.T h + g.T v over its share of the rows.

    The tiles of layer l are those from TILES[l] on.
    """
    tile = tl.program_id(0)
    N, K = of_layer(NS, tile, TILES), of_layer(KS, tile, TILES)
    tile_row, tile_column = tile_of(tile - of_layer(TILES, tile, TILES), N, K, TALL, WIDE, GROUP)
    n = tile_row * TALL + tl.arange(0, TALL)
    k = tile_column * WIDE + tl.arange(0, WIDE)
    total = tl.zeros((TALL, WIDE), dtype=tl.float32)
    begin = tl.program_id(1) * share
    for first in range(begin, tl.minimum(begin + share, rows), STEP):
        if deltas[0] is not None:
            total = add_pair(
                total, of_layer(deltas, tile, TILES), of_layer(delta_strides, tile, TILES), of_layer(hs, tile, TILES),
                of_layer(h_strides, tile, TILES), rows, first, n, k, N, K, STEP, PRECISION,
            )  # fmt: skip
        if gs[0] is not None:
            total = add_pair(
                total, of_layer(gs, tile, TILES), of_layer(g_strides, tile, TILES), of_layer(vs, tile, TILES),
                of_layer(v_strides, tile, TILES), rows, first, n, k, N, K, STEP, PRECISION,
            )  # fmt: skip
    out_ptr = of_layer(outs, tile, TILES) + tl.program_id(1).to(tl.int64) * out_stride
    place = out_ptr + n[:, None] * K + k[None, :]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=(n[:, None] < N) & (k[None, :] < K))


@triton.jit
def add_partials_kernel(partial_ptr, gradients, count, PLACES: tl.constexpr, SIZE: tl.constexpr):
    """The gradients of all layers, that of layer l from PLACES[l] on: the sums of `count` parts, in their order."""
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    for l in tl.static_range(0, len(PLACES) - 1):
        keep = place < PLACES[l + 1] - PLACES[l]
        total = tl.zeros((SIZE,), dtype=tl.float32)
        for index in range(count):
            there = partial_ptr + tl.cast(index, tl.int64) * PLACES[len(PLACES) - 1] + PLACES[l] + place
            total += tl.load(there, mask=keep, other=0)
        tl.store(gradients[l] + place, total.to(gradients[l].dtype.element_ty), mask=keep)


def weight_gradients(
    parts: Iterable[Sequence[Pairs]], count: int, rows: int, two_chains: bool, found: Sequence[Tensor]
) -> None:
    """found[l] [N, K] = the sum of the layer's pairs over `count` parts of the batch, none of more than `rows`.

    A part gives the pairs of all layers in the order of found, and may use the memory of the part before.
    """
    shapes = tuple((t.shape[0], t.shape[1]) for t in found)
    like, places = found[0], _places(shapes)
    precision = input_precision(like.dtype)
    table = tile(like.dtype, precision, architecture(like.device))
    shape = rows, *(side for sides in shapes for side in sides)
    family = f"weight_gradients-{kind(like.dtype, precision)}"
    config = chosen(family, "weight_gradients", like.device, like.dtype, shape, table, f"{1 + two_chains} chains")
    constants = {**_constants(shapes, config), "PRECISION": precision}
    tiles = constants["TILES"][-1]
    share = _share(rows, tiles, config.blocks["STEP"], multiprocessors(like.device))
    splits = triton.cdiv(rows, share)
    partial = torch.empty(count * splits, places[-1], dtype=torch.float32, device=like.device)
    for part, pairs in enumerate(parts):
        sums = partial[part * splits].split([t.numel() for t in found]) if len(partial) > 1 else found
        some = pairs[0].g if pairs[0].g is not None else pairs[0].delta
        assert some is not None, "a chain was given"
        weight_gradients_kernel[(tiles, splits)](
            *(argument for chain in zip(*pairs, strict=True) for argument in _matrices(chain)),
            *(tuple(sums), places[-1], len(some), share),
            **constants,
            **config.blocks,
            num_warps=config.num_warps,
            num_stages=stages(config, two_chains),
        )
    if len(partial) > 1:
        add_partials_kernel[(triton.cdiv(max(t.numel() for t in found), REDUCED),)](
            partial, tuple(found), len(partial), PLACES=places, SIZE=REDUCED
        )


def _matrices(tensors: Sequence[Tensor | None]) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
    """The matrices of a chain by layer, and the elements from row to row of each."""
    found = tuple(None if t is None else perceptron.row_major(t) for t in tensors)
    return found, tuple(None if t is None else t.stride(0) for t in found)


def tile(dtype: torch.dtype, precision: str, arch: str) -> Config:
    """The table's configuration of all gradients, before `stages`."""
    return configs(f"weight_gradients-{kind(dtype, precision)}", arch)[0]


def _places(shapes: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Where the gradients of these shapes begin, side by side, and the end of the last."""
    return (0, *itertools.accumulate(n * k for n, k in shapes))


def _constants(shapes: Sequence[tuple[int, int]], config: Config) -> dict[str, Any]:
    """The constants of the kernel for gradients of these shapes."""
    tall, wide = config.blocks["TALL"], config.blocks["WIDE"]
    tiles = itertools.accumulate(triton.cdiv(n, tall) * triton.cdiv(k, wide) for n, k in shapes)
    return {"NS": tuple(n for n, _ in shapes), "KS": tuple(k for _, k in shapes), "TILES": (0, *tiles)}


def _share(rows: int, tiles: int, step: int, processors: int) -> int:
    """Rows of a split: two programs to a multiprocessor, but whole steps, and none for a few rows."""
    splits = max(1, min(2 * processors // tiles, triton.cdiv(rows, SHORTEST_SHARE)))
    return triton.cdiv(triton.cdiv(rows, splits), step) * step


def _variants() -> Iterator[Variant]:
    """With one chain, and with two where there is more than one output, into the sums of splits."""
    for (name, widths), (dtype, precision) in itertools.product(perceptron.NETWORKS.items(), PRECISIONS):
        shapes, two = [(n, k) for k, n in itertools.pairwise(widths)], widths[-1] > 1
        choices = {arch: tile(DTYPES[dtype], precision, arch) for arch in ARCHITECTURES}
        layers, none = len(shapes), (None,) * len(shapes)
        chains = dict.fromkeys((("deltas", "hs") if two else ()) + ("gs", "vs"), (POINTERS[dtype],) * layers)
        strides = {f"{name[:-1]}_strides": ("i32",) * layers for name in chains}
        absent = {} if two else dict.fromkeys(("deltas", "hs", "delta_strides", "h_strides"), none)
        numbers = dict.fromkeys(("out_stride", "rows", "share"), "i32")
        for config, archs in by_config(choices.__getitem__):
            yield Variant.of(
                *(weight_gradients_kernel, replace(config, num_stages=stages(config, two)), dtype),
                {**chains, **strides, **absent, "outs": ("*fp32",) * layers, **numbers},
                {**_constants(shapes, config), "PRECISION": precision},
                divisible=(*chains, *(strides if name != perceptron.ODD else ("v_strides",)), "share"),
                what=config_name(dtype, precision, name, "two-chains" if two else "one-chain"),
                gemm=True,
                architectures=archs,
            )


def _sums() -> Iterator[Variant]:
    """Of the kernel that adds up."""
    for (name, widths), (dtype, pointer) in itertools.product(perceptron.NETWORKS.items(), POINTERS.items()):
        layers = len(widths) - 1
        yield Variant.of(
            *(add_partials_kernel, Config(f"e{REDUCED}", {"SIZE": REDUCED}, 4), dtype),
            {"partial_ptr": "*fp32", "gradients": (pointer,) * layers, "count": "i32"},
            {"PLACES": _places((n, k) for k, n in itertools.pairwise(widths))},
            divisible=("partial_ptr", "gradients"),
            what=name,
        )


VARIANTS = [*_variants(), *_sums()]
