"""Training steps with and without a prior: one round is every contestant once, in turn.

python -m pytest benchmarks/test_steps.py --benchmark-only --benchmark-json steps.json

The benchmark's own time is that of a round; medians, 20th and 80th percentiles and ratios of the contestants are in its
extra_info. XATTR_BENCH=compiled,sampled adds those contestants; XATTR_BENCH_ROUNDS=N replaces the cases' own rounds.
"""

import os

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from xattr_cuda.bench.cases import STEPS
from xattr_cuda.bench.measure import prepare, release, summarise
from xattr_cuda.bench.report import machine
from xattr_cuda.training.timing import interleaved

GROUPS = frozenset({"base", "floor", *filter(None, os.environ.get("XATTR_BENCH", "").split(","))})
ROUNDS = int(os.environ.get("XATTR_BENCH_ROUNDS", "0"))
WARMUP = 3


@pytest.mark.filterwarnings("default")  # compilers warn about themselves
@pytest.mark.parametrize("name", STEPS)
def test_step(benchmark: BenchmarkFixture, name: str) -> None:
    case = STEPS[name]
    rounds = ROUNDS or case.rounds
    _, steps, failed = prepare(case, groups=GROUPS)
    seconds: dict[str, list[float]] = {name: [] for name in steps}

    def turn() -> None:
        for contestant, times in interleaved(steps, rounds=1, warmup=0).items():
            seconds[contestant] += times

    benchmark.group = "steps"
    benchmark.pedantic(turn, rounds=rounds, iterations=1, warmup_rounds=WARMUP)
    results = summarise({contestant: times[-rounds:] for contestant, times in seconds.items()})
    benchmark.extra_info["machine"] = machine()
    benchmark.extra_info["contestants"] = {contestant: result.to_json() for contestant, result in results.items()}
    benchmark.extra_info["failed"] = failed
    release()
