"""mlp_attribute_backward: weight gradients of a perceptron in one launch, and one that adds up what programs found.

Twin of the reference of that name. A program takes spans of rows through the cotangent sweep of the task and the
tangent sweep of the attribution. Each layer's pairs are multiplied as soon as both are there, over the whole span, and
added to the program's own gradients, in an order that does not depend on chance.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import layers, perceptron
from .configs import Config
from .perceptron import masked, product, store_rows
from .precision import add_product, input_precision
from .products import multiprocessors
from .variant import Variant

REDUCED = 256  # elements that a program adds up


@triton.jit
def add_pairs(
    g_ptr, g_stride, v_ptr, v_stride, valid, out_ptr, begun,
    N: tl.constexpr, K: tl.constexpr, SIDE: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [N, K] (+)= g.T v over rows [valid, N] and [valid, K]; added to what is there if `begun`."""
    for first_n in range(0, N, SIDE):
        for first_k in range(0, K, SIDE):
            n = first_n + tl.arange(0, SIDE)
            k = first_k + tl.arange(0, SIDE)
            total = tl.zeros((SIDE, SIDE), dtype=tl.float32)
            for first in range(0, valid, STEP):
                row = first + tl.arange(0, STEP)
                g = tl.load(
                    g_ptr + row[None, :] * g_stride + n[:, None],
                    mask=(row[None, :] < valid) & (n[:, None] < N),
                    other=0,
                )
                v = tl.load(
                    v_ptr + row[:, None] * v_stride + k[None, :],
                    mask=(row[:, None] < valid) & (k[None, :] < K),
                    other=0,
                )
                total = add_product(g, v, total, PRECISION)
            keep = (n[:, None] < N) & (k[None, :] < K)
            place = out_ptr + n[:, None] * K + k[None, :]
            total += tl.load(place, mask=keep & begun, other=0)
            tl.store(place, total, mask=keep)


@triton.jit
def start_tangents(x_ptr, x_stride, a_ptr, a_stride, s_ptr, s_stride, c_ptr, c_stride, out_ptr, out_stride, valid,
                   COUNT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """v_0 = (c a + s) x for rows [valid, COUNT]; an absent c is one, an absent a or s zero."""
    for first in range(0, valid, ROWS):
        row = first + tl.arange(0, ROWS)
        for start in range(0, COUNT, BLOCK):
            column = start + tl.arange(0, BLOCK)
            keep = (row[:, None] < valid) & (column[None, :] < COUNT)
            factor = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
            if a_ptr is not None:
                factor += tl.load(a_ptr + row[:, None] * a_stride + column[None, :], mask=keep, other=0)
                if c_ptr is not None:
                    factor *= tl.load(c_ptr + row * c_stride, mask=row < valid, other=0)[:, None]
            if s_ptr is not None:
                factor += tl.load(s_ptr + row * s_stride, mask=row < valid, other=0)[:, None]
            x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=keep, other=0)
            v = (factor * x).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + row[:, None] * out_stride + column[None, :], v, mask=keep)


