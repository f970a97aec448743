"""What kernels in CUDA C++ need of the GPUs that they are compiled for: the lines of the report that are nvcc's.

for kernel in compiled(launchers.driver("relu_mask"), "90"):
kernel.name, kernel.config, kernel.code      # relu_mask_vectors, "bf16, 2", registers and instructions
"""

import functools
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from . import cuda_perceptron, launchers, nvcc
from .offline import CHIPS, OPCODE, USAGE, MachineCode, occupancy, tool

TARGETS = {"80": "80", "90": "90a", "100": "100"}
"""What nvcc is asked for, by the name of the architecture."""

THREADS = 256  # of a block of every kernel here

_TYPES = {"__nv_bfloat16": "bf16", "__half": "fp16", "float": "fp32", "xattr::cuda::": "", "(int)": "", "(bool)": ""}
_TYPES |= {"Bf16": "bf16", "Fp16": "fp16", "Tf32": "fp32 as TF32", "Fp32": "fp32"}


class Kernel(NamedTuple):
    """A kernel: its name as it was written, the arguments of its template, and its machine code."""

    name: str
    config: str
    code: MachineCode


@functools.cache
def compiled(source: str, arch: str) -> tuple[Kernel, ...]:
    """All kernels of a source, for an architecture of TARGETS. Spills and local memory are errors of nvcc."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        cubin.write_bytes(nvcc.cubin(source, TARGETS[arch]))
        usage = tool("cuobjdump", "--dump-resource-usage", cubin)
        sections = re.split(r"^\.text\.(\S+):$", tool("nvdisasm", "-c", cubin), flags=re.MULTILINE)
    ops = {name: Counter(OPCODE.findall(body)) for name, body in zip(sections[1::2], sections[2::2], strict=True)}
    found = []
    for symbol, words in re.findall(r"Function (\S+):\s*\n(.*)", usage):
        numbers = {key: int(value) for key, value in USAGE.findall(words)}
        registers, shared = numbers["REG"], numbers.get("SHARED", 0)
        share = occupancy(arch, registers, shared, THREADS // 32)
        bytes_of = (numbers.get("STACK", 0), numbers.get("LOCAL", 0), shared)
        found.append(Kernel(*_written(symbol), MachineCode(arch, registers, *bytes_of, share, ops[symbol])))
    return tuple(found)


def _written(symbol: str) -> tuple[str, str]:
    """(name, arguments of the template) of a mangled symbol."""
    tool = shutil.which("c++filt")
    words = subprocess.run([tool, symbol], capture_output=True, text=True, check=True).stdout if tool else symbol
    found = re.search(r"(\w+)<(.*)>\(", words)
    if not found:
        return words.strip(), ""
    config = found[2]
    for written, short in _TYPES.items():
        config = config.replace(written, short)
    return found[1], config


def faults(kernel: Kernel) -> tuple[str, ...]:
    """What a kernel does that it may not, in words: vectors are read and written whole, tiles one of the two."""
    code, found = kernel.code, []
    if not code.in_registers:
        found.append(f"local memory: {code.local_bytes} bytes, {code.local_ops} accesses")
    if kernel.name.startswith("mlp_") and kernel.config[:5] != "fp32," and not code.tensor_core_ops:
        found.append("products without tensor cores")
    if code.shared_bytes > CHIPS[code.arch].shared_block or not code.occupancy:
        found.append("no block fits a multiprocessor")
    wide = (bool(code.wide_loads), bool(code.wide_stores))
    if (kernel.name.endswith("_vectors") and not all(wide)) or (kernel.name.endswith("_tiles") and not any(wide)):
        found.append(f"narrow accesses: {code.wide_loads} loads and {code.wide_stores} stores of 16 bytes")
    return tuple(found)


def jobs(architectures: Iterable[str]) -> list[tuple[str, str]]:
    """(operator, architecture) for all that nvcc compiles."""
    operators = (*launchers.OPERATORS, *cuda_perceptron.KERNELS)
    return [(op, arch) for arch in architectures if arch in TARGETS for op in operators]


def source(op: str) -> str:
    """All kernels of an operator. What those of a perceptron have of shared memory depends on its widths."""
    if op not in cuda_perceptron.KERNELS:
        return launchers.driver(op)
    return cuda_perceptron.instances(op, *((math, n) for math in cuda_perceptron.MATHS for n in (16, 32, 64)))
