"""Which configuration of a kernel is the fastest on this device: all candidates are tried, checked and timed.

The shapes are those of the operators' calls in a training step of each case, and a few more for element-wise operators.
A candidate wins only with the results of the table's choice, and if it is faster in two measurements.
"""

import importlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ...ops import gpu
from ...ops.schemas import NAMESPACE
from ..cases import Case, GiniCase
from ..check import few_words
from ..contestants import CONTESTANTS
from ..measure import Tell
from ..problem import pose
from .operators import ARGUMENTS, Sizes
from .peaks import matmul_precision

SETTINGS = ((torch.float32, "highest"), (torch.float32, "high"), (torch.bfloat16, "highest"))
"""(dtype, precision of products of fp32) of the steps."""
ELEMENTWISE = ("relu_mask", "mask_mul", "add_relu_mask", "input_times_gradient")
SIDES = ((1024, 1024), (8192, 1024), (16_384, 4096))
"""[rows, columns] that they are tuned for beside those of the cases."""
GAIN = 1.02  # below it a difference is taken for one of chance
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""How far results may lie apart, over the largest: their sums have another order, and none has more than that."""

Call = Callable[[], Any]
Timer = Callable[[Call], float]
"""Seconds, or any unit, of a call."""


@dataclass(frozen=True)
class Work:
    """A call of an operator."""

    operator: str
    arguments: tuple[Any, ...]

    @property
    def signature(self) -> Any:
        """The same for calls that differ in numbers alone."""

        def seen(one: Any) -> Any:
            return (one.shape, one.stride(), one.dtype) if isinstance(one, Tensor) else one

        return self.operator, repr(tree_map(seen, self.arguments))


@dataclass
class Found:
    """Of a request: the table's choice and the fastest, and their times; skipped: what was out of question, and why."""

    request: Any
    table: Any
    best: Any
    table_time: float
    best_time: float
    skipped: list[tuple[Any, str]] = field(default_factory=list)

    @property
    def gain(self) -> float:
        """How many times as fast."""
        return self.table_time / self.best_time


def do_bench(call: Call) -> float:
    """The median time of a call between CUDA events, in milliseconds; the second-level cache is cold."""
    from triton.testing import do_bench as bench

    return float(bench(call, warmup=10, rep=40, return_mode="median"))


def _kernels() -> Any:
    return importlib.import_module("....kernels.triton", __name__)


def _tuned() -> Any:
    return importlib.import_module("....kernels.triton.tuned", __name__)


