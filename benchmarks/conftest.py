"""Contestants in turn under pytest-benchmark."""

from collections.abc import Callable, Mapping

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from xattr_cuda.bench.contestants import Step
from xattr_cuda.bench.measure import summarise
from xattr_cuda.training.timing import interleaved

WARMUP = 3
InTurn = Callable[[Mapping[str, Step], int], None]


@pytest.fixture
def in_turn(benchmark: BenchmarkFixture) -> InTurn:
    """Times rounds of every contestant once; quantiles and ratios of the contestants go to extra_info."""

    def run(steps: Mapping[str, Step], rounds: int) -> None:
        seconds: dict[str, list[float]] = {name: [] for name in steps}

        def turn() -> None:
            for name, times in interleaved(steps, rounds=1, warmup=0).items():
                seconds[name] += times

        benchmark.pedantic(turn, rounds=rounds, iterations=1, warmup_rounds=WARMUP)
        results = summarise({name: times[-rounds:] for name, times in seconds.items()})
        benchmark.extra_info["contestants"] = {name: result.to_json() for name, result in results.items()}

    return run
