"""Every operator on every back end that works here, on the shapes of the paper's network at batch 512.

python -m pytest benchmarks/operators.py --benchmark-only
"""

from typing import Any

import pytest
import torch
from cases import PAPER
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import xattr_cuda as xa

BATCH, K, N = 512, *PAPER.widths[:2]
PIXELS = 150_528  # 3 x 224 x 224


def _bits(columns: int) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (BATCH, (columns + 31) // 32), dtype=torch.int32)


x, z, weight = torch.randn(BATCH, K), torch.randn(BATCH, N), torch.randn(N, K)
image = torch.randn(16, 64, 56, 56)
windows = ((2, 2), (2, 2), (0, 0), (1, 1))
pooled, idx = xa.ops.max_pool(image, *windows)
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "relu_mask": (z,),
    "mask_mul": (z, _bits(N)),
    "add_relu_mask": (z, z.flip(0)),
    "linear_relu_mask": (x, weight),
    "matmul_mask": (z, weight, _bits(K)),
    "dual_weight_grad": (z, x, z.flip(0), x.flip(0)),
    "max_pool": (image, *windows, False),
    "pool_pull": (pooled, idx, image.shape, *windows),
    "pool_push": (image, idx, *windows),
    "gini": (torch.rand(PIXELS),),
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("op", xa.ops.SCHEMAS)
def test_operator(benchmark: BenchmarkFixture, op: str, backend: str) -> None:
    if reason := xa.ops.unavailable(backend):
        pytest.skip(reason)
    benchmark.group = op
    with xa.use_backend(backend), torch.no_grad():
        benchmark.pedantic(getattr(xa.ops, op), ARGUMENTS[op], rounds=30, iterations=1, warmup_rounds=3)
