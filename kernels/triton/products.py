"""What linear_relu_mask and matmul_mask share: one tiled product with the activation or the mask in its epilogue.

Programs that run at the same time take tiles of a few neighbouring rows of tiles, so that what they read is shared in
the second-level cache.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.bits import words
from .bits import pack, unpack
from .configs import ARCHITECTURES, Config, architecture, by_config, configs
from .launching import run
from .precision import add_product, input_precision
from .tuned import chosen
from .variant import DTYPES, POINTERS, Variant

LARGE_SIDE = 128  # of the large tiles
ACTIVATE, MASK = 1, 2  # values of the constant EPILOGUE
_OPERATORS = {ACTIVATE: "linear_relu_mask", MASK: "matmul_mask"}
NO_SLOPE, ONE_SLOPE, SLOPES = 0, 1, 2  # values of the constant SLOPE: of shape None, [1] and [N]
PRECISIONS = (("fp32", "ieee"), ("fp32", "tf32"), ("bf16", "ieee"), ("fp16", "ieee"))
"""(dtype, precision of its products)."""


@triton.jit
def tile_of(index, rows, columns, TALL: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr):
    """(row, column) of the tile that a program takes among the tiles [TALL, WIDE] of a matrix [rows, columns]."""
    down, right = tl.cdiv(rows, TALL), tl.cdiv(columns, WIDE)
    group = index // (GROUP * right)
    within = index % (GROUP * right)
    height = tl.minimum(down - group * GROUP, GROUP)
    return group * GROUP + within % height, within // height


@triton.jit
def scaled(t, slope_ptr, column, columns, SLOPE: tl.constexpr):
    """slope * t; zero without a slope."""
    if SLOPE == 0:
        found = tl.zeros_like(t)
    elif SLOPE == 1:
        found = tl.load(slope_ptr).to(tl.float32) * t
    else:
        found = tl.load(slope_ptr + column, mask=column < columns, other=0).to(tl.float32)[None, :] * t
    return found


@triton.jit
def product_kernel(
    t_ptr, t_stride, matrix_ptr, along, across, out_ptr, bits_ptr, slope_ptr, rows, depth, columns, row_words,
    EPILOGUE: tl.constexpr, SLOPE: tl.constexpr, PRECISION: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
    STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out = t [rows, depth] matrix [depth, columns], activated or masked; along, across: the strides of the matrix."""
    tile_row, tile_column = tile_of(tl.program_id(0), rows, columns, TALL, WIDE, GROUP)
    row = tile_row * TALL + tl.arange(0, TALL)
    column = tile_column * WIDE + tl.arange(0, WIDE)
    k = tl.arange(0, STEP)
    left_ptr = t_ptr + row.to(tl.int64)[:, None] * t_stride + k[None, :]
    right_ptr = matrix_ptr + k.to(tl.int64)[:, None] * along + column.to(tl.int64)[None, :] * across
    total = tl.zeros((TALL, WIDE), dtype=tl.float32)
    for first in range(0, depth, STEP):
        left = tl.load(left_ptr, mask=(row[:, None] < rows) & (first + k[None, :] < depth), other=0)
        right = tl.load(right_ptr, mask=(first + k[:, None] < depth) & (column[None, :] < columns), other=0)
        total = add_product(left, right, total, PRECISION)
        left_ptr += STEP
        right_ptr += STEP * along

    there = (row[:, None] < rows) & (column[None, :] < columns)
    word = tile_column * (WIDE // 32) + tl.arange(0, WIDE // 32)
    word_ptr = bits_ptr + row.to(tl.int64)[:, None] * row_words + word[None, :]
    has_word = (row[:, None] < rows) & (word[None, :] < row_words)
    if EPILOGUE == 1:
        positive = (total > 0) if SLOPE else ((total > 0) | (total != total))
        tl.store(word_ptr, pack(positive & there), mask=has_word)
        total = tl.where(positive, total, scaled(total, slope_ptr, column, columns, SLOPE))
    else:
        mask = unpack(tl.load(word_ptr, mask=has_word, other=0))
        total = tl.where(mask, total, scaled(total, slope_ptr, column, columns, SLOPE))
    place = out_ptr + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=there)


def as_rows(t: Tensor) -> Tensor:
    """[..., K] as [rows, K] with unit column stride."""
    t = t.reshape(t.shape[:-1].numel(), t.shape[-1])
    return t if t.stride(1) == 1 and t.stride(0) >= t.shape[1] else t.contiguous()


