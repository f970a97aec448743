"""Compile CUDA C++ for GPUs that are not here.

    ptx(SOURCE)                    # for sm_80, as `emulator.run` takes it
    cubin(SOURCE, "90a")           # machine code, of which cuda_report.py reads what the kernels need

Warnings, spills and local memory are errors of nvcc (`toolchain.NVCC_FLAGS`), and raise NvccError. This says nothing of
results, occupancy or speed.
"""

import functools
import subprocess
import tempfile
from pathlib import Path

from . import shim, toolchain


class NvccError(RuntimeError):
    """nvcc refused the source; the message is what it said."""


def _compile(source: str, arch: str, kind: str, kernels: Path) -> bytes:
    with tempfile.TemporaryDirectory(prefix="nvcc-") as folder:
        given, found = Path(folder, "kernels.cu"), Path(folder, "kernels.out")
        given.write_text(source)
        flags = [*toolchain.NVCC_FLAGS, f"-{kind}", f"-arch=sm_{arch}", "-I", kernels]
        command = [toolchain.nvcc(), *flags, given, "-o", found]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if done.returncode:
            raise NvccError(f"sm_{arch}: {done.stderr}{done.stdout}")
        return found.read_bytes()


@functools.cache
def ptx(source: str, kernels: Path = shim.KERNELS) -> str:
    """The PTX of a source for sm_80. kernels: the folder that `#include "cuda/<op>.cuh"` is looked up in."""
    return _compile(source, "80", "ptx", kernels).decode()


def cubin(source: str, arch: str, kernels: Path = shim.KERNELS) -> bytes:
    """The machine code of a source for an architecture."""
    return _compile(source, arch, "cubin", kernels)
