"""mlp_attribute_backward: tangent and cotangent sweep of a perceptron in one launch, and the gradients of its weights.

Twin of the reference of that name. A program takes rows of the batch up all layers as tangents and down as cotangents
of the task; what a layer's gradient needs of them it leaves in the second-level cache for the launch that multiplies
the pairs of all layers (`weight_gradients`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import layers, perceptron
from .perceptron import store_rows, sweep_rows
from .precision import input_precision
from .variant import Variant
from .weight_gradients import Pairs, weight_gradients


@triton.jit
def start_tangents(
    x_ptr, x_stride, a_ptr, a_stride, s_ptr, s_stride, c_ptr, c_stride, out_ptr, out_stride, valid,
    COUNT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """v_0 = (c a + s) x for rows [valid, COUNT]; an absent c is one, an absent a or s zero."""
    row = tl.arange(0, ROWS)
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
        store_rows(factor * x, out_ptr, out_stride, valid, start, COUNT)


@triton.jit
def cotangent_rows(
    delta_ptr, delta_stride, delta_end_ptr, deltas_ptr, weights, bits, first, valid,
    SLOPES: tl.constexpr, WIDTHS: tl.constexpr, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr, DOWN: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """delta_{l-1} = m_{l-1} * (W_l^T delta_l) for these rows, to the input of layer DOWN; all are left in deltas."""
    LAST: tl.constexpr = len(WIDTHS) - 1
    TOTAL: tl.constexpr = COLUMNS[LAST]
    for l in tl.static_range(LAST, DOWN - 1, -1):
        if l == LAST:
            in_ptr = delta_ptr + first * delta_stride
            in_stride = delta_stride
        else:
            in_ptr = deltas_ptr + COLUMNS[l]
            in_stride = TOTAL
        if l == 1:
            sweep_rows(
                in_ptr, in_stride, weights[0], WIDTHS[0], 1, None, delta_end_ptr + first * WIDTHS[0], WIDTHS[0],
                valid, WIDTHS[1], WIDTHS[0], None, ROWS, BLOCKS[0], STEP, PRECISION,
            )  # fmt: skip
        else:
            sweep_rows(
                in_ptr, in_stride, weights[l - 1], WIDTHS[l - 1], 1,
                bits[l - 1] + first * ((WIDTHS[l - 1] + 31) // 32), deltas_ptr + COLUMNS[l - 1], TOTAL,
                valid, WIDTHS[l], WIDTHS[l - 1], SLOPES[l - 1], ROWS, BLOCKS[l - 1], STEP, PRECISION,
            )  # fmt: skip
        tl.debug_barrier()


@triton.jit
def tangent_rows(
    v_end_ptr, tangents_ptr, weights, bits, first, valid, SLOPES: tl.constexpr, WIDTHS: tl.constexpr,
    BLOCKS: tl.constexpr, COLUMNS: tl.constexpr, UP: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """v_l = m_l * (W_l v_{l-1}) for these rows, to the output of layer UP; all are left in tangents, where v_0 is."""
    LAST: tl.constexpr = len(WIDTHS) - 1
    TOTAL: tl.constexpr = COLUMNS[LAST]
    for l in tl.static_range(1, UP + 1):
        in_ptr = tangents_ptr + COLUMNS[l - 1]
        if l == LAST:
            sweep_rows(
                in_ptr, TOTAL, weights[l - 1], 1, WIDTHS[l - 1], None, v_end_ptr + first * WIDTHS[l], WIDTHS[l],
                valid, WIDTHS[l - 1], WIDTHS[l], None, ROWS, BLOCKS[l], STEP, PRECISION,
            )  # fmt: skip
        else:
            sweep_rows(
                in_ptr, TOTAL, weights[l - 1], 1, WIDTHS[l - 1], bits[l] + first * ((WIDTHS[l] + 31) // 32),
                tangents_ptr + COLUMNS[l], TOTAL,
                valid, WIDTHS[l - 1], WIDTHS[l], SLOPES[l], ROWS, BLOCKS[l], STEP, PRECISION,
            )  # fmt: skip
        tl.debug_barrier()


@triton.jit
def mlp_attribute_backward_kernel(
    x_ptr, x_stride, a_ptr, a_stride, s_ptr, s_stride, c_ptr, c_stride, delta_ptr, delta_stride,
    v_end_ptr, delta_end_ptr, tangents_ptr, deltas_ptr, weights, bits, begin, rows,
    SLOPES: tl.constexpr, WIDTHS: tl.constexpr, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr, UP: tl.constexpr,
    DOWN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Both sweeps of the rows `begin` .. `rows`, ROWS to a program.

    tangents, deltas: [rows - begin, COLUMNS[-1]], the values of layer l from column COLUMNS[l] on. Sizes as in
    `perceptron.Sizes`.
    """
    first = begin + tl.program_id(0).to(tl.int64) * ROWS
    valid = (rows - first).to(tl.int32)
    place = tl.program_id(0).to(tl.int64) * ROWS * COLUMNS[len(COLUMNS) - 1]
    if delta_ptr is not None:
        cotangent_rows(
            delta_ptr, delta_stride, delta_end_ptr, None if deltas_ptr is None else deltas_ptr + place, weights, bits,
            first, valid, SLOPES, WIDTHS, BLOCKS, COLUMNS, DOWN, ROWS, STEP, PRECISION,
        )  # fmt: skip
    if x_ptr is not None:
        start_tangents(
            x_ptr + first * x_stride, x_stride, None if a_ptr is None else a_ptr + first * a_stride, a_stride,
            None if s_ptr is None else s_ptr + first * s_stride, s_stride,
            None if c_ptr is None else c_ptr + first * c_stride, c_stride,
            tangents_ptr + place, COLUMNS[len(COLUMNS) - 1], valid, WIDTHS[0], ROWS, BLOCKS[0],
        )  # fmt: skip
        tl.debug_barrier()
        tangent_rows(
            v_end_ptr, tangents_ptr + place, weights, bits, first, valid, SLOPES, WIDTHS, BLOCKS, COLUMNS, UP,
            ROWS, STEP, PRECISION,
        )  # fmt: skip