class _Recorder(TorchDispatchMode):
    """Keeps one call of each signature."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[Any, Work] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == NAMESPACE:
            defaults = [a.default_value for a in func._schema.arguments[len(args) :]]
            named = [a.name for a in func._schema.arguments[len(args) :]]
            rest = [(kwargs or {}).get(name, value) for name, value in zip(named, defaults, strict=True)]
            work = Work(func._schema.name.removeprefix(f"{NAMESPACE}::"), (*args, *rest))
            self.found.setdefault(work.signature, work)
        return func(*args, **(kwargs or {}))


def recorded(case: Case | GiniCase, dtype: torch.dtype, device: str) -> list[Work]:
    """The calls of operators in a step with `attribute` and in one with `attribute_loss`, each signature once."""
    if isinstance(case, GiniCase):
        return [Work("gini", (torch.rand(case.n, dtype=dtype, device=device),))]
    p = pose(case, dtype, device=device)
    with torch.autograd.set_multithreading_enabled(False), _Recorder() as recorder:  # modes are a thread's own
        for name in ("attribute", "attribute_loss"):
            CONTESTANTS[name].make(p)()
    return list(recorder.found.values())


def by_parts(works: Iterable[Work]) -> Iterator[Work]:
    """The element-wise calls that products come down to where they are left to PyTorch."""
    parts = _kernels().by_parts
    for work in works:
        if work.operator not in parts.LAUNCHERS or not parts.pays(work.operator, *work.arguments[:2]):
            continue
        if work.operator == "linear_relu_mask":
            x, weight, slope = work.arguments
            yield Work("relu_mask", (x @ weight.T, slope))
        elif work.operator == "matmul_mask" and work.arguments[2] is not None:
            t, matrix, bits, slope = work.arguments
            yield Work("mask_mul", (t @ matrix, bits, slope))


def elementwise(dtype: torch.dtype, device: str, sides: Sequence[tuple[int, int]] = SIDES) -> list[Work]:
    """Calls of the element-wise operators at sizes of their own."""
    return [Work(op, ARGUMENTS[op](op, Sizes(elementwise=side), dtype, device)) for side in sides for op in ELEMENTWISE]


def requests(works: Iterable[Work], failed: list[str]) -> dict[Any, tuple[Any, list[Call]]]:
    """What their launchers ask for: to each request the table's choice, and the calls that make it.

    Calls whose kernels do not run as the table has them are named in `failed`.
    """
    launchers, tuned = _kernels(), _tuned()
    found: dict[Any, tuple[Any, list[Call]]] = {}
    for work in works:
        call = partial(getattr(launchers, work.operator), *work.arguments)
        try:
            with tuned.trying() as asked:
                call()
        except torch.AcceleratorError:
            raise  # the device is of no more use to this process
        except Exception as error:  # the finding
            failed.append(f"{work.operator} is not tuned: {few_words(error)}")
            continue
        for request, table in asked.items():
            found.setdefault(request, (table, []))[1].append(call)
    return found


def disagreement(got: Any, want: Any) -> str:
    """Why the results of a candidate cannot be those of the table's choice; empty if they can.

    Masks and indices may differ where a sum is zero but for its rounding.
    """
    for g, w in zip(tree_leaves(got), tree_leaves(want), strict=True):
        if not isinstance(g, Tensor) or not w.numel():
            continue
        if not g.is_floating_point():
            off = float((g != w).double().mean())
            if off > 1e-3:
                return f"wrong: {off:.1%} of a mask or an index"
            continue
        largest = w.double().abs().max()
        error = float((g.double() - w.double()).abs().max())
        if not error <= TOLERANCE[w.dtype] * float(largest):
            return f"wrong: off by {error:.1e}, where the largest is {float(largest):.1e}"
    return ""


def tune_one(request: Any, table: Any, calls: Sequence[Call], timer: Timer) -> Found:
    """Try all candidates for a request that these calls make."""
    tuned = _tuned()

    def run() -> list[Any]:
        return [call() for call in calls]

    def time(config: Any) -> float:
        with tuned.trying(request, config):
            return timer(run)

    with tuned.trying(request, table):
        want = run()
    found = Found(request, table, table, time(table), 0.0)
    times = {}
    for index, config in enumerate(_candidates(request.family)):
        if config == table:
            continue
        try:
            with tuned.trying(request, config):
                why = disagreement(run(), want)
            if not why:
                times[index] = time(config)
        except torch.AcceleratorError:
            raise  # the device is of no more use to this process
        except Exception as error:  # it does not compile, or has not enough shared memory: not for this device
            why = few_words(error)
        if why:
            found.skipped.append((config, why))
    found.best_time = found.table_time
    if times:
        index = min(times, key=lambda i: times[i])
        best = _candidates(request.family)[index]
        if found.table_time >= GAIN * times[index]:
            again = time(table), time(best)
            if again[0] >= GAIN * again[1]:
                found.best, found.table_time, found.best_time = best, *again
    return found


def _candidates(family: str) -> tuple[Any, ...]:
    configs = importlib.import_module("....kernels.triton.configs", __name__)
    return tuple(configs.candidates(family))


def tune(
    cases: Sequence[Case | GiniCase],
    device: str,
    tell: Tell,
    timer: Timer = do_bench,
    sides: Sequence[tuple[int, int]] = SIDES,
) -> tuple[list[Found], list[str]]:
    """What was found for every request of the cases, each once, and for the element-wise operators at `sides`.

    Also returns what could not be tuned, and why.
    """
    found: dict[Any, Found] = {}
    failed: list[str] = []
    for (dtype, precision), case in itertools.product(SETTINGS, (*cases, None)):
        title = f"{case.name if case else 'element-wise'}, {'tf32' if precision == 'high' else _short(dtype)}"
        tell(title, 0, 1)
        with matmul_precision(precision):
            works = elementwise(dtype, device, sides) if case is None else recorded(case, dtype, device)
            with torch.no_grad():
                wanted = requests([*works, *by_parts(works)], failed)
                for number, (request, (table, calls)) in enumerate(wanted.items()):
                    tell(f"{title}: {request.operator}", number, len(wanted))
                    if request not in found:
                        found[request] = tune_one(request, table, calls, timer)
    return list(found.values()), list(dict.fromkeys(failed))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def keep(found: Iterable[Found]) -> Path:
    """Put the fastest configurations in force on the current device, beside what its file has for other requests.

    Returns the file.
    """
    tuned, place = _tuned(), gpu.current_device()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file that is refused is about to be replaced
        choices = dict(tuned.of_device(place).choices)
    for one in found:
        choices.pop(one.request, None)
        if one.best != one.table:
            choices[one.request] = one.best
    return Path(tuned.save(place, choices))
