"""gini: the ranks, the coefficient and its gradient once a vector is sorted. Twin of `kernels/reference/gini.py`.

Two launches: the first finds every element's rank and leaves sums of a few blocks each, the second adds these up, in
every program alike, and writes the gradient. The order of every sum is fixed, and sums are taken in fp64, for a rank
and the coefficient nearly cancel in the gradient.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import architecture, by_config, configs
from .launching import run
from .tuned import chosen
from .variant import POINTERS, Variant

PARTIALS = 512  # sums that the first launch leaves at most
_MOST = 2**31 - 2**20  # elements, whose ranks and places an int32 holds


@triton.jit
def bound(sorted_ptr, value, low, high, valid, steps, ABOVE: tl.constexpr):
    """First place of [low, high) whose element is not less than `value`, or is ABOVE it; high if there is none."""
    for _ in range(steps):
        middle = low + (high - low) // 2
        some = valid & (low < high)
        found = tl.load(sorted_ptr + middle, mask=some, other=0)
        right = (found <= value) if ABOVE else (found < value)
        low = tl.where(some & right, middle + 1, low)
        high = tl.where(some & (right == 0), middle, high)
    return low


@triton.jit
def gini_ranks_kernel(sorted_ptr, rank_ptr, partial_ptr, n, steps, BLOCK: tl.constexpr):
    """Ranks of the sorted values [n] and, of the blocks of each program, the sums of values and of rank times value.

    partial: fp64 [2, programs]. steps: those of a binary search among n.
    """
    total = tl.zeros((BLOCK,), tl.float64)
    ranked = tl.zeros((BLOCK,), tl.float64)
    for start in range(tl.program_id(0) * BLOCK, n, tl.num_programs(0) * BLOCK):
        place = start + tl.arange(0, BLOCK)
        valid = place < n
        raw = tl.load(sorted_ptr + place, mask=valid, other=0)
        before = tl.load(sorted_ptr + place - 1, mask=valid & (place > 0), other=0)
        after = tl.load(sorted_ptr + place + 1, mask=place + 1 < n, other=0)
        tied = valid & (((raw == before) & (place > 0)) | ((raw == after) & (place + 1 < n)))
        below, upto = place, place + 1
        if tl.max(tied.to(tl.int32), axis=0) > 0:
            below = bound(sorted_ptr, raw, place * 0, place, tied, steps, False)
            upto = bound(sorted_ptr, raw, place + 1, place * 0 + n, tied, steps, True)
            below, upto = tl.where(tied, below, place), tl.where(tied, upto, place + 1)
        rank = below + (upto - n)  # elements below less elements above
        value = raw.to(tl.float32).to(tl.float64)
        total += value
        ranked += tl.where(valid, rank, 0).to(tl.float64) * value
        tl.store(rank_ptr + place, rank, mask=valid)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(total, axis=0))
    tl.store(partial_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(ranked, axis=0))


@triton.jit
def gini_gradient_kernel(
    rank_ptr,
    order_ptr,
    partial_ptr,
    value_ptr,
    gradient_ptr,
    n,
    programs,
    PARTIALS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Coefficient [] and gradient [n], in the order before sorting, from ranks [n] and sums [2, programs]."""
    part = tl.arange(0, PARTIALS)
    total = tl.sum(tl.load(partial_ptr + part, mask=part < programs, other=0), axis=0)
    ranked = tl.sum(tl.load(partial_ptr + programs + part, mask=part < programs, other=0), axis=0)
    count = tl.cast(n, tl.float64)
    some = total != 0
    safe = tl.where(some, total, 1.0)
    value = tl.where(some, ranked / (count * safe), 0.0)
    if tl.program_id(0) == 0:
        tl.store(value_ptr, value.to(tl.float32).to(value_ptr.dtype.element_ty))
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = place < n
    rank = tl.load(rank_ptr + place, mask=valid, other=0).to(tl.float64)
    target = tl.load(order_ptr + place, mask=valid, other=0)
    gradient = tl.where(some, (rank / count - value) / safe, 0.0)
    tl.store(gradient_ptr + target, gradient.to(tl.float32).to(gradient_ptr.dtype.element_ty), mask=valid)


def gini(a: Tensor) -> Any:
    """Gini coefficient [] and its gradient [n] of a nonnegative vector a [n]; fp32, bf16 or fp16."""
    n = a.numel()
    if n > _MOST:
        return NotImplemented
    value, gradient = a.new_empty(()), a.new_empty(n)
    if n == 0:
        return value.zero_(), gradient
    config = chosen("gini", "gini", a.device, a.dtype, (n,), configs("gini", architecture(a.device))[0])
    block = config.blocks["BLOCK"]
    blocks = triton.cdiv(n, block)
    programs = min(blocks, PARTIALS)
    ordered, order = a.contiguous().sort()
    ranks = torch.empty(n, dtype=torch.int32, device=a.device)
    partial = torch.empty((2, programs), dtype=torch.float64, device=a.device)
    run(
        *(gini_ranks_kernel, (programs,), a),
        *(ordered, ranks, partial, n, n.bit_length()),
        BLOCK=block,
        num_warps=config.num_warps,
    )
    run(
        *(gini_gradient_kernel, (blocks,), a),
        *(ranks, order, partial, value, gradient, n, programs),
        PARTIALS=PARTIALS,
        BLOCK=block,
        num_warps=config.num_warps,
    )
    return value, gradient


def _variants() -> Iterator[Variant]:
    for config, archs in by_config(lambda arch: configs("gini", arch)[0]):
        for dtype, pointer in POINTERS.items():
            ranks = {"sorted_ptr": pointer, "rank_ptr": "*i32", "partial_ptr": "*fp64"}
            yield Variant.of(
                *(gini_ranks_kernel, config, dtype, {**ranks, "n": "i32", "steps": "i32"}, {}),
                divisible=(*ranks,),
                architectures=archs,
            )
            gradient = {"rank_ptr": "*i32", "order_ptr": "*i64", "partial_ptr": "*fp64"}
            gradient |= {"value_ptr": pointer, "gradient_ptr": pointer}
            yield Variant.of(
                *(gini_gradient_kernel, config, dtype, {**gradient, "n": "i32", "programs": "i32"}),
                constants={"PARTIALS": PARTIALS},
                divisible=(*gradient,),
                architectures=archs,
            )


VARIANTS = [*_variants()]
