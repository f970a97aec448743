"""Compile CUDA C++ for GPUs that are not here: its PTX, and what the compiler says of each kernel.

    ptx(SOURCE)                    # of sm_80, for `emulator.run`
    usages(SOURCE, "90a")          # registers and shared memory of every kernel in it

Warnings, spills and local memory are errors of nvcc (`toolchain.NVCC_FLAGS`), and raise NvccError. This says nothing of
results, occupancy or speed.
"""

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import shim, toolchain

ARCHITECTURES = ("80", "90a", "100")


class NvccError(RuntimeError):
    """nvcc refused the source; the message is what it said."""


@dataclass(frozen=True)
class Usage:
    """What a kernel needs. name: mangled; shared: static, in bytes."""

    name: str
    registers: int
    shared: int


def _compile(source: str, arch: str, kind: str, kernels: Path) -> tuple[bytes, str]:
    """(what nvcc makes, what it says)."""
    with tempfile.TemporaryDirectory(prefix="nvcc-") as folder:
        given, found = Path(folder, "kernels.cu"), Path(folder, "kernels.out")
        given.write_text(source)
        flags = [*toolchain.NVCC_FLAGS, f"-{kind}", f"-arch=sm_{arch}", "-Xptxas", "-v", "-I", kernels]
        command = [toolchain.nvcc(), *flags, given, "-o", found]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if done.returncode:
            raise NvccError(f"sm_{arch}: {done.stderr}{done.stdout}")
        return found.read_bytes(), done.stderr + done.stdout


@functools.cache
def ptx(source: str, kernels: Path = shim.KERNELS) -> str:
    """The PTX of a source for sm_80. kernels: the folder that `#include "cuda/<op>.cuh"` is looked up in."""
    return _compile(source, "80", "ptx", kernels)[0].decode()


def cubin(source: str, arch: str, kernels: Path = shim.KERNELS) -> bytes:
    """The machine code of a source for an architecture."""
    return _compile(source, arch, "cubin", kernels)[0]


@functools.cache
def usages(source: str, arch: str, kernels: Path = shim.KERNELS) -> tuple[Usage, ...]:
    """What the kernels of a source need on an architecture."""
    said = _compile(source, arch, "cubin", kernels)[1]
    entry = r"Compiling entry function '(\S+)'.*?Used (\d+) registers(.*?)\n"
    found = []
    for name, registers, rest in re.findall(entry, said, re.DOTALL):
        shared = re.search(r"(\d+) bytes smem", rest)
        found.append(Usage(name, int(registers), int(shared[1]) if shared else 0))
    if not found:
        raise NvccError(f"sm_{arch}: nvcc reports no kernel:\n{said}")
    return tuple(found)
