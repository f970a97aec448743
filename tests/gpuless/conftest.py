"""What the tests of kernels share."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from . import toolchain


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New memory holds NaN and the largest whole numbers, so that what a kernel leaves out is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["triton", "cuda", "source"])
def kernels(request: pytest.FixtureRequest) -> Any:
    """Kernels under the names and with the signatures of the references, on CPU tensors.

    triton: compiled by Triton and executed. cuda: those in CUDA C++, compiled by nvcc and executed. source: the same,
    compiled by g++.
    """
    if request.param == "triton":
        request.getfixturevalue("emulated")
        from xattr_cuda.kernels import triton

        return triton
    if not (toolchain.nvcc() and toolchain.headers() and toolchain.gxx()):
        pytest.skip("needs nvcc and g++")
    from . import launchers

    return launchers.Compiled() if request.param == "cuda" else launchers.source()


@pytest.fixture
def launched(request: pytest.FixtureRequest, kernels: Any) -> Any:
    """What the kernels have been launched for, a list that grows. Launches of the source are not recorded."""
    return kernels.launches if hasattr(kernels, "launches") else request.getfixturevalue("emulated").launches
