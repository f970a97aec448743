"""The launchers of kernels/cuda as functions with the signatures of the references, on CPU tensors.

    source()       # under g++, run by the shim; source("sanitized") and source("threads") likewise
    Compiled()     # nvcc's own PTX for sm_80, launched as the launchers say, executed by the emulator

Both allocate results as the glue does and call launchers.cpp.
"""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from xattr_cuda.kernels.reference.bits import words
from xattr_cuda.kernels.reference.max_pool import memory_format, pooled_size

from . import emulator, nvcc, ptx, shim

SOURCE = Path(__file__).with_name("launchers.cpp")
OPERATORS = ("relu_mask", "mask_mul", "add_relu_mask", "max_pool", "pool_pull", "pool_push")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_LOG_BYTES = 1 << 16

Call = Callable[..., None]


class Launch(NamedTuple):
    """A kernel's symbol, and what it is launched with."""

    kernel: str
    grid: int
    block: int
    shared: int
    args: list[Any]

    @property
    def name(self) -> str:
        """The kernel's name as it was written."""
        found = re.match(r"_ZN5xattr4cuda(\d+)(\w+)", self.kernel)
        return found[2][: int(found[1])] if found else self.kernel


class Structure(bytes):
    """A structure that a kernel is given; it holds no pointers."""

    def bytes_with(self, address: Any) -> bytes:
        return self


class Launchers:
    """call(op, *arguments of the launcher but for the stream) changes the tensors among them."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def _by_rows(self, op: str, like: Tensor, slope: Tensor | None, before: Sequence[Tensor], *after: Tensor) -> None:
        """Tensors of the shape of `like`, and their masks; the launchers take the slope between them."""
        if not like.numel():
            return
        kind = 0 if slope is None else 1 if slope.numel() == 1 else 2
        slope, n = None if slope is None else slope.contiguous(), like.shape[-1]
        self._call(op, DTYPES[like.dtype], kind, *before, slope, *after, like.numel() // n, n)

    def relu_mask(self, z: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = z.contiguous()
        h, bits = _activated(z)
        self._by_rows("relu_mask", z, slope, [z], h, bits)
        return h, bits

    def add_relu_mask(self, a: Tensor, b: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, b = a.contiguous(), b.contiguous()
        h, bits = _activated(a)
        self._by_rows("add_relu_mask", a, slope, [a, b], h, bits)
        return h, bits

    def mask_mul(self, t: Tensor, bits: Tensor, slope: Tensor | None = None) -> Tensor:
        t = t.contiguous()
        out = torch.empty(t.shape, dtype=t.dtype)
        self._by_rows("mask_mul", t, slope, [t, bits.contiguous()], out)
        return out

    def _pooling(
        self, op: str, tensors: Sequence[Tensor], size: Sequence[int], pooled: Sequence[int], geometry: Sequence[Any]
    ) -> None:
        """Three tensors in the launchers' order, the first in the layout of all."""
        if not all(t.numel() for t in tensors):
            return
        missing, dims = 3 - len(size), zip(size, pooled, *geometry, strict=True)
        axes = np.array([(1, 1, 1, 1, 0, 1)] * missing + [tuple(map(int, dim)) for dim in dims], np.int32)
        first = tensors[0]
        last = memory_format(first) != torch.contiguous_format
        images, channels = (first.shape[0], first.shape[1]) if last else (first.shape[0] * first.shape[1], 1)
        dtype = next(t.dtype for t in tensors if t.is_floating_point())
        self._call(op, DTYPES[dtype], *tensors, axes, images, channels, int(last))

    def max_pool(self, h: Tensor, *geometry: Any) -> tuple[Tensor, Tensor]:
        *window, ceil_mode = geometry
        layout, dims = memory_format(h), zip(h.shape[2:], *window, strict=True)
        shape = (*h.shape[:2], *(pooled_size(*dim, ceil_mode) for dim in dims))
        out = torch.empty(shape, dtype=h.dtype, memory_format=layout)
        idx = torch.empty(shape, dtype=torch.uint8, memory_format=layout)
        h = h.contiguous(memory_format=layout)
        self._pooling("max_pool", [h, out, idx], h.shape[2:], shape[2:], window)
        return out, idx

    def pool_pull(self, g: Tensor, idx: Tensor, shape: Sequence[int], *window: Any) -> Tensor:
        layout = memory_format(idx)
        out = torch.empty(tuple(shape), dtype=g.dtype, memory_format=layout)
        g, idx = g.contiguous(memory_format=layout), idx.contiguous(memory_format=layout)
        self._pooling("pool_pull", [g, idx, out], shape[2:], idx.shape[2:], window)
        return out

    def pool_push(self, v: Tensor, idx: Tensor, *window: Any) -> Tensor:
        layout = memory_format(idx)
        out = torch.empty(idx.shape, dtype=v.dtype, memory_format=layout)
        v, idx = v.contiguous(memory_format=layout), idx.contiguous(memory_format=layout)
        self._pooling("pool_push", [v, idx, out], v.shape[2:], idx.shape[2:], window)
        return out


def _activated(z: Tensor) -> tuple[Tensor, Tensor]:
    bits = torch.empty((*z.shape[:-1], words(z.shape[-1])), dtype=torch.int32)
    return torch.empty(z.shape, dtype=z.dtype), bits


def driver(op: str) -> str:
    """The text of launchers.cpp for one operator."""
    return f'#define XATTR_HEADER "cuda/{op}.cuh"\n#define XATTR_OPERATOR {op}\n{SOURCE.read_text()}'


def source(mode: str = "plain", kernels: Path = shim.KERNELS, **environment: str) -> Launchers:
    """The kernels as g++ compiles them. kernels: the folder above cuda/; environment: of the program."""
    return Launchers(lambda op, *args: shim.build(driver(op), mode, kernels).run(*args, environment=environment))


@functools.cache
def _kernel(op: str, symbol: str, kernels: Path) -> ptx.Kernel:
    return ptx.parse(nvcc.ptx(driver(op), kernels), symbol)


class Compiled(Launchers):
    """The kernels as nvcc compiles them for sm_80. launches: what the launchers asked for, in order."""

    def __init__(self, kernels: Path = shim.KERNELS) -> None:
        super().__init__(self._run)
        self._kernels, self.launches = kernels, list[Launch]()

    def _run(self, op: str, *args: Any) -> None:
        log = np.zeros(_LOG_BYTES, np.uint8)
        shim.build("#define XATTR_RECORD\n" + driver(op), "plain", self._kernels).run(*args, log)
        for line in bytes(log).split(b"\0")[0].decode().splitlines():
            launch = _parsed(line, args)
            self.launches.append(launch)
            kernel = _kernel(op, launch.kernel, self._kernels)
            emulator.run(kernel, launch.args, launch.grid, launch.block, launch.shared)


def _parsed(line: str, given: Sequence[Any]) -> Launch:
    symbol, grid, block, shared, *words = line.split()
    return Launch(symbol, int(grid), int(block), int(shared), [_argument(word, given) for word in words])


def _argument(word: str, given: Sequence[Any]) -> Any:
    kind, rest = word[0], word[1:]
    if kind == "p":
        index, offset = rest.split("+")
        if int(offset):
            raise ValueError(f"a pointer into a buffer: {word}")
        return given[int(index)]
    return {"n": lambda: 0, "i": lambda: int(rest), "x": lambda: Structure.fromhex(rest)}[kind]()
