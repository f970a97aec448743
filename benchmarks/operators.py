"""Every operator on every back end that works here, on the shapes of the paper's network at batch 512; gini by size.

python -m pytest benchmarks/operators.py --benchmark-only
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from cases import PAPER
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import xattr_cuda as xa
from xattr_cuda.bench.cases import GINI
from xattr_cuda.bench.contestants import Step
from xattr_cuda.bench.gini import gini_steps

BATCH, K, N = 512, *PAPER.widths[:2]
PIXELS = 150_528  # 3 x 224 x 224


def _bits(columns: int) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (BATCH, (columns + 31) // 32), dtype=torch.int32)


x, z, weight = torch.randn(BATCH, K), torch.randn(BATCH, N), torch.randn(N, K)
image = torch.randn(16, 64, 56, 56)
windows = ((2, 2), (2, 2), (0, 0), (1, 1))
pooled, idx = xa.ops.max_pool(image, *windows)
weights = [torch.randn(n, k) * (2 / k) ** 0.5 for k, n in itertools.pairwise(PAPER.widths)]
network, u = (weights, [0.0] * (len(weights) - 1)), torch.ones(BATCH, 1)
kept = list(range(1, len(weights)))
_, _, masks, _, cotangents = xa.ops.mlp_attribute(x, *network, u, [], kept)
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
    "mlp_attribute": (x, *network, u, [], kept),
    "mlp_attribute_backward": (x, x, u, None, None, *network, masks, [*cotangents, u], [], [*kept, len(weights)]),
    "input_times_gradient": (x, x.flip(0)),
    "gini": (torch.rand(PIXELS),),
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("op", xa.ops.SCHEMAS)
def test_operator(benchmark: BenchmarkFixture, op: str, backend: str) -> None:
    if reason := xa.ops.unavailable(backend):
        pytest.skip(reason)
    if op not in ARGUMENTS:
        pytest.fail(f"operator {op!r} has no arguments to be timed with; add an entry to ARGUMENTS in {__file__}")
    benchmark.group = op
    with xa.use_backend(backend), torch.no_grad():
        benchmark.pedantic(getattr(xa.ops, op), ARGUMENTS[op], rounds=30, iterations=1, warmup_rounds=3)


@pytest.mark.parametrize("name", GINI)
def test_gini_against_a_sort(
    benchmark: BenchmarkFixture, in_turn: Callable[[Mapping[str, Step], int], None], name: str
) -> None:
    """One round is a sort, and the coefficient with its gradient, in turn; ratios are in extra_info."""
    steps, _ = gini_steps(GINI[name].n)
    steps.pop("pairwise", None)
    benchmark.group = "gini"
    in_turn(steps, 30)
