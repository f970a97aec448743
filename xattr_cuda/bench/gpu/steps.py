"""Training steps on the device: plain, eager double backward, and the sweeps, in turn, with and without CUDA graphs."""

from collections.abc import Mapping

import torch

from ... import ops
from ..cases import STEPS, Case, perceptron
from ..check import SINGLE, errors, few_words, gradients
from ..contestants import CONTESTANTS, Contestant, Step, eager
from ..count import floor, layer_flops
from ..problem import Problem, pose
from .clock import time_rows
from .peaks import product_peak
from .rows import Row

NAMES = ("plain", "double backward", "attribute", "attribute_loss")
COMPILED = ("compiled plain", "compiled func.grad", "compiled attribute")
REFERENCE = "attribute, reference"  # the sweeps on ATen alone: what the fused kernels are worth
LARGE = {
    one.name: one
    for one in (
        perceptron("wide-1", [4096, 4096, 4096, 4096, 1], 8192, 30),
        perceptron("wide-10", [4096, 4096, 4096, 4096, 10], 8192, 30),
        perceptron("tabular", [118, 256, 256, 256, 1], 65_536, 30),
    )
}
CASES: dict[str, Case] = {**STEPS, **LARGE}
"""The benchmark's own cases, and some that fill a GPU."""


def _on_reference(step: Step) -> Step:
    def run() -> object:
        with ops.use_backend("reference"):
            return step()

    return run


def contestants(p: Problem, compiled: bool) -> dict[str, tuple[Contestant, Step]]:
    """Who takes part, by name, with the steps of the problem; the first is what the others are compared with."""
    found = {name: (CONTESTANTS[name], CONTESTANTS[name].make(p)) for name in (*NAMES, *(COMPILED if compiled else ()))}
    one, step = found["attribute"]
    found[REFERENCE] = one, _on_reference(step)
    return found


def wrong(p: Problem, people: Mapping[str, tuple[Contestant, Step]]) -> dict[str, str]:
    """Who has gradients that are not those of eager double backward in float64, or none at all, and why.

    Allowed is twice the error of eager double backward at the problem's dtype. Rounding may carry a pre-activation
    across zero, which changes a gradient by more in some draws: who fails gets two more, and a wrong step fails all.
    """
    suspects, failed = list(people), dict[str, str]()
    for _ in range(3):
        wide, found = p.double(), dict[str, str]()
        for name in suspects:
            one, step = people[name]
            assert one.reference is not None
            try:
                truth = gradients(wide, eager(one.reference)(wide))
                own = errors(gradients(p, eager(one.reference)(p)), truth)
                got = errors(gradients(p, step), truth)
            except Exception as error:  # the finding
                found[name] = few_words(error)
                continue
            limit = max(2 * max(own), SINGLE)
            if not all(e <= limit for e in got):
                found[name] = f"wrong gradients: off by {max(got):.1e} (relative), allowed {limit:.1e}"
        failed, suspects = found, list(found)
        if not suspects:
            break
        p.redraw()
    return failed


def step_flops(p: Problem, name: str) -> float:
    """FLOPs of the matrix products that a step cannot do without (section 2 of the design)."""
    layers = layer_flops(p)
    plain = 3.0 * sum(layers) - layers[0]
    if "plain" in name:
        return plain
    one_chain = name == "attribute_loss" or (p.chains == 1 and "attribute" in name)
    return plain * floor(layers, 1 if one_chain else 2)


def measure(
    name: str, dtype: torch.dtype, peaks: dict[str, float], rounds: int, device: str, compiled: bool = False
) -> list[Row]:
    """The rows of a case at a dtype. Who has wrong gradients is not timed; the row says so."""
    case = CASES[name]
    p = pose(case, dtype, device=device)
    people = contestants(p, compiled)
    short = str(dtype).removeprefix("torch.")
    rows = {name: Row("step", case.name, short, name) for name in people}
    failed = wrong(p, people)
    for name, why in failed.items():
        rows[name].failed = why
    time_rows(rows, {name: step for name, (_, step) in people.items() if name not in failed}, rounds, device)
    of, peak = product_peak(peaks, dtype)
    for name, row in rows.items():
        seconds = row.graph_seconds or row.seconds
        if seconds:
            row.share, row.of = step_flops(p, name) / seconds / peak, f"of {of}"
    return list(rows.values())
