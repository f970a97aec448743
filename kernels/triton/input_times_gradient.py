"""input_times_gradient: the attribution and the sums that priors take of it, in one pass over x and g. Twin of
`kernels/reference/input_times_gradient.py`.

The first launch writes the attribution and leaves sums of |A| over a few rows for every column, and of |A| and A^2 over
a few columns for every row; the second adds these up. The order of every sum is fixed.
"""

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import architecture, by_config, configs
from .launching import run
from .tuned import chosen
from .variant import POINTERS, Variant


@triton.jit
def input_times_gradient_kernel(
    x_ptr,
    g_ptr,
    scale_ptr,
    a_ptr,
    column_ptr,
    row_ptr,
    batch,
    n,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A from x, g [batch, n] and scale [batch] or None, with sums by column [chunks, n] and by row [2, blocks, batch].

    A program has a chunk of STEPS times ROWS rows in a block of COLUMNS columns.
    """
    dtype = a_ptr.dtype.element_ty
    blocks = tl.cdiv(n, COLUMNS)
    chunk, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(STEPS):
        row = (chunk * STEPS + step) * ROWS + tl.arange(0, ROWS)
        present = row < batch
        valid = present[:, None] & (column < n)[None, :]
        place = (row.to(tl.int64) * n)[:, None] + column[None, :]
        x = tl.load(x_ptr + place, mask=valid, other=0).to(tl.float32)
        g = tl.load(g_ptr + place, mask=valid, other=0).to(tl.float32)
        a = (x * g).to(dtype)  # rounded where PyTorch rounds
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + row, mask=present, other=0).to(tl.float32)
            a = (a.to(tl.float32) * scale[:, None]).to(dtype)
        tl.store(a_ptr + place, a, mask=valid)
        size = tl.abs(a.to(tl.float32))
        total += size
        sums = row_ptr + block.to(tl.int64) * batch + row
        tl.store(sums, tl.sum(size, axis=1), mask=present)
        # The choice keeps products out of the sum of two lanes, where fma would give each lane a result of its own.
        square = tl.where(valid, size * size, 0)
        tl.store(sums + blocks.to(tl.int64) * batch, tl.sum(square, axis=1), mask=present)
    tl.store(column_ptr + chunk.to(tl.int64) * n + column, tl.sum(total, axis=0), mask=column < n)


@triton.jit
def summed(part_ptr, parts, width, place, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum over the first dimension of [parts, width] at the places [WIDTH] of the second."""
    total = tl.zeros((PARTS, WIDTH), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        valid = (part < parts)[:, None] & (place < width)[None, :]
        total += tl.load(part_ptr + (part.to(tl.int64) * width)[:, None] + place[None, :], mask=valid, other=0)
    return tl.sum(total, axis=0)


@triton.jit
def prior_sums_kernel(
    column_ptr,
    row_ptr,
    mean_ptr,
    l1_ptr,
    l2_ptr,
    batch,
    n,
    chunks,
    blocks,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """mean_abs [n], l1 and l2 [batch] from the sums of the first launch: a program has WIDTH columns, or WIDTH rows."""
    of_columns = tl.cdiv(n, WIDTH)
    if tl.program_id(0) < of_columns:
        column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
        total = summed(column_ptr, chunks, n, column, PARTS, WIDTH)
        tl.store(mean_ptr + column, total / batch, mask=column < n)
    else:
        row = (tl.program_id(0) - of_columns) * WIDTH + tl.arange(0, WIDTH)
        second = row_ptr + tl.cast(blocks, tl.int64) * batch
        tl.store(l1_ptr + row, summed(row_ptr, blocks, batch, row, PARTS, WIDTH), mask=row < batch)
        tl.store(l2_ptr + row, summed(second, blocks, batch, row, PARTS, WIDTH), mask=row < batch)


def input_times_gradient(x: Tensor, g: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The attribution and its sums. Shapes and meaning: the reference's; x and g in fp32, bf16 or fp16."""
    x, g = x.contiguous(), g.contiguous()
    batch, n = x.shape[0], x.shape[1:].numel()
    a = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if a.numel() == 0:
        mean, l1, l2 = (torch.zeros(s, dtype=torch.float32, device=x.device) for s in (x.shape[1:], batch, batch))
        return a, mean, l1, l2
    mean, l1, l2 = (torch.empty(s, dtype=torch.float32, device=x.device) for s in (x.shape[1:], batch, batch))
    table, sums = configs("attribution", architecture(x.device))
    config = chosen("attribution", "input_times_gradient", x.device, x.dtype, (batch, n), table)
    columns = min(config.blocks["COLUMNS"], triton.next_power_of_2(n))
    rows, steps = config.blocks["ELEMENTS"] // columns, config.blocks["STEPS"]
    chunks, blocks = triton.cdiv(batch, rows * steps), triton.cdiv(n, columns)
    by_column = torch.empty((chunks, n), dtype=torch.float32, device=x.device)
    by_row = torch.empty((2, blocks, batch), dtype=torch.float32, device=x.device)
    width = sums.blocks["WIDTH"]
    run(
        *(input_times_gradient_kernel, (chunks * blocks,), x),
        *(x, g, None if scale is None else scale.contiguous(), a, by_column, by_row, batch, n),
        STEPS=steps,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=config.num_warps,
    )
    run(
        *(prior_sums_kernel, (triton.cdiv(n, width) + triton.cdiv(batch, width),), x),
        *(by_column, by_row, mean, l1, l2, batch, n, chunks, blocks),
        **sums.blocks,
        num_warps=sums.num_warps,
    )
    return a, mean, l1, l2


def _variants() -> Iterator[Variant]:
    for config, archs in by_config(lambda arch: configs("attribution", arch)[0]):
        columns = config.blocks["COLUMNS"]
        tile = {"STEPS": config.blocks["STEPS"], "ROWS": config.blocks["ELEMENTS"] // columns, "COLUMNS": columns}
        for (dtype, pointer), scaled, aligned in itertools.product(POINTERS.items(), (False, True), (False, True)):
            values = ("x_ptr", "g_ptr", "a_ptr", *(("scale_ptr",) if scaled else ()))
            pointers = {**dict.fromkeys(values, pointer), "column_ptr": "*fp32", "row_ptr": "*fp32"}
            kind = f"{'scaled' if scaled else 'plain'}{'' if aligned else '-odd'}"
            yield Variant(
                *(input_times_gradient_kernel, {**pointers, "batch": "i32", "n": "i32"}),
                constants={**tile, **({} if scaled else {"scale_ptr": None})},
                divisible=(*pointers, *(("n",) if aligned else ())),
                num_warps=config.num_warps,
                num_stages=config.num_stages,
                config=f"{config.name}-{kind}-{dtype}",
                elementwise=aligned,
                architectures=archs,
            )
    pointers = dict.fromkeys(("column_ptr", "row_ptr", "mean_ptr", "l1_ptr", "l2_ptr"), "*fp32")
    sizes = dict.fromkeys(("batch", "n", "chunks", "blocks"), "i32")
    for config, archs in by_config(lambda arch: configs("attribution", arch)[1]):
        signature = {**pointers, **sizes}
        yield Variant.of(prior_sums_kernel, config, "fp32", signature, {}, divisible=(*pointers,), architectures=archs)


VARIANTS = [*_variants()]
