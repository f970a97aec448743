"""Training steps with and without a prior: one round is every contestant once, in turn.

python -m pytest benchmarks/test_steps.py --benchmark-only --benchmark-json steps.json

The benchmark's own time is that of a round; medians, 20th and 80th percentiles and ratios of the contestants are in its
extra_info. XATTR_BENCH=compiled,sampled adds those contestants; XATTR_BENCH_ROUNDS=N replaces the cases' own rounds.
"""

import os
from collections.abc import Callable, Mapping

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from xattr_cuda.bench.cases import STEPS
from xattr_cuda.bench.contestants import Step
from xattr_cuda.bench.measure import prepare, release
from xattr_cuda.bench.report import machine

GROUPS = frozenset({"base", "floor", *filter(None, os.environ.get("XATTR_BENCH", "").split(","))})
ROUNDS = int(os.environ.get("XATTR_BENCH_ROUNDS", "0"))


@pytest.mark.filterwarnings("default")  # compilers warn about themselves
@pytest.mark.parametrize("name", STEPS)
def test_step(benchmark: BenchmarkFixture, in_turn: Callable[[Mapping[str, Step], int], None], name: str) -> None:
    case = STEPS[name]
    rounds = ROUNDS or case.rounds
    _, steps, failed = prepare(case, groups=GROUPS)
    benchmark.group = "steps"
    in_turn(steps, rounds)
    benchmark.extra_info["machine"] = machine()
    benchmark.extra_info["failed"] = failed
    release()
