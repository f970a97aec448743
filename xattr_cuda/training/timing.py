"""Timing that survives a busy machine: contestants take turns, so that whatever slows one slows all."""

import time
from collections.abc import Callable, Mapping
from statistics import median


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int = 50,
    warmup: int = 3,
    on_round: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Wall-clock seconds of every call, taken in turn: A B C A B C ...

    contestants: name to a function without arguments. rounds: calls timed a contestant; warmup: calls before them that
    are not. on_round: called after every round, warm-up included, outside the timed part: a progress bar.
    Returns name to `rounds` seconds, in the order taken. Raises ValueError unless rounds >= 1 and warmup >= 0.

    The clock does not wait for a GPU: a contestant that launches GPU work must synchronise before it returns.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds is {rounds} and warmup {warmup}; wanted at least 1 and at least 0")
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warmup + rounds):
        for name, call in contestants.items():
            start = time.perf_counter()
            call()
            elapsed = time.perf_counter() - start
            if turn >= warmup:
                seconds[name].append(elapsed)
        if on_round is not None:
            on_round()
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Median of every contestant's seconds."""
    return {name: median(values) for name, values in seconds.items()}
