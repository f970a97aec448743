"""mlp_attribute: forward and attribution sweep of a perceptron in one launch. Twin of the reference of that name."""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import layers, perceptron
from .perceptron import activate, masked, product, store_mask, store_rows
from .precision import input_precision
from .variant import Variant


@triton.jit
def forward_rows(
    x_ptr, x_stride, y_ptr, scratch_ptr, weights, bits, kept_h, first, valid,
    SLOPES: tl.constexpr, WIDTHS: tl.constexpr, BLOCKS: tl.constexpr, WIDEST: tl.constexpr, ROWS: tl.constexpr,
    STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """h_l = m_l * (W_l h_{l-1}) for the rows from `first` on, of which `valid` are there."""
    LAST: tl.constexpr = len(WIDTHS) - 1
    for l in tl.static_range(1, LAST + 1):
        if l == 1:
            in_ptr = x_ptr + first * x_stride
            in_stride = x_stride
        elif kept_h[l - 1] is not None:
            in_ptr = kept_h[l - 1] + first * WIDTHS[l - 1]
            in_stride = WIDTHS[l - 1]
        else:
            in_ptr = scratch_ptr + (l - 1) % 2 * ROWS * WIDEST
            in_stride = WIDEST
        for start in range(0, WIDTHS[l], BLOCKS[l]):
            z = product(
                in_ptr, in_stride, weights[l - 1], 1, WIDTHS[l - 1], valid, start,
                WIDTHS[l - 1], WIDTHS[l], ROWS, BLOCKS[l], STEP, PRECISION,
            )  # fmt: skip
            if l == LAST:
                store_rows(z, y_ptr + first * WIDTHS[l], WIDTHS[l], valid, start, WIDTHS[l])
            else:
                h, positive = activate(z, SLOPES[l])
                store_mask(positive, bits[l] + first * ((WIDTHS[l] + 31) // 32), valid, start, WIDTHS[l])
                if kept_h[l] is not None:
                    store_rows(h, kept_h[l] + first * WIDTHS[l], WIDTHS[l], valid, start, WIDTHS[l])
                else:
                    store_rows(h, scratch_ptr + l % 2 * ROWS * WIDEST, WIDEST, valid, start, WIDTHS[l])
        tl.debug_barrier()


@triton.jit
def attribute_rows(
    x_ptr, x_stride, u_ptr, u_stride, a_ptr, scratch_ptr, weights, bits, kept_g, first, valid,
    SLOPES: tl.constexpr, WIDTHS: tl.constexpr, BLOCKS: tl.constexpr, WIDEST: tl.constexpr, ROWS: tl.constexpr,
    STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """g_{l-1} = m_{l-1} * (W_l^T g_l) for these rows, and A = x * g_0."""
    LAST: tl.constexpr = len(WIDTHS) - 1
    for l in tl.static_range(LAST, 0, -1):
        if l == LAST:
            in_ptr = u_ptr + first * u_stride
            in_stride = u_stride
        elif kept_g[l] is not None:
            in_ptr = kept_g[l] + first * WIDTHS[l]
            in_stride = WIDTHS[l]
        else:
            in_ptr = scratch_ptr + l % 2 * ROWS * WIDEST
            in_stride = WIDEST
        for start in range(0, WIDTHS[l - 1], BLOCKS[l - 1]):
            g = product(
                in_ptr, in_stride, weights[l - 1], WIDTHS[l - 1], 1, valid, start,
                WIDTHS[l], WIDTHS[l - 1], ROWS, BLOCKS[l - 1], STEP, PRECISION,
            )  # fmt: skip
            if l > 1:
                mask_ptr = bits[l - 1] + first * ((WIDTHS[l - 1] + 31) // 32)
                g = masked(g, mask_ptr, valid, start, WIDTHS[l - 1], SLOPES[l - 1])
            if kept_g[l - 1] is not None:
                store_rows(g, kept_g[l - 1] + first * WIDTHS[l - 1], WIDTHS[l - 1], valid, start, WIDTHS[l - 1])
            elif l > 1:
                store_rows(g, scratch_ptr + (l - 1) % 2 * ROWS * WIDEST, WIDEST, valid, start, WIDTHS[l - 1])
            if l == 1:
                row = tl.arange(0, ROWS)
                column = start + tl.arange(0, BLOCKS[0])
                keep = (row[:, None] < valid) & (column[None, :] < WIDTHS[0])
                x = tl.load(x_ptr + (first + row)[:, None] * x_stride + column[None, :], mask=keep, other=0)
                store_rows(x * g, a_ptr + first * WIDTHS[0], WIDTHS[0], valid, start, WIDTHS[0])
        tl.debug_barrier()


@triton.jit
def mlp_attribute_kernel(
    x_ptr, x_stride, u_ptr, u_stride, y_ptr, a_ptr, scratch_ptr, weights, bits, kept_h, kept_g, begin, rows,
    SLOPES: tl.constexpr, WIDTHS: tl.constexpr, BLOCKS: tl.constexpr, WIDEST: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y and A of the rows `begin` .. `rows` of x [rows, N_0], and what is kept, by layer; a program takes ROWS of them.

    Sizes as in `perceptron.Sizes`.
    """
    scratch_ptr += tl.program_id(0).to(tl.int64) * 2 * ROWS * WIDEST
    first = begin + tl.program_id(0).to(tl.int64) * ROWS
    valid = (rows - first).to(tl.int32)
    forward_rows(
        x_ptr, x_stride, y_ptr, scratch_ptr, weights, bits, kept_h, first, valid,
        SLOPES, WIDTHS, BLOCKS, WIDEST, ROWS, STEP, PRECISION,
    )  # fmt: skip
    attribute_rows(
        x_ptr, x_stride, u_ptr, u_stride, a_ptr, scratch_ptr, weights, bits, kept_g, first, valid,
        SLOPES, WIDTHS, BLOCKS, WIDEST, ROWS, STEP, PRECISION,
    )  # fmt: skip


def mlp_attribute(
    x: Tensor,
    weights: Sequence[Tensor],
    slopes: Sequence[float],
    u: Tensor | None,
    keep_h: Sequence[int],
    keep_g: Sequence[int],
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Shapes and meaning: the reference's. Networks that one launch does not serve go layer by layer."""
    if u is None:
        return NotImplemented  # type: ignore[no-any-return]  # a forward sweep alone has no kernel of its own
    if not perceptron.serves(weights):
        return layers.attribute(x, weights, slopes, u, keep_h, keep_g)
    batch, last = len(x), len(weights)
    x, u, weights = perceptron.row_major(x), perceptron.row_major(u), [w.contiguous() for w in weights]
    chosen = perceptron.sizes_for(weights, batch)
    widths, rows = chosen.widths, chosen.config.blocks["ROWS"]
    y, a = x.new_empty(batch, widths[last]), x.new_empty(batch, widths[0])
    bits = perceptron.new_bits(x, widths[1:last])
    h, g = ([x.new_empty(batch, widths[k]) for k in keep] for keep in (keep_h, keep_g))
    if batch == 0:
        return y, a, bits, h, g
    most = perceptron.LAUNCHED
    scratch = x.new_empty(triton.cdiv(min(batch, most), rows), 2, rows, chosen.widest)
    with torch.cuda.device_of(x):
        for begin in range(0, batch, most):
            mlp_attribute_kernel[(triton.cdiv(min(batch - begin, most), rows),)](
                *(x, x.stride(0), u, u.stride(0), y, a, scratch, tuple(weights), (None, *bits, None)),
                perceptron.by_layer(keep_h, h, last),
                perceptron.by_layer(keep_g, g, last),
                *(begin, batch),
                **chosen.constants(perceptron.kernel_slopes(slopes)),
                WIDEST=chosen.widest,
                **chosen.config.blocks,
                PRECISION=input_precision(x.dtype),
                num_warps=chosen.config.num_warps,
                num_stages=chosen.config.num_stages,
            )
    return y, a, bits, h, g


def _variants() -> Iterator[Variant]:
    """With one output as its users have it: cotangents kept, h and g_0 not."""
    for one in perceptron.compiled():
        values = dict.fromkeys(("x_ptr", "u_ptr", "y_ptr", "a_ptr", "scratch_ptr"), one.pointer)
        numbers = dict.fromkeys(("x_stride", "u_stride", "begin", "rows"), "i32")
        nothing = (None,) * (one.depth + 1)
        kept = {"kept_h": nothing, "kept_g": one.hidden}
        yield one.variant(mlp_attribute_kernel, {**values, **numbers, **kept}, {"WIDEST": one.sizes.widest})


VARIANTS = list(_variants())
