"""Run CUDA C++ on the CPU: a driver that starts a kernel is compiled by g++ over shim/cuemu.h and given tensors.

    program = build(DRIVER, "sanitized")
    program.run(x, y, 70)              # CPU tensors change in place, as on a GPU

A driver is C++ text that includes a kernel and defines `void run(const cuemu::Arguments&)`; see shim/main.h. What the
modes see is said in shim/cuemu.h. A program that fails raises ShimError with what it printed.
"""

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .memory import as_bytes
from .toolchain import gxx, headers

SHIM = Path(__file__).parent / "shim"
KERNELS = Path(__file__).parents[2] / "kernels"

_FLAGS = ("-std=c++17", "-g", "-Wall", "-Wno-unknown-pragmas", "-Wno-comment", "-rdynamic")
MODES = {
    "plain": ("-O2",),
    "sanitized": ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "threads": ("-O1", "-DCUEMU_OS_THREADS", "-fsanitize=thread", "-pthread"),
}
"""Flags by mode: fast; accesses out of bounds and undefined behaviour are errors; races within a block are."""

ORDERS: tuple[Mapping[str, str], ...] = ({}, {"CUEMU_SEED": "1"}, {"CUEMU_SEED": "2", "CUEMU_EAGER": "1"})
"""Environments: the turns of threads, and whether asynchronous copies land as late or as early as they may."""

_SANITIZERS = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}


class ShimError(RuntimeError):
    """The program did not compile or did something wrong; the message says what."""


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="shim-")


@dataclass(frozen=True)
class Program:
    """A compiled driver."""

    path: Path

    def run(self, *args: Any, environment: Mapping[str, str] | None = None, timeout: float = 300) -> None:
        """Run it on tensors, numpy arrays, whole numbers, floats, and None for a null pointer."""
        with tempfile.TemporaryDirectory(prefix="shim-run-") as folder:
            given, found = Path(folder, "given"), Path(folder, "found")
            given.write_bytes(b"".join(_words(args)))
            done = subprocess.run(
                [self.path, given, found],
                env={**os.environ, **_SANITIZERS, **(environment or {})},
                capture_output=True,
                text=True,
                timeout=timeout,
            )
            if done.returncode:
                raise ShimError(f"exit {done.returncode}\n{done.stderr}{done.stdout}")
            _take_back(args, np.fromfile(found, np.uint8))


def _is_buffer(arg: Any) -> bool:
    return arg is None or isinstance(arg, np.ndarray) or hasattr(arg, "untyped_storage")


def _words(args: tuple[Any, ...]) -> Iterator[bytes]:
    """The file that shim/main.cpp reads."""
    yield np.int64(len(args)).tobytes()
    for arg in args:
        if _is_buffer(arg):
            data, start = (np.zeros(0, np.uint8), -1) if arg is None else as_bytes(arg)
            yield np.array([1, data.size, start], np.int64).tobytes()
            yield data.tobytes() + bytes(-data.size % 8)
        else:
            number = np.float64(arg) if isinstance(arg, float) else np.int64(arg)
            yield np.int64(0).tobytes() + number.tobytes()


def _take_back(args: tuple[Any, ...], found: np.ndarray) -> None:
    for arg in args:
        if _is_buffer(arg) and arg is not None:
            data, _ = as_bytes(arg)
            data[:] = found[: data.size]
            found = found[data.size :]


def build(driver: str, mode: str = "plain", kernels: Path = KERNELS) -> Program:
    """The program of a driver, compiled once. kernels: the folder that `#include "cuda/<op>.cuh"` is looked up in."""
    return _build(driver, mode, kernels)


@functools.cache
def _build(driver: str, mode: str, kernels: Path) -> Program:
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    source, path = folder / "driver.cpp", folder / "program"
    source.write_text('#include "main.h"\n' + driver)
    common = _common(mode)
    stderr = _compile(mode, common, "-I", kernels, source, common / "main.o", "-o", path)
    if "warning:" in stderr:
        raise ShimError(stderr)
    return Program(path)


@functools.cache
def _common(mode: str) -> Path:
    """A folder with what all programs of a mode have in common, compiled: cuemu.h, and main.o."""
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    _compile(mode, folder, "-x", "c++-header", SHIM / "cuemu.h", "-o", folder / "cuemu.h.gch")
    _compile(mode, folder, "-c", SHIM / "main.cpp", "-o", folder / "main.o")
    return folder


def _compile(mode: str, common: Path, *more: object) -> str:
    """Run g++ in a mode; what it wrote to stderr."""
    included = ("-include", "cuemu.h") if (common / "cuemu.h.gch").exists() else ()
    places = ["-I", common, "-I", SHIM, "-isystem", headers()]
    command = [gxx(), *_FLAGS, *MODES[mode], *places, *included, *more]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise ShimError(done.stderr)
    return done.stderr


def with_fault(file: str, old: str, new: str) -> Path:
    """A copy of the kernels in which `old`, which occurs once in cuda/<file>, is `new`: for `build`."""
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    shutil.copytree(KERNELS / "cuda", folder / "cuda")
    text = (folder / "cuda" / file).read_text()
    if text.count(old) != 1:
        raise ValueError(f"{file} contains {old!r} {text.count(old)} times; wanted once")
    (folder / "cuda" / file).write_text(text.replace(old, new))
    return folder
