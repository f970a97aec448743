"""Every kernel in every configuration, compiled for every architecture: what it needs, and whether that is allowed.

    make kernel-report          # a table, and build/kernel-report.json

A kernel may have nothing in local memory, spills least of all, and must fit the chip's shared memory; a product uses
tensor cores unless it is of exact float32, and an element-wise kernel reads and writes 16 bytes a thread.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import pkgutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from xattr_cuda.kernels import triton as kernels

from . import cuda_report, nvcc, toolchain
from .offline import CHIPS, MachineCode, compile_kernel, machine_code

ARCHITECTURES = ("80", "90", "100", "gfx942")
EXACT = "ieee"  # in the name of a configuration: products of exact float32


@dataclass(frozen=True)
class Entry:
    """One line of the report. wide_memory_ops: loads and stores of 16 bytes a thread or more; occupancy: share of the
    warps that a multiprocessor could hold; faults: what is not allowed.
    """

    backend: str
    kernel: str
    arch: str
    config: str
    registers: int
    spill_bytes: int
    local_bytes: int
    shared_bytes: int
    tensor_core_ops: int
    wide_memory_ops: int
    occupancy: float
    faults: tuple[str, ...]


def modules() -> list[ModuleType]:
    """All modules of kernels/triton, in the order of their names."""
    names = sorted(found.name for found in pkgutil.iter_modules(kernels.__path__))
    return [importlib.import_module(f"{kernels.__name__}.{name}") for name in names]


def variants(arch: str) -> Iterator[Any]:
    """The variants of all modules that are meant for an architecture."""
    for module in modules():
        yield from (variant for variant in getattr(module, "VARIANTS", ()) if arch in variant.architectures)


def jobs(architectures: Iterable[str] = ARCHITECTURES) -> list[tuple[str, str]]:
    """(kernel, architecture) for all that Triton compiles: by their names, which a process can send to another one."""
    return [pair for arch in architectures for pair in dict.fromkeys((name_of(one), arch) for one in variants(arch))]


def name_of(variant: Any) -> str:
    """The kernel's name as it was written."""
    return variant.kernel.fn.__name__


def compiled(variant: Any, arch: str) -> Any:
    """A variant as Triton compiles it."""
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    return compile_kernel(
        variant.kernel, variant.signature, variant.constants, arch, tuple(variant.divisible), **options
    )


def faults(variant: Any, code: MachineCode) -> tuple[str, ...]:
    """What a kernel does that it may not, in words."""
    found = []
    if not code.in_registers:
        found.append(
            f"local memory: {code.spill_bytes} bytes spilled, {code.local_bytes} local, {code.local_ops} accesses"
        )
    if not code.fits:
        limit = CHIPS[code.arch].shared_block
        found.append(f"shared memory: {code.shared_bytes} bytes, a block may have {limit}")
    if not code.occupancy:
        found.append("no block fits a multiprocessor")
    if variant.gemm and EXACT not in variant.config.split("-") and not code.tensor_core_ops:
        found.append("a product without tensor cores")
    if variant.elementwise and not (code.wide_loads and code.wide_stores):
        found.append(f"narrow accesses: {code.wide_loads} loads and {code.wide_stores} stores of 16 bytes")
    return tuple(found)


def entries_of(chosen: Iterable[Any], arch: str) -> list[Entry]:
    """The lines of some variants on an architecture; what does not compile is a line too."""
    tried = [(variant, _compiled(variant, arch)) for variant in chosen]
    good = [(variant, binary) for variant, binary in tried if not isinstance(binary, Entry)]
    codes = machine_code([(binary, variant.num_warps) for variant, binary in good], arch)
    found = [binary for _, binary in tried if isinstance(binary, Entry)]
    for (variant, _), code in zip(good, codes, strict=True):
        found.append(_line("triton", name_of(variant), arch, variant.config, code, faults(variant, code)))
    return found


