"""Seeds and back ends for every test."""

import os
import random
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

# Read when torch is loaded: processes that share the cores wait for each other, and a thread that waits may hold none.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import xattr_cuda as xa

try:
    import hypothesis
    import hypothesis.core
except ImportError:  # a machine that has nothing but what the check of a GPU needs
    hypothesis = None

BACKENDS = {"reference": "cpu", "cpu": "cpu", "triton": "cuda", "cuda": "cuda"}  # back end: the device of its tests

if hypothesis is not None:
    hypothesis.settings.register_profile(
        "xattr",
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("xattr")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="seed of all random inputs; fresh if left out")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(2**31)
    if hypothesis is not None:
        hypothesis.core.global_force_seed = config.option.seed


def pytest_report_header(config: pytest.Config) -> str:
    return (
        f"inputs drawn from --seed {config.option.seed}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """Seeds torch for one test, from the session's seed and the test's name; returns the seed."""
    value = (request.config.option.seed + zlib.crc32(request.node.nodeid.encode())) % 2**31
    torch.manual_seed(value)
    return value


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every back end in turn, in force during the test; skipped with the reason where it cannot run.

    Tensors that the test makes without naming a device are made on the back end's.
    """
    if reason := xa.ops.unavailable(request.param):
        pytest.skip(reason)
    device = BACKENDS[request.param]
    with xa.use_backend(request.param), nullcontext() if device == "cpu" else torch.device(device):
        yield request.param


@pytest.fixture
def device(backend: str) -> str:
    """The device of the back end in force."""
    return BACKENDS[backend]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On one thread: two that wait for each other on a busy machine take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def restored_rules() -> Iterator[None]:
    """The rules are afterwards those that they were before."""
    from xattr_cuda.sweep.rules import registry

    tables = (registry._MODULES, registry._RESOLVED, registry._FUNCTIONS)
    copies = [dict(table) for table in tables]
    yield
    for table, before in zip(tables, copies, strict=True):
        table.clear()
        table.update(before)


@pytest.fixture(scope="session")
def _emulating_driver() -> Any:
    """One driver for all tests: Triton keeps what it has compiled by driver."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from gpuless.drivers import EmulatingDriver

    return EmulatingDriver()


@pytest.fixture
def emulated(_emulating_driver: Any) -> Iterator[Any]:
    """Triton kernels launched on CPU tensors are compiled for sm_80 and executed by the emulator; yields the driver."""
    from gpuless.drivers import installed

    _emulating_driver.launches.clear()
    with installed(_emulating_driver):
        yield _emulating_driver


@pytest.fixture
def tuning_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Files of tuning lie in a folder of the test's own, and none is in force before or after it."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from xattr_cuda.kernels.triton import tuned

    monkeypatch.setenv("XATTR_CUDA_CACHE", str(tmp_path))
    tuned.forget()
    yield tmp_path
    tuned.forget()
