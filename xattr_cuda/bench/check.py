"""No figure on wrong gradients: every contestant is compared with eager autograd before it is timed."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from .cases import Case
from .contestants import Contestant, Loss, Step, eager
from .problem import Problem, pose

EXACT = 1e-10  # relative error allowed in float64
SINGLE = 1e-4  # and in float32, where double backward itself has no more than half of it
SMALL = 16  # samples of the check in float64
ROOM = 3.0  # a step takes so many times what its graph saves


class WrongGradientsError(Exception):
    """A contestant's gradients are not those of its reference: in one line which, by how much, and what was allowed."""


def gradients(p: Problem, step: Step) -> list[Tensor]:
    """The gradients that a step leaves in the parameters, in float64."""
    step()
    return [torch.zeros_like(q).double() if q.grad is None else q.grad.double() for q in p.model.parameters()]


def errors(got: list[Tensor], want: list[Tensor]) -> list[float]:
    """Norm of the difference over the norm of `want`, one a parameter; of the difference where `want` is zero."""
    return [float((g - w).norm() / (w.norm() if w.any() else 1)) for g, w in zip(got, want, strict=True)]


def check_exactly(case: Case, people: Mapping[str, Contestant]) -> dict[str, str]:
    """Compare all in float64 at a small batch; returns who could not run, and why in a few words."""
    p = pose(case, torch.float64, min(case.batch, SMALL))
    truths: dict[Loss, list[Tensor]] = {}
    failed: dict[str, str] = {}
    for name, one in people.items():
        if one.group == "floor":
            continue
        try:
            saved: list[int] = []
            # Compilers do not take the hooks that count, and only the sampled ones may be too large.
            with _saved_bytes(saved, p) if one.group == "sampled" else nullcontext():
                found = gradients(p, one.make(p))
        except Exception as error:  # whatever a compiler raises is the finding
            failed[name] = few_words(error)
            continue
        if one.reference is None:
            _require(
                case, name, [0.0 if bool(g.isfinite().all()) else float("nan") for g in found], [EXACT] * len(found)
            )
        else:
            if one.reference not in truths:
                truths[one.reference] = gradients(p, eager(one.reference)(p))
            _require(case, name, errors(found, truths[one.reference]), [EXACT] * len(found))
        need = ROOM * sum(saved) * case.batch / len(p.x) / 2  # float32 takes half
        if one.group == "sampled" and need > available_bytes():
            failed[name] = f"needs about {need / 2**30:.0f} GiB of memory"
    return failed


def check_as_timed(
    p: Problem, steps: Mapping[str, Step], people: Mapping[str, Contestant], case: Case
) -> dict[str, str]:
    """Compare the very steps that will be timed, in float32, with float64; returns who could not run, and why.

    Allowed is twice the error of eager double backward, or SINGLE. A pre-activation that rounding carries across zero
    changes a gradient by more than that, in some draws: who fails gets one more, and a wrong step fails both.
    """
    failed: dict[str, str] = {}
    suspects = [name for name in steps if people[name].reference is not None]
    for last in (False, True):
        wide, truths, limits, again = p.double(), {}, {}, []
        for name in suspects:
            reference = people[name].reference
            assert reference is not None
            if reference not in truths:
                truths[reference] = gradients(wide, eager(reference)(wide))
                own = errors(gradients(p, eager(reference)(p)), truths[reference])
                limits[reference] = [max(2 * e, SINGLE) for e in own]
            try:
                found = errors(gradients(p, steps[name]), truths[reference])
            except Exception as error:
                failed[name] = few_words(error)
                continue
            if last:
                _require(case, name, found, limits[reference])
            elif not all(e <= limit for e, limit in zip(found, limits[reference], strict=True)):
                again.append(name)
        suspects = again
        if not suspects:
            break
        p.redraw()
    return failed


def _require(case: Case, name: str, found: list[float], allowed: list[float]) -> None:
    for i, (error, limit) in enumerate(zip(found, allowed, strict=True)):
        if not error <= limit:
            raise WrongGradientsError(
                f"{case.name} is not timed: the gradient of parameter {i} by {name!r} is off by {error:.1e} "
                f"(relative), allowed {limit:.1e}"
            )


class _saved_bytes:  # noqa: N801 - a context manager, named as a function
    """Adds to a list the bytes of every tensor that autograd saves, each memory once, parameters left out."""

    def __init__(self, found: list[int], p: Problem) -> None:
        seen = {q.untyped_storage().data_ptr() for q in p.model.parameters()}

        def pack(t: Tensor) -> Tensor:
            pointer = t.untyped_storage().data_ptr()
            if pointer not in seen:
                seen.add(pointer)
                found.append(t.untyped_storage().nbytes())
            return t

        unpack: Callable[[Tensor], Tensor] = lambda t: t  # noqa: E731
        self.hooks = torch.autograd.graph.saved_tensors_hooks(pack, unpack)

    def __enter__(self) -> None:
        self.hooks.__enter__()

    def __exit__(self, *args: object) -> None:
        self.hooks.__exit__(*args)


def few_words(error: BaseException) -> str:
    """An exception in one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return words if len(words) <= 100 else words[:97] + "..."


def available_bytes() -> float:
    """Memory that the system can still give, where it says so; else no bound."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return 1024 * float(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return float("inf")
