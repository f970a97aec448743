"""Timing of a case: contestants in turn, their gradients checked first."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..training.timing import interleaved
from .cases import Case, GiniCase
from .check import check_as_timed, check_exactly
from .contestants import Contestant, Step, selected
from .gini import gini_steps
from .on_gpu import OnGpu
from .problem import Problem, pose

Tell = Callable[[str, int, int], object]
"""(what is going on, parts done, parts in all)."""
WARMUP = 20


class Quantiles(NamedTuple):
    """20th percentile, median and 80th percentile."""

    p20: float
    p50: float
    p80: float


def quantiles(values: Sequence[float]) -> Quantiles:
    """Of one number or more, interpolated between neighbours."""
    if len(values) < 2:
        return Quantiles(values[0], values[0], values[0])
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return Quantiles(cuts[1], statistics.median(values), cuts[7])


@dataclass
class Result:
    """One contestant of a case. seconds: of a step. ratio: of the medians, to the first contestant. ratios: of each
    round. failed: why there are none. more: what else was measured, by name: bytes, operations.
    """

    seconds: Quantiles | None = None
    ratio: float | None = None
    ratios: Quantiles | None = None
    failed: str | None = None
    more: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and words."""
        if self.failed is not None:
            return {"failed": self.failed}
        return {
            "seconds": None if self.seconds is None else self.seconds._asdict(),
            "ratio": self.ratio,
            "ratio of each round": None if self.ratios is None else self.ratios._asdict(),
            **self.more,
        }


@dataclass
class Measurement:
    """A case and its contestants; the first of them is what the others are compared with."""

    case: Case | GiniCase
    rounds: int
    results: dict[str, Result]
    floors: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    on_gpu: list[OnGpu] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and words."""
        size = {"n": self.case.n} if isinstance(self.case, GiniCase) else {"batch": self.case.batch}
        results = {name: result.to_json() for name, result in self.results.items()}
        return {
            "title": self.case.title,
            **size,
            "rounds": self.rounds,
            "floors": self.floors,
            "remarks": self.remarks,
            "on a GPU": {one.dtype: one.to_json() for one in self.on_gpu},
            "results": results,
        }


def summarise(seconds: Mapping[str, Sequence[float]]) -> dict[str, Result]:
    """Quantiles and ratios of seconds that were taken in turn; the first name is the yardstick."""
    base = next(iter(seconds.values()))
    typical = statistics.median(base)
    return {
        name: Result(
            quantiles(times),
            statistics.median(times) / typical,
            quantiles([t / b for t, b in zip(times, base, strict=True)]),
        )
        for name, times in seconds.items()
    }


def prepare(
    case: Case, people: Mapping[str, Contestant] | None = None, groups: frozenset[str] = frozenset({"base"})
) -> tuple[Problem, dict[str, Step], dict[str, str]]:
    """The problem, the steps to time, and who cannot run with the reason; WrongGradientsError where one is wrong."""
    p = pose(case)
    people = dict(selected(p, groups) if people is None else people)
    failed = check_exactly(case, people)
    steps: dict[str, Step] = {}
    for name, one in people.items():
        if name not in failed:
            steps[name] = one.make(p)
    failed |= check_as_timed(p, steps, people, case)
    return p, {name: step for name, step in steps.items() if name not in failed}, failed


def measure(
    case: Case | GiniCase,
    groups: frozenset[str] = frozenset({"base"}),
    rounds: int | None = None,
    tell: Tell = lambda *_: None,
) -> Measurement:
    """Time a case, fp32, on as many threads as PyTorch now has.

    groups: of contestants. rounds: None is the case's own. Raises WrongGradientsError for gradients that disagree.
    """
    tell(f"{case.name}: checking gradients", 0, 1)
    if isinstance(case, GiniCase):
        names = ["torch.sort", "gini", "pairwise"]
        steps, failed = gini_steps(case.n)
    else:
        p, steps, failed = prepare(case, groups=groups)
        names = list(selected(p, groups))
    rounds = rounds or case.rounds
    warmup, done = min(WARMUP, rounds), 0

    def on_round() -> None:
        nonlocal done
        done += 1
        tell(f"{case.name}: timing in turn", done, rounds + warmup)

    results = summarise(interleaved(steps, rounds, warmup, on_round))
    results |= {name: Result(failed=f"failed: {why}") for name, why in failed.items()}
    return Measurement(case, rounds, {name: results[name] for name in names})


def release() -> None:
    """Forget what compiled steps have left behind, so that the next case starts fresh."""
    torch.compiler.reset()