@triton.jit
def sweep_span(
    in_ptr, in_stride, weight_ptr, along, across, bits_ptr, out_ptr, out_stride, valid,
    DEPTH: tl.constexpr, COUNT: tl.constexpr, SLOPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = m * (in W) for the rows [valid, DEPTH] of a span; bits None: without a mask."""
    for first in range(0, valid, ROWS):
        for start in range(0, COUNT, BLOCK):
            t = product(
                in_ptr + first * in_stride, in_stride, weight_ptr, along, across, valid - first, start,
                DEPTH, COUNT, ROWS, BLOCK, STEP, PRECISION,
            )  # fmt: skip
            if bits_ptr is not None:
                t = masked(t, bits_ptr + first * ((COUNT + 31) // 32), valid - first, start, COUNT, SLOPE)
            store_rows(t, out_ptr + first * out_stride, out_stride, valid - first, start, COUNT)


@triton.jit
def task_chain(
    delta_ptr, delta_stride, delta_end_ptr, scratch_ptr, partial_ptr, weights, bits, h, h_strides, first, valid,
    span_rows, begun, SLOPES: tl.constexpr, WIDTHS: tl.constexpr, BLOCKS: tl.constexpr, PLACES: tl.constexpr,
    DOWN: tl.constexpr, WIDEST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """delta_{l-1} = m_{l-1} * (W_l^T delta_l) for a span of rows, to the input of layer DOWN, and delta_l.T h_{l-1}."""
    LAST: tl.constexpr = len(WIDTHS) - 1
    for l in tl.static_range(LAST, 0, -1):
        if l == LAST:
            in_ptr = delta_ptr + first * delta_stride
            in_stride = delta_stride
        else:
            in_ptr = scratch_ptr + l % 2 * span_rows * WIDEST
            in_stride = WIDEST
        if PLACES[l + 1] > PLACES[l]:
            add_pairs(
                in_ptr, in_stride, h[l] + first * h_strides[l], h_strides[l], valid, partial_ptr + PLACES[l], begun,
                WIDTHS[l], WIDTHS[l - 1], BLOCK, STEP, PRECISION,
            )  # fmt: skip
        if l >= DOWN:
            if l == 1:
                sweep_span(
                    in_ptr, in_stride, weights[0], WIDTHS[0], 1, None, delta_end_ptr + first * WIDTHS[0], WIDTHS[0],
                    valid, WIDTHS[1], WIDTHS[0], None, ROWS, BLOCKS[0], STEP, PRECISION,
                )  # fmt: skip
            else:
                sweep_span(
                    in_ptr, in_stride, weights[l - 1], WIDTHS[l - 1], 1,
                    bits[l - 1] + first * ((WIDTHS[l - 1] + 31) // 32),
                    scratch_ptr + (l - 1) % 2 * span_rows * WIDEST, WIDEST,
                    valid, WIDTHS[l], WIDTHS[l - 1], SLOPES[l - 1], ROWS, BLOCKS[l - 1], STEP, PRECISION,
                )  # fmt: skip
        tl.debug_barrier()


@triton.jit
def own_chain(
    v_end_ptr, scratch_ptr, partial_ptr, weights, bits, g, g_strides, first, valid, span_rows, begun,
    SLOPES: tl.constexpr, WIDTHS: tl.constexpr, BLOCKS: tl.constexpr, PLACES: tl.constexpr, UP: tl.constexpr,
    WIDEST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """v_l = m_l * (W_l v_{l-1}) for a span of rows, to the output of layer UP, and g_l.T v_{l-1}; v_0 is in scratch."""
    LAST: tl.constexpr = len(WIDTHS) - 1
    for l in tl.static_range(1, LAST + 1):
        in_ptr = scratch_ptr + (l - 1) % 2 * span_rows * WIDEST
        if PLACES[l + 1] > PLACES[l]:
            add_pairs(
                g[l] + first * g_strides[l], g_strides[l], in_ptr, WIDEST, valid, partial_ptr + PLACES[l], begun,
                WIDTHS[l], WIDTHS[l - 1], BLOCK, STEP, PRECISION,
            )  # fmt: skip
        if l <= UP:
            if l == LAST:
                sweep_span(
                    in_ptr, WIDEST, weights[l - 1], 1, WIDTHS[l - 1], None, v_end_ptr + first * WIDTHS[l], WIDTHS[l],
                    valid, WIDTHS[l - 1], WIDTHS[l], None, ROWS, BLOCKS[l], STEP, PRECISION,
                )  # fmt: skip
            else:
                sweep_span(
                    in_ptr, WIDEST, weights[l - 1], 1, WIDTHS[l - 1], bits[l] + first * ((WIDTHS[l] + 31) // 32),
                    scratch_ptr + l % 2 * span_rows * WIDEST, WIDEST,
                    valid, WIDTHS[l - 1], WIDTHS[l], SLOPES[l], ROWS, BLOCKS[l], STEP, PRECISION,
                )  # fmt: skip
        tl.debug_barrier()


@triton.jit
def mlp_attribute_backward_kernel(
    x_ptr, x_stride, a_ptr, a_stride, s_ptr, s_stride, c_ptr, c_stride, delta_ptr, delta_stride,
    v_end_ptr, delta_end_ptr, scratch_ptr, partial_ptr, weights, bits, g, g_strides, h, h_strides, begin, rows,
    span_rows, SLOPES: tl.constexpr, WIDTHS: tl.constexpr, BLOCKS: tl.constexpr, PLACES: tl.constexpr, UP: tl.constexpr,
    DOWN: tl.constexpr, WIDEST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The partial gradients of each program, [programs, PLACES[-1]], that of layer l from PLACES[l] on.

    A program takes a span of the rows `begin` .. `rows`, and adds to what it found in the launches before.
    """
    scratch_ptr += tl.program_id(0).to(tl.int64) * 2 * span_rows * WIDEST
    partial_ptr += tl.program_id(0).to(tl.int64) * PLACES[len(PLACES) - 1]
    first = begin + tl.program_id(0).to(tl.int64) * span_rows
    valid = tl.minimum(span_rows, rows - first).to(tl.int32)
    begun = begin > 0
    if delta_ptr is not None:
        task_chain(
            delta_ptr, delta_stride, delta_end_ptr, scratch_ptr, partial_ptr, weights, bits, h, h_strides, first,
            valid, span_rows, begun, SLOPES, WIDTHS, BLOCKS, PLACES, DOWN, WIDEST, ROWS, BLOCK, STEP, PRECISION,
        )  # fmt: skip
        begun = tl.full((), True, tl.int1)
    if x_ptr is not None:
        start_tangents(
            x_ptr + first * x_stride, x_stride, None if a_ptr is None else a_ptr + first * a_stride, a_stride,
            None if s_ptr is None else s_ptr + first * s_stride, s_stride,
            None if c_ptr is None else c_ptr + first * c_stride, c_stride,
            scratch_ptr, WIDEST, valid, WIDTHS[0], ROWS, BLOCKS[0],
        )  # fmt: skip
        tl.debug_barrier()
        own_chain(
            v_end_ptr, scratch_ptr, partial_ptr, weights, bits, g, g_strides, first, valid, span_rows, begun,
            SLOPES, WIDTHS, BLOCKS, PLACES, UP, WIDEST, ROWS, BLOCK, STEP, PRECISION,
        )  # fmt: skip


@triton.jit
def add_partials_kernel(partial_ptr, gradients, programs, PLACES: tl.constexpr, SIZE: tl.constexpr):
    """The gradients by layer: the sums of what the programs found, in their order."""
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    for l in tl.static_range(1, len(PLACES) - 1):
        if gradients[l] is not None:
            keep = place < PLACES[l + 1] - PLACES[l]
            total = tl.zeros((SIZE,), dtype=tl.float32)
            for program in range(programs):
                there = partial_ptr + tl.cast(program, tl.int64) * PLACES[len(PLACES) - 1] + PLACES[l] + place
                total += tl.load(there, mask=keep, other=0)
            tl.store(gradients[l] + place, total.to(gradients[l].dtype.element_ty), mask=keep)


def _span(batch: int, rows: int, processors: int) -> int:
    """Rows that a program takes at once: an even share of the batch, in whole tiles."""
    share = triton.cdiv(triton.cdiv(batch, processors), rows) * rows
    return min(share, perceptron.LONGEST_SPAN // rows * rows)


def _column(t: Tensor | None) -> tuple[Tensor | None, int]:
    """A column [B, 1] and the elements from row to row."""
    return (None, 0) if t is None else (t, t.stride(0))


def _matrix(t: Tensor | None) -> tuple[Tensor | None, int]:
    """A matrix with unit column stride and the elements from row to row."""
    if t is None:
        return None, 0
    t = perceptron.row_major(t)
    return t, t.stride(0)


def _matrices(
    trained: Sequence[int], tensors: Sequence[Tensor], last: int
) -> tuple[tuple[Tensor | None, ...], tuple[int, ...]]:
    """The matrices by layer, and the elements from row to row of each."""
    found = [_matrix(t) for t in perceptron.by_layer(trained[: len(tensors)], tensors, last)]
    return tuple(t for t, _ in found), tuple(stride for _, stride in found)


def mlp_attribute_backward(
    x: Tensor | None,
    a: Tensor | None,
    s: Tensor | None,
    c: Tensor | None,
    delta: Tensor | None,
    weights: Sequence[Tensor],
    slopes: Sequence[float],
    bits: Sequence[Tensor],
    g: Sequence[Tensor],
    h: Sequence[Tensor],
    trained: Sequence[int],
    output_tangent: bool = False,
    input_cotangent: bool = False,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Shapes and meaning: the reference's. Networks that one launch does not serve go layer by layer."""
    if not perceptron.serves(weights):
        chains, ends = (x, a, s, c, delta), (output_tangent, input_cotangent)
        return layers.backward(*chains, weights, slopes, bits, g, h, trained, *ends)
    like = weights[0]
    start = x if x is not None else delta
    assert start is not None, "a chain was given"
    batch, last = len(start), len(weights)
    weights = [w.contiguous() for w in weights]
    chosen = perceptron.sizes_for(weights)
    rows, widths = chosen.config.blocks["ROWS"], chosen.widths
    v_end = like.new_empty((batch, widths[last]) if output_tangent else 0)
    delta_end = like.new_empty((batch, widths[0]) if input_cotangent else 0)
    found = [torch.empty_like(weights[k - 1]) for k in trained]
    if batch == 0 or not (trained or output_tangent or input_cotangent):
        return [t.zero_() for t in found], v_end, delta_end
    gradients = perceptron.by_layer(trained, found, last)
    spans = _span(batch, rows, multiprocessors(like.device))
    programs = min(triton.cdiv(batch, spans), multiprocessors(like.device))
    lengths = [0 if t is None else t.numel() for t in gradients[1:]]
    places = (0, 0, *accumulate(lengths))
    partial = torch.empty(programs, places[-1], dtype=torch.float32, device=like.device)
    scratch = like.new_empty(programs, 2, spans, chosen.widest)
    with torch.cuda.device_of(like):
        for begin in range(0, batch, programs * spans):
            mlp_attribute_backward_kernel[(min(triton.cdiv(batch - begin, spans), programs),)](
                *(*_matrix(x), *_matrix(a), *_column(s), *_column(c), *_matrix(delta)),
                *(v_end, delta_end, scratch, partial, tuple(weights), (None, *(m.contiguous() for m in bits), None)),
                *_matrices(trained, g, last),
                *_matrices(trained, h, last),
                *(begin, batch, spans),
                PLACES=places,
                UP=last if output_tangent else max(trained, default=1) - 1,
                DOWN=1 if input_cotangent else min(trained, default=last) + 1,
                **chosen.constants(perceptron.kernel_slopes(slopes)),
                **chosen.config.blocks,
                PRECISION=input_precision(like.dtype),
                num_warps=chosen.config.num_warps,
                num_stages=chosen.config.num_stages,
            )
        if trained:
            add_partials_kernel[(triton.cdiv(max(lengths), REDUCED),)](
                partial, gradients, programs, PLACES=places, SIZE=REDUCED
            )
    return found, v_end, delta_end


def _variants() -> Iterator[Variant]:
    """With one chain, all layers trained, and with two where there is more than one output."""
    for one in perceptron.compiled():
        widths, depth = one.sizes.widths, one.depth
        absent = dict.fromkeys(("s_ptr", "s_stride", "c_ptr", "c_stride"))
        chains = {"task": one.pointer} if widths[-1] > 1 else {}
        if not chains:
            absent |= dict.fromkeys(("delta_ptr", "delta_stride"))
        values = ("x_ptr", "a_ptr", "v_end_ptr", "delta_end_ptr", "scratch_ptr", *(("delta_ptr",) if chains else ()))
        numbers = ("x_stride", "a_stride", "begin", "rows", "span_rows", *(("delta_stride",) if chains else ()))
        layers = (None, *(one.pointer,) * depth)
        strides = (None, *("i32",) * depth)
        none = (None,) * (depth + 1)
        signature: dict[str, Any] = dict.fromkeys(values, one.pointer) | dict.fromkeys(numbers, "i32")
        signature |= {"partial_ptr": "*fp32", "g": layers, "g_strides": strides}
        signature |= {"h": layers, "h_strides": strides} if chains else {"h": none, "h_strides": none}
        places = (0, 0, *accumulate(k * n for k, n in pairwise(widths)))
        constants = {**absent, "PLACES": places, "UP": depth - 1, "DOWN": 2}
        partial = Config(f"e{REDUCED}", {"SIZE": REDUCED}, 4)
        yield Variant.of(
            *(add_partials_kernel, partial, one.dtype),
            {"partial_ptr": "*fp32", "gradients": layers, "programs": "i32"},
            {"PLACES": places},
            divisible=("partial_ptr", "gradients"),
            what=one.name,
        )
        yield one.variant(mlp_attribute_backward_kernel, signature, constants, "two-chains" if chains else "one-chain")


VARIANTS = list(_variants())
