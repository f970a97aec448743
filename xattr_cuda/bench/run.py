"""A whole benchmark: cases in order, each checked, timed and, if asked, counted and weighed."""

from collections.abc import Sequence

from ..ops import gpu
from ..training.errors import UserError
from . import count, memory, on_gpu
from .cases import Case, GiniCase
from .check import few_words
from .contestants import CONTESTANTS
from .measure import Measurement, Tell, measure, release
from .problem import pose


def groups(compiled: bool, sampled: bool, everything: bool) -> frozenset[str]:
    """Groups of contestants by what was asked for."""
    found = {"base", "share", "floor"}
    if compiled or everything:
        found.add("compiled")
    if sampled or everything:
        found.add("sampled")
    return frozenset(found)


def run(
    cases: Sequence[Case | GiniCase],
    contestants: frozenset[str],
    rounds: int | None,
    threads: int,
    counted: bool,
    weighed: bool,
    tell: Tell,
) -> list[Measurement]:
    """Measure every case. Raises WrongGradientsError where gradients disagree: then there is no report at all."""
    if not cases:
        raise UserError("there is no case to measure")
    found = []
    for case in cases:
        m = measure(case, contestants, rounds, tell)
        if isinstance(case, Case):
            if counted:
                add_counts(m, case, tell)
            if weighed:
                add_memory(m, case, threads, tell)
        if "compiled" in contestants:
            release()
        found.append(m)
    return found


def _timed(m: Measurement) -> list[str]:
    return [name for name, result in m.results.items() if result.failed is None]


def add_counts(m: Measurement, case: Case, tell: Tell) -> None:
    """FLOPs, bytes and launches of every contestant that was timed, here and on a GPU, and the floors of the case."""
    tell(f"{case.name}: counting", 0, 1)
    p = pose(case)
    for name, counts in count.add_counts(p, {name: CONTESTANTS[name].make(p) for name in _timed(m)}).items():
        m.results[name].more |= counts
        if "flops" not in counts:
            m.remarks.append(f"{case.name}, {name}: FLOPs not counted: an operator has no formula in bench/count.py")
    layers = count.layer_flops(p)
    m.floors = {
        "one chain": count.floor(layers, 1),
        "two chains": count.floor(layers, 2),
        "a quarter of the rows": count.floor(layers, p.chains, 0.25),
    }
    if reason := gpu.missing():
        m.remarks.append(f"{case.name}: what a GPU would do is not counted: {reason}")
    else:
        m.on_gpu = on_gpu.counted(case)


def add_memory(m: Measurement, case: Case, threads: int, tell: Tell) -> None:
    """Peaks of allocated and of resident memory, each over the plain step's; without them where a process fails."""
    names = [name for name in _timed(m) if CONTESTANTS[name].group != "floor"]
    for done, name in enumerate(names):
        tell(f"{case.name}: memory", done, len(names))
        try:
            m.results[name].more |= memory.of_fresh_process(case.name, name, threads)
        except (RuntimeError, OSError) as error:
            m.remarks.append(f"{case.name}, {name}: memory not measured: {few_words(error)}")
    plain = m.results["plain"].more
    for name in names:
        more = m.results[name].more
        for what in ("peak", "resident"):
            if more.get(f"{what} bytes") is not None and plain.get(f"{what} bytes"):
                more[f"{what} ratio"] = more[f"{what} bytes"] / plain[f"{what} bytes"]