def _compiled(variant: Any, arch: str) -> Any:
    try:
        return compiled(variant, arch)
    except Exception as error:  # whatever a compiler raises is the finding
        return _failed("triton", name_of(variant), arch, variant.config, error)


def kernel_entries(kernel: str, arch: str) -> list[Entry]:
    """The lines of a Triton kernel in all its configurations on an architecture."""
    return entries_of((variant for variant in variants(arch) if name_of(variant) == kernel), arch)


def _line(backend: str, kernel: str, arch: str, config: str, code: MachineCode, found: tuple[str, ...]) -> Entry:
    return Entry(
        backend=backend,
        kernel=kernel,
        arch=arch if arch.startswith("gfx") else f"sm_{arch}",
        config=config,
        registers=code.registers,
        spill_bytes=code.spill_bytes,
        local_bytes=code.local_bytes,
        shared_bytes=code.shared_bytes,
        tensor_core_ops=code.tensor_core_ops,
        wide_memory_ops=code.wide_loads + code.wide_stores,
        occupancy=round(code.occupancy, 3),
        faults=found,
    )


def _failed(backend: str, kernel: str, arch: str, config: str, error: Exception) -> Entry:
    nothing = MachineCode(arch, 0, 0, 0, 0, 0.0, Counter())
    return _line(backend, kernel, arch, config, nothing, (" ".join(str(error).split())[:200],))


def cuda_entries(op: str, arch: str) -> list[Entry]:
    """The lines of an operator's kernels in CUDA C++ on an architecture."""
    try:
        kernels = cuda_report.compiled(cuda_report.source(op), arch)
    except nvcc.NvccError as error:
        return [_failed("cuda", op, arch, "", error)]
    return [_line("cuda", one.name, arch, one.config, one.code, cuda_report.faults(one)) for one in kernels]


def entries(architectures: tuple[str, ...], processes: int) -> list[Entry]:
    """All lines, compiled by several processes; without nvcc only those of Triton."""
    in_cuda = cuda_report.jobs(architectures) if toolchain.nvcc() else []
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        begun = [pool.submit(kernel_entries, *job) for job in jobs(architectures)]
        begun += [pool.submit(cuda_entries, *job) for job in in_cuda]
        return [one for part in begun for one in part.result()]


def table(found: Iterable[Entry]) -> Table:
    """The report as a table of the terminal."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title="Compiled kernels", title_justify="left")
    for name in ("back end", "kernel", "arch", "config"):
        shown.add_column(name, no_wrap=True)
    for name in ("registers", "spills", "local", "shared", "tensor core", "wide", "occupancy"):
        shown.add_column(name, justify="right")
    shown.add_column("")
    for one in found:
        numbers = (one.registers, one.spill_bytes, one.local_bytes, one.shared_bytes, one.tensor_core_ops)
        words = f"[red]{one.faults[0]}[/red]" if one.faults else "ok"
        cells = (*map(str, (*numbers, one.wide_memory_ops)), f"{one.occupancy:.0%}", words)
        shown.add_row(one.backend, one.kernel, one.arch, one.config, *cells)
    return shown


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile every kernel offline and report what it needs.")
    parser.add_argument("architectures", nargs="*", default=[], help=f"by default {' '.join(ARCHITECTURES)}")
    parser.add_argument("--output", type=Path, default=Path("build/kernel-report.json"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(given)
    if strangers := set(options.architectures) - set(CHIPS):
        parser.error(f"no architecture {', '.join(strangers)}; choose among {', '.join(CHIPS)}")
    found = entries(tuple(options.architectures) or ARCHITECTURES, options.processes)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 150).print(table(found))
    bad = [one for one in found if one.faults]
    if toolchain.nvcc() is None:
        print("nvcc was not found: kernels in CUDA C++ are left out")
    print(f"{len(found)} compiled kernels, {len(bad)} with faults; written: {options.output}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
