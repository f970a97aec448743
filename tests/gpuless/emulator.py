"""Run PTX (of Triton or nvcc, instructions up to sm_80) on the CPU with numpy, checking every memory access.

    run(text, args, grid, block)            # tensors in `args` are CPU tensors and change in place
    kernel = parse(text, entry)             # or parse once and run(kernel, ...) many times

Any violation raises PtxError and names the instruction:
  - global and shared accesses out of bounds or misaligned; out of bounds is beyond the storage of the tensor;
  - two warps that touch one byte of shared memory without a barrier between them, one of them writing;
  - data of cp.async used before the thread that asked for it has waited for it;
  - warp collectives and barriers that only a part of a warp reaches; traps; endless loops.

Not seen: races in global memory, lanes of one warp against each other, atomics in shared memory. Not emulated, and
refused with a PtxError: what sm_90 and later add (TMA, mbarrier, wgmma, tcgen05), textures, local memory, calls of
device functions, named barriers, mma on integers and on eight-bit floats.

Not to the last bit: mma and fma sum in float64 and round once; approximations such as ex2.approx are the exact value
rounded; denormals are kept. Blocks run in order, without caches, weak memory ordering or a clock.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .execute import Run
from .ptx import Kernel, PtxError, parse

__all__ = ["PtxError", "parse", "run"]

Dim = int | tuple[int, ...]


def run(
    kernel: str | Kernel,
    args: Sequence[Any],
    grid: Dim,
    block: Dim | None = None,
    shared_bytes: int = 0,
    entry: str | None = None,
    threads_at_once: int = 4096,
    races: bool = True,
    max_steps: int = 10**7,
) -> int:
    """Execute a kernel over its grid; returns the number of instructions stepped through.

    kernel: PTX text, or what `parse` returned; entry: its name, or a part of it.
    args: CPU tensors, numpy arrays, whole numbers, floats, and for a structure passed by value a Record (records.py),
        in the order of the parameters.
    block: threads of a block; by default what the kernel demands (.reqntid). shared_bytes: dynamic shared memory.
    threads_at_once: blocks with about so many threads run side by side, before any of those after them.
    races: whether shared memory is checked for missing barriers.
    """
    kernel = kernel if isinstance(kernel, Kernel) else parse(kernel, entry)
    if block is None and kernel.threads is None:
        raise PtxError("the kernel has no .reqntid; pass block=")
    grid, block = _three(grid), _three(kernel.threads if block is None else block)
    blocks = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    together = max(1, threads_at_once // (block[0] * block[1] * block[2]))
    steps = 0
    with np.errstate(all="ignore"):
        for i in range(0, len(blocks), together):
            steps += Run(kernel, args, grid, block, shared_bytes, blocks[i : i + together], races).go(max_steps)
    return steps


def _three(dim: Dim) -> tuple[int, int, int]:
    sizes = dim if isinstance(dim, tuple) else (dim,)
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z
