"""dual_weight_grad: the weight gradient of one or two chains in one accumulation. Twin of the reference.

Where the result has too few tiles to occupy the device, the batch is split among programs, and a second launch adds up
what they found, in an order that does not depend on chance.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import Config
from .launching import run
from .precision import add_product, input_precision
from .products import as_rows, config_name, configuration, configurations, multiprocessors, tile_of
from .variant import POINTERS, Variant

REDUCED = 256  # elements that a program adds up
SHORTEST_SPLIT = 512  # rows of the batch


@triton.jit
def add_pair(
    total, left_ptr, left_stride, right_ptr, right_stride, rows, first, n, k, N, K, STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """total + left.T right over the rows first .. first + STEP of [rows, N] and [rows, K]."""
    row = first + tl.arange(0, STEP)
    place = row.to(tl.int64)
    left = tl.load(
        left_ptr + place[None, :] * left_stride + n[:, None], mask=(row[None, :] < rows) & (n[:, None] < N), other=0
    )
    right = tl.load(
        right_ptr + place[:, None] * right_stride + k[None, :], mask=(row[:, None] < rows) & (k[None, :] < K), other=0
    )
    return add_product(left, right, total, PRECISION)


@triton.jit
def dual_weight_grad_kernel(
    delta_ptr, delta_stride, h_ptr, h_stride, g_ptr, g_stride, v_ptr, v_stride, out_ptr, rows, own_rows, share, N, K,
    PRECISION: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out [splits, N, K]: delta.T h + g.T v over the split's share of the rows. g None: one chain."""
    tile_row, tile_column = tile_of(tl.program_id(0), N, K, TALL, WIDE, GROUP)
    n = tile_row * TALL + tl.arange(0, TALL)
    k = tile_column * WIDE + tl.arange(0, WIDE)
    total = tl.zeros((TALL, WIDE), dtype=tl.float32)
    begin = tl.program_id(1) * share
    for first in range(begin, tl.minimum(begin + share, tl.maximum(rows, own_rows)), STEP):
        total = add_pair(
            total, delta_ptr, delta_stride, h_ptr, h_stride, rows, first, n, k, N, K, STEP, PRECISION
        )  # fmt: skip
        if g_ptr is not None:
            total = add_pair(total, g_ptr, g_stride, v_ptr, v_stride, own_rows, first, n, k, N, K, STEP, PRECISION)
    out_ptr += tl.program_id(1).to(tl.int64) * N * K
    place = out_ptr + n.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=(n[:, None] < N) & (k[None, :] < K))


@triton.jit
def add_splits_kernel(partial_ptr, out_ptr, splits, elements, SIZE: tl.constexpr):
    """out [elements] = the sum of partial [splits, elements], in the order of the splits."""
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), dtype=tl.float32)
    for split in range(splits):
        total += tl.load(partial_ptr + tl.cast(split, tl.int64) * elements + place, mask=place < elements, other=0)
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=place < elements)


def stages(config: Config, two_chains: bool) -> int:
    """Of the pipeline: two chains read twice as much a step, for which shared memory has no room at every depth."""
    return max(1, config.num_stages - 1) if two_chains else config.num_stages


def dual_weight_grad(delta: Tensor, h: Tensor, g: Tensor | None = None, v: Tensor | None = None) -> Tensor:
    """delta.T @ h + g.T @ v. Shapes and meaning: the reference's; in fp32, bf16 or fp16."""
    delta, h = as_rows(delta), as_rows(h)
    own = None if g is None or v is None else (as_rows(g), as_rows(v))
    (rows, n), k, own_rows = delta.shape, h.shape[1], 0 if own is None else len(own[0])
    out = torch.empty(n, k, dtype=h.dtype, device=h.device)
    if out.numel() == 0 or max(rows, own_rows) == 0:
        return out.zero_()
    precision, processors = input_precision(h.dtype), multiprocessors(h.device)
    sizes, what = (n, k, max(rows, own_rows)), "one-chain" if own is None else "two-chains"
    config = configuration("dual_weight_grad", h.device, h.dtype, precision, sizes, what)
    tiles = triton.cdiv(n, config.blocks["TALL"]) * triton.cdiv(k, config.blocks["WIDE"])
    splits = max(1, min(processors // tiles, triton.cdiv(max(rows, own_rows), SHORTEST_SPLIT)))
    step = config.blocks["STEP"]
    share = triton.cdiv(triton.cdiv(max(rows, own_rows), splits), step) * step
    splits = triton.cdiv(max(rows, own_rows), share)
    found = out if splits == 1 else torch.empty(splits, n, k, dtype=torch.float32, device=h.device)
    run(
        *(dual_weight_grad_kernel, (tiles, splits), h),
        *(delta, delta.stride(0), h, h.stride(0)),
        *((None, 0, None, 0) if own is None else (own[0], own[0].stride(0), own[1], own[1].stride(0))),
        *(found, rows, own_rows, share, n, k),
        PRECISION=precision,
        **config.blocks,
        num_warps=config.num_warps,
        num_stages=stages(config, own is not None),
    )
    if splits > 1:
        run(add_splits_kernel, (triton.cdiv(n * k, REDUCED),), h, found, out, splits, n * k, SIZE=REDUCED)
    return out


def _variants() -> Iterator[Variant]:
    """With two chains, summed in splits, and with one, summed at once."""
    for config, dtype, precision, archs in configurations():
        for chains in (1, 2):
            pairs = ("delta", "h", "g", "v")[: 2 * chains]
            pointers = {f"{name}_ptr": POINTERS[dtype] for name in pairs}
            pointers["out_ptr"] = "*fp32" if chains == 2 else POINTERS[dtype]
            strides = [f"{name}_stride" for name in pairs]
            absent = {} if chains == 2 else {"g_ptr": None, "v_ptr": None, "g_stride": 0, "v_stride": 0}
            sizes = dict.fromkeys((*strides, "rows", "own_rows", "share", "N", "K"), "i32")
            staged = replace(config, num_stages=stages(config, chains == 2))
            yield Variant.of(
                *(dual_weight_grad_kernel, staged, dtype, {**pointers, **sizes}, {**absent, "PRECISION": precision}),
                divisible=(*pointers, *strides, "share", "N", "K"),
                what=config_name(dtype, precision, "one-chain" if chains == 1 else "two-chains"),
                gemm=True,
                architectures=archs,
            )


def _sums() -> Iterator[Variant]:
    """Of the kernel that adds up."""
    for dtype, pointer in POINTERS.items():
        pointers = {"partial_ptr": "*fp32", "out_ptr": pointer}
        sizes = {"splits": "i32", "elements": "i32"}
        config = Config(f"e{REDUCED}", {"SIZE": REDUCED}, 4)
        yield Variant.of(
            *(add_splits_kernel, config, dtype, {**pointers, **sizes}, {}), divisible=(*pointers, "elements")
        )


VARIANTS = [*_variants(), *_sums()]
