"""Time on the device: CUDA events around calls and replays of CUDA graphs, contestants in turn.

On the CPU, where the whole check can be rehearsed, the clock of the host takes their place and there are no graphs.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from ..check import few_words
from .rows import Row

Call = Callable[[], object]
WARMUP = 3


def _once_on_device(call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def _once_on_host(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def seconds_in_turn(
    calls: Mapping[str, Call], rounds: int, device: str, warmup: int = WARMUP
) -> dict[str, list[float]]:
    """Seconds of every call from its first kernel's start to its last one's end, taken in turn: A B C A B C ...

    The device is idle when a call begins, so what the host needs to launch counts where the device waits for it.
    """
    once = _once_on_host if device == "cpu" else _once_on_device
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + rounds):
        for name, call in calls.items():
            elapsed = once(call)
            if turn >= warmup:
                seconds[name].append(elapsed)
    return seconds


def capture(call: Call, repeats: int = 1) -> Call:
    """A function that replays `repeats` calls as one CUDA graph; raises whatever the capture raises.

    The call has run before on a side stream, so that nothing is compiled or set up for the first time in the capture.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return graph.replay


def time_rows(rows: Mapping[str, Row], calls: Mapping[str, Call], rounds: int, device: str, repeats: int = 1) -> None:
    """Time the calls in turn, then graphs of `repeats` calls each; the rows get the medians, and ratios to the first.

    What cannot be captured says why in its row, and the others have their figures all the same.
    """
    _fill(rows, seconds_in_turn(calls, rounds, device), "seconds", "ratio", 1)
    graphs: dict[str, Call] = {}
    for name, call in calls.items():
        if device == "cpu":
            continue
        try:
            graphs[name] = capture(call, repeats)
        except Exception as error:  # the finding
            rows[name].no_graph = few_words(error)
            torch.cuda.synchronize()
    _fill(rows, seconds_in_turn(graphs, rounds, device), "graph_seconds", "graph_ratio", repeats)


def _fill(rows: Mapping[str, Row], found: dict[str, list[float]], seconds: str, ratio: str, repeats: int) -> None:
    first = next(iter(rows))
    medians = {name: statistics.median(times) / repeats for name, times in found.items()}
    for name, value in medians.items():
        setattr(rows[name], seconds, value)
        if first in medians:
            setattr(rows[name], ratio, value / medians[first])