@functools.lru_cache(4096)
def choice(rows: int, columns: int, dtype: torch.dtype, precision: str, arch: str, processors: int) -> Config:
    """Large tiles where there are enough of them for all multiprocessors, else small ones."""
    exact, *others = configs("product", arch)
    if dtype == torch.float32 and precision == "ieee":
        return exact
    large, small = others[:2] if dtype == torch.float32 else others[2:]
    tiles = triton.cdiv(rows, large.blocks["TALL"]) * triton.cdiv(columns, large.blocks["WIDE"])
    return large if tiles >= processors else small


def configuration(
    operator: str, device: torch.device, dtype: torch.dtype, precision: str, sizes: tuple[int, int, int], what: str = ""
) -> Config:
    """The configuration of a product on a device. sizes: of the result, and what is summed over."""
    exact = dtype == torch.float32 and precision == "ieee"
    table = choice(*sizes[:2], dtype, precision, architecture(device), multiprocessors(device))
    words = (precision if dtype == torch.float32 else "", what)
    return chosen("exact product" if exact else "product", operator, device, dtype, sizes, table, *words)


def multiply(t: Tensor, matrix: Tensor, bits: Tensor, slope: Tensor | None, epilogue: int) -> Tensor:
    """Run the product; its activation writes into `bits`. t: [..., K]; matrix: [K, N], any strides."""
    shape, rows, columns = (*t.shape[:-1], matrix.shape[1]), t.shape[:-1].numel(), matrix.shape[1]
    out = torch.empty(shape, dtype=t.dtype, device=t.device)
    if out.numel() == 0:
        return out
    t = as_rows(t)
    precision = input_precision(t.dtype)
    sizes, what = (rows, columns, t.shape[1]), "along" if matrix.stride(0) == 1 else "across"
    config = configuration(_OPERATORS[epilogue], t.device, t.dtype, precision, sizes, what)
    blocks = config.blocks
    programs = triton.cdiv(rows, blocks["TALL"]) * triton.cdiv(columns, blocks["WIDE"])
    run(
        *(product_kernel, (programs,), t),
        *(t, t.stride(0), matrix, *matrix.stride(), out, bits, None if slope is None else slope.contiguous()),
        *(rows, t.shape[1], columns, words(columns)),
        EPILOGUE=epilogue,
        SLOPE=NO_SLOPE if slope is None else ONE_SLOPE if slope.numel() == 1 else SLOPES,
        PRECISION=precision,
        **blocks,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def multiprocessors(device: torch.device) -> int:
    """Of the device; a CPU stands for that of the active Triton driver."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    from triton.runtime.driver import driver

    return int(driver._active.utils.get_device_properties(0)["multiprocessor_count"])


def config_name(dtype: str, precision: str, *more: str) -> str:
    """What a variant's configuration is called beside its block shape."""
    return "-".join((*more, *((precision,) if dtype == "fp32" else ())))


def configurations() -> Iterator[tuple[Config, str, str, tuple[str, ...]]]:
    """(configuration, dtype, precision, architectures) for every one that a product may choose."""
    for dtype, precision in PRECISIONS:
        for side in (1, 2**14):  # tiles too few, and enough
            chosen = {arch: choice(side, side, DTYPES[dtype], precision, arch, 100) for arch in ARCHITECTURES}
            if precision == "ieee" and dtype == "fp32" and side > 1:
                continue
            for config, archs in by_config(chosen.__getitem__):
                yield config, dtype, precision, archs


def variants(epilogue: int, transposed: bool, what: str) -> Iterator[Variant]:
    """What `multiply` may compile for ReLU, with a matrix that is the transpose of a row-major one or is row-major."""
    for config, dtype, precision, archs in configurations():
        pointers = {**dict.fromkeys(("t_ptr", "matrix_ptr", "out_ptr"), POINTERS[dtype]), "bits_ptr": "*i32"}
        unit, other = ("along", "across") if transposed else ("across", "along")
        sizes = dict.fromkeys(("t_stride", other, "rows", "depth", "columns", "row_words"), "i32")
        constants: dict[str, Any] = {"EPILOGUE": epilogue, "SLOPE": NO_SLOPE, "PRECISION": precision}
        constants |= {"slope_ptr": None, unit: 1}
        yield Variant.of(
            *(product_kernel, config, dtype, {**pointers, **sizes}, constants),
            divisible=(*pointers, "t_stride", other, "rows", "depth", "columns"),
            what=config_name(dtype, precision, what),
            gemm=True,
            architectures=archs,
        )
