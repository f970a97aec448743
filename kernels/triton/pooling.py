"""What max_pool, pool_pull and pool_push share: where the elements of a tile lie, and their launch.

Every tensor is taken for one of three spatial dimensions, the missing ones of size one, and its elements for a matrix:
of lines along the last spatial dimension where it is contiguous, of positions by channels where channels lie last. The
window's settings are constants of a kernel: a network has few, and no division by them is left.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import Config, architecture, by_config, configs
from .launching import run
from .tuned import chosen
from .variant import DTYPES, POINTERS, Variant

_WIDEST = 256  # elements of a line, or channels of a position, in one tile
_LARGE = 2**31  # elements that an int32 does not count
_MOST_ROWS = 2**31 - 2**16  # rows that it counts, and a tile beyond them


@triton.jit
def position(
    rows,
    inner,
    D,
    H,
    W,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
    LAST: tl.constexpr,
):
    """The elements of this program's tile of a tensor with spatial size (D, H, W): (present, n, d, h, w, c).

    Each is [ROWS, INNER] or of size one where it does not vary. n counts batch entries and c channels where channels
    are LAST; elsewhere n counts both.
    """
    blocks = tl.cdiv(inner, INNER)
    row = (tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS))[:, None]
    lane = (tl.program_id(0) % blocks * INNER + tl.arange(0, INNER))[None, :]
    present = (row < rows) & (lane < inner)
    if LAST:
        line, w, c = row // W, row % W, lane
    else:
        line, w, c = row, lane, lane * 0
    return present, line // H // D, line // H % D, line % H, w, c


@triton.jit
def offset(n, d, h, w, c, inner, D, H, W, LAST: tl.constexpr, LARGE: tl.constexpr):
    """Where an element lies in a tensor of spatial size (D, H, W); LARGE ones have places beyond an int32."""
    line = ((n.to(tl.int64) if LARGE else n) * D + d) * H + h
    return (line * W + w) * inner + c if LAST else line * W + w


@triton.jit
def within(d, h, w, D, H, W):
    """Whether a position lies in a spatial size."""
    return (d >= 0) & (d < D) & (h >= 0) & (h < H) & (w >= 0) & (w < W)


class Geometry(NamedTuple):
    """Settings of a window, three numbers each, as the constants of a kernel."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def constants(self) -> dict[str, tuple[int, ...]]:
        """By the names that they have in the kernels."""
        return {name.upper(): numbers for name, numbers in self._asdict().items()}


def geometry(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Geometry:
    """The settings of one to three dimensions, with windows of one element in those that are missing."""
    missing = 3 - len(kernel)
    return Geometry(
        (1,) * missing + tuple(kernel),
        (1,) * missing + tuple(stride),
        (0,) * missing + tuple(padding),
        (1,) * missing + tuple(dilation),
    )


def launch(
    kernel: Any,
    tensors: Sequence[Tensor],
    over: Tensor,
    size: Sequence[int],
    pooled: Sequence[int],
    window: Geometry,
    layout: torch.memory_format,
) -> bool:
    """Run kernel(*tensors, ...) over the elements of the tensor `over`, all in the memory format `layout`.

    size and pooled: spatial sizes of what is pooled and of the result. Returns False for a tensor with more rows than
    an int32 counts, and runs nothing.
    """
    if over.numel() == 0:
        return True
    last = layout != torch.contiguous_format
    inner = over.shape[1 if last else -1]
    rows = over.numel() // inner
    if rows > _MOST_ROWS:
        return False
    table = _config(over.dtype, architecture(over.device))
    what = (window.kernel, window.stride, "nhwc" if last else "nchw")
    config = chosen("pool", kernel.__name__, over.device, over.dtype, (rows, inner), table, *what)
    width = min(_WIDEST, triton.next_power_of_2(inner))
    height = config.blocks["ELEMENTS"] // width
    missing = (1,) * (5 - over.dim())
    run(
        *(kernel, (triton.cdiv(rows, height) * triton.cdiv(inner, width),), over),
        *(*tensors, rows, inner, *missing, *size, *missing, *pooled),
        **window.constants(),
        ROWS=height,
        INNER=width,
        LAST=last,
        LARGE=max(t.numel() for t in tensors) >= _LARGE,
        num_warps=config.num_warps,
    )
    return True


def _config(dtype: torch.dtype, arch: str) -> Config:
    """The configuration whose threads move the same bytes at every dtype."""
    return configs("pool", arch)[0 if dtype.itemsize == 4 else 1]


_WINDOWS = {  # those of the networks that people train, and a large one
    "2x2": geometry((2, 2), (2, 2), (0, 0), (1, 1)),
    "3x3": geometry((3, 3), (2, 2), (1, 1), (1, 1)),
    "8x8": geometry((8, 8), (4, 4), (0, 0), (1, 1)),
}


def variants(kernel: Any, values: Sequence[str], wide: bool) -> Iterator[Variant]:
    """What `launch` may compile a kernel for; `values`: its pointers to floating elements.

    wide: whether its accesses are of 16 bytes where channels lie last, 64 of them here.
    """
    for (dtype, pointer), (name, window), last in itertools.product(POINTERS.items(), _WINDOWS.items(), (False, True)):
        pointers = {"idx_ptr": "*u8", **dict.fromkeys(values, pointer)}
        signature = {**pointers, **dict.fromkeys(("rows", "inner", "H", "W", "OH", "OW"), "i32")}
        for config, archs in by_config(partial(_config, DTYPES[dtype])):
            tile = {"ROWS": config.blocks["ELEMENTS"] // 64, "INNER": 64}
            yield Variant(
                *(kernel, signature, {**window.constants(), **tile, "LAST": last, "LARGE": False, "D": 1, "OD": 1}),
                divisible=(*pointers, *(("inner",) if last else ())),
                num_warps=config.num_warps,
                num_stages=config.num_stages,
                config=f"{config.name}-{name}-{'nhwc' if last else 'nchw'}-{dtype}",
                elementwise=last and wide,
                architectures=archs,
            )