def _column(t: Tensor | None) -> tuple[Tensor | None, int]:
    """A column [B, 1] and the elements from row to row."""
    return (None, 0) if t is None else (t, t.stride(0))


def _matrix(t: Tensor | None) -> tuple[Tensor | None, int]:
    """A matrix with unit column stride and the elements from row to row."""
    if t is None:
        return None, 0
    t = perceptron.row_major(t)
    return t, t.stride(0)


def _rows(t: Tensor | None, rows: slice) -> Tensor | None:
    """Of a matrix that may be absent."""
    return None if t is None else t[rows]


def _pairs(
    trained: Sequence[int],
    weights: Sequence[Tensor],
    columns: Sequence[int],
    deltas: Tensor | None,
    tangents: Tensor | None,
    delta: Tensor | None,
    g: Sequence[Tensor],
    h: Sequence[Tensor],
) -> list[Pairs]:
    """What the gradients of the trained layers are made of, for the same rows of everything."""
    found = []
    for place, k in enumerate(trained):
        n, width = weights[k - 1].shape
        task = delta if k == len(weights) or deltas is None else deltas[:, columns[k] : columns[k] + n]
        v = None if tangents is None else tangents[:, columns[k - 1] : columns[k - 1] + width]
        found.append(Pairs(task, None if task is None else h[place], None if v is None else g[place], v))
    return found


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
    weights, bits = [w.contiguous() for w in weights], [mask.contiguous() for mask in bits]
    like, last = weights[0], len(weights)
    start = x if x is not None else delta
    assert start is not None, "a chain was given"
    batch = len(start)
    v_end = like.new_empty((batch, weights[-1].shape[0]) if output_tangent else 0)
    delta_end = like.new_empty((batch, like.shape[1]) if input_cotangent else 0)
    found = [torch.empty_like(weights[k - 1]) for k in trained]
    if batch == 0 or not (trained or output_tangent or input_cotangent):
        return [t.zero_() for t in found], v_end, delta_end
    parts, most = range(0, batch, perceptron.LAUNCHED), min(batch, perceptron.LAUNCHED)
    chosen = perceptron.sizes_for(weights, most)
    columns = chosen.columns
    tangents = None if x is None else like.new_empty(most, columns[-1])
    deltas = None if delta is None or last == 1 else like.new_empty(most, columns[-1])
    starts = [_matrix(x), _matrix(a), _column(s), _column(c), _matrix(delta)]
    constants = chosen.constants(perceptron.kernel_slopes(slopes)) | {
        "COLUMNS": columns,
        "UP": last if output_tangent else max(trained, default=1) - 1,
        "DOWN": 1 if input_cotangent else min(trained, default=last) + 1,
    }

    def swept(begin: int) -> list[Pairs]:
        """Sweep the part of the batch from `begin` on; the pairs that it leaves for the trained layers."""
        rows = min(most, batch - begin)
        mlp_attribute_backward_kernel[(triton.cdiv(rows, chosen.config.blocks["ROWS"]),)](
            *(part for start in starts for part in start),
            *(v_end, delta_end, tangents, deltas, tuple(weights), (None, *bits, None), begin, batch),
            **constants,
            **chosen.config.blocks,
            PRECISION=input_precision(like.dtype),
            num_warps=chosen.config.num_warps,
            num_stages=chosen.config.num_stages,
        )
        here = slice(begin, begin + rows)
        left = _rows(deltas, slice(rows)), _rows(tangents, slice(rows)), _rows(delta, here)
        return _pairs(trained, weights, columns, *left, [t[here] for t in g], [t[here] for t in h])

    with torch.cuda.device_of(like):
        if trained:
            weight_gradients(map(swept, parts), len(parts), most, x is not None and delta is not None, found)
        else:
            for begin in parts:
                swept(begin)
    return found, v_end, delta_end


def _variants() -> Iterator[Variant]:
    """With one chain, all layers trained, and with two where there is more than one output."""
    for one in perceptron.compiled():
        widths, depth = one.sizes.widths, one.depth
        absent = dict.fromkeys(("s_ptr", "s_stride", "c_ptr", "c_stride"))
        two = widths[-1] > 1
        if not two:
            absent |= dict.fromkeys(("delta_ptr", "delta_stride", "deltas_ptr"))
        chains = ("delta_ptr", "deltas_ptr") if two else ()
        values = ("x_ptr", "a_ptr", "v_end_ptr", "delta_end_ptr", "tangents_ptr", *chains)
        numbers = ("x_stride", "a_stride", "begin", "rows", *(("delta_stride",) if two else ()))
        signature: dict[str, Any] = dict.fromkeys(values, one.pointer) | dict.fromkeys(numbers, "i32")
        constants = {**absent, "COLUMNS": one.sizes.columns, "UP": depth - 1, "DOWN": 2}
        yield one.variant(mlp_attribute_backward_kernel, signature, constants, "two-chains" if two else "one-chain")


VARIANTS = list(_variants())
