"""Triton drivers for a machine without a GPU: `kernel[grid](cpu_tensors)` binds, specialises and compiles as it would.

    driver = EmulatingDriver()          # compiles for sm_80 and executes the PTX on the CPU, see `emulator`
    with installed(driver):
        kernel[grid](x, y, n, BLOCK=64)
    driver.launches                     # [Launch(name, grid, ...), ...]

`RecordingDriver(arch)` compiles for any NVIDIA target and runs nothing: it finds mistakes in launches, configurations
that need too much shared memory, and errors of the compiler. The emulating driver executes what sm_80 has; what newer
devices add (TMA, wgmma, tcgen05) can only be compiled. Autotuning calls every configuration once and takes the first.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # its default differs between releases, and the PTX with it

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.cache import get_cache_manager
from triton.runtime.driver import driver as active_driver

from . import emulator, ptx

SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory that one block may have, by compute capability."""

# Triton keeps compiled kernels, targets and limits by device number; no driver may find another's, or a real device's.
_device_numbers = itertools.count(1000)
_LONGEST_NAME = 150  # Triton cuts the names of the files in its cache


class Launch(NamedTuple):
    """What was launched: the kernel's name, its grid, Triton's metadata, and the instructions that were stepped."""

    name: str
    grid: tuple[int, int, int]
    metadata: Any
    steps: int


class _Utils:
    """What Triton asks of the C extension of a real driver."""

    def __init__(self, shared_limit: int, multiprocessors: int) -> None:
        self.properties = {
            "max_shared_mem": shared_limit,
            "multiprocessor_count": multiprocessors,
            "max_num_regs": 65_536,
            "warpSize": 32,
            "sm_clock_rate": 1,
            "mem_clock_rate": 1,
            "mem_bus_width": 1,
        }

    def get_device_properties(self, device: int) -> dict[str, int]:
        return self.properties

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, ...]:
        return 0, 1, 0, 0, 1024  # module, function, registers, spills, threads

    def unload_module(self, module: int) -> None:
        pass


class RecordingDriver:
    """Compiles for `sm_<arch>` and records launches; outputs stay as they were."""

    executes_cpu_tensors = False

    def __init__(self, arch: int = 90, shared_limit: int | None = None, multiprocessors: int = 108) -> None:
        self.target = GPUTarget("cuda", arch, 32)
        self.utils = _Utils(shared_limit or SHARED_LIMIT[arch], multiprocessors)
        self.device = next(_device_numbers)
        self.launches: list[Launch] = []

    def launcher_cls(self, src: Any, metadata: Any) -> Callable[..., None]:
        """Triton's hook: the function that launches one compiled kernel."""
        types = list(src.signature.values())

        def launch(
            x: int,
            y: int,
            z: int,
            stream: int,
            function: int,
            packed: Any,
            launch_metadata: Any,
            enter: Any,
            leave: Any,
            *args: Any,
        ) -> None:
            steps = self.execute(metadata, types, (x, y, z), args)
            self.launches.append(Launch(metadata.name, (x, y, z), metadata, steps))

        return launch

    def execute(self, metadata: Any, types: list[Any], grid: tuple[int, int, int], args: tuple[Any, ...]) -> int:
        """Run the kernel, if this driver does; the number of instructions stepped through."""
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_benchmarker(self) -> Callable[..., list[float]]:
        def bench(call: Callable[[], object], quantiles: Any = None, **_: Any) -> list[float]:
            call()
            return [1.0, 1.0, 1.0]

        return bench


class EmulatingDriver(RecordingDriver):
    """Compiles for sm_80 and executes the PTX on CPU tensors, with every check of the emulator.

    races: whether shared memory is checked for missing barriers.
    """

    executes_cpu_tensors = True

    def __init__(self, races: bool = True, **options: Any) -> None:
        super().__init__(arch=80, **options)
        self.races = races

    def execute(self, metadata: Any, types: list[Any], grid: tuple[int, int, int], args: tuple[Any, ...]) -> int:
        flat = itertools.chain.from_iterable(_flattened(t, v) for t, v in zip(types, args, strict=True))
        kernel = _parsed(metadata.hash, metadata.name)
        return emulator.run(kernel, list(flat), grid, shared_bytes=metadata.shared, races=self.races)


@functools.cache
def _parsed(digest: str, name: str) -> ptx.Kernel:
    path = get_cache_manager(digest).get_file(name[:_LONGEST_NAME] + ".ptx")
    with open(path, encoding="utf-8") as file:
        return ptx.parse(file.read(), name)


def _flattened(kind: Any, value: Any) -> list[Any]:
    """The kernel parameters that one argument becomes."""
    if isinstance(kind, tuple):
        return [one for k, v in zip(kind, value, strict=True) for one in _flattened(k, v)]
    if kind == "constexpr":
        return []
    if isinstance(kind, str) and kind.startswith("tensordesc"):
        raise ptx.PtxError("not emulated: tensor descriptors made on the host; make them in the kernel")
    return [value]


def _to_ptx_only(backend: Any = None, stages: Any = None, *_: Any) -> tuple[str, str]:
    """Triton's hook of its stages: no machine code, which nobody runs here. Returns what tells such kernels apart."""
    if stages is not None:
        stages["cubin"] = lambda source, metadata: b""
    return ("ptx only",) * 2


@contextmanager
def installed(driver: RecordingDriver) -> Iterator[RecordingDriver]:
    """Make `driver` Triton's active one inside a `with` block, and the former one again after it."""
    before = active_driver._active  # its property `active` would create a default one, which needs a GPU
    active_driver.set_active(driver)
    stages, knobs.runtime.add_stages_inspection_hook = knobs.runtime.add_stages_inspection_hook, _to_ptx_only
    try:
        yield driver
    finally:
        active_driver.set_active(before)
        knobs.runtime.add_stages_inspection_hook = stages
