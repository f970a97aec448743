"""What a step costs beside its kernels: `attribute` and its backward pass on a network whose products are next to none.

The two operators alone, called from Python as anyone would, are what remains when all that surrounds them is free.
"""

from collections.abc import Callable
from itertools import pairwise
from statistics import median
from textwrap import fill

import torch

from .. import ops
from ..models import xmlp
from ..sweep import attribute
from ..training.timing import interleaved

WIDTHS, BATCH = (8, 8, 1), 8
CALLS = 100  # timed at once
ROUNDS = 50
NAMES = ("plain", "attribute", "operators")


def _calls() -> dict[str, Callable[[], object]]:
    """Forward and backward of the plain network, of `attribute`, and of the operators alone."""
    model, x = xmlp(WIDTHS), torch.randn(BATCH, WIDTHS[0])
    dy, da = torch.randn(BATCH, WIDTHS[-1]), torch.randn(BATCH, WIDTHS[0])
    weights = [torch.randn(n, k) for k, n in pairwise(WIDTHS)]
    trained, u = list(range(1, len(weights) + 1)), torch.ones(BATCH, WIDTHS[-1])

    def plain() -> None:
        model(x).backward(dy)
        model.zero_grad()

    def attributed() -> None:
        torch.autograd.backward(attribute(model, x), (dy, da))  # type: ignore[arg-type]
        model.zero_grad()

    def operators() -> None:
        network = (weights, [0.0] * (len(weights) - 1))
        _, _, bits, _, g = ops.mlp_attribute(x, *network, u, [], trained[:-1])
        ops.mlp_attribute_backward(x, da, dy, None, None, *network, bits, [*g, u], [], trained)

    return dict(zip(NAMES, (plain, attributed, operators), strict=True))


def measure(rounds: int | None = None) -> dict[str, float]:
    """Median seconds of one call by name, in turn."""

    def often(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            for _ in range(CALLS):
                call()

        return run

    seconds = interleaved({name: often(call) for name, call in _calls().items()}, rounds or ROUNDS)
    return {name: median(times) / CALLS for name, times in seconds.items()}


def words(seconds: dict[str, float]) -> str:
    """The figures as a sentence."""
    plain, ours, alone = (1e6 * seconds[name] for name in NAMES)
    return fill(
        f"Beside its kernels: on {'-'.join(map(str, WIDTHS))} at batch {BATCH}, where products cost next to nothing, "
        f"`attribute` and its backward pass take {ours:.0f} us, their two operators alone {alone:.0f} us, so that "
        f"{ours - alone:.0f} us are overhead; the plain forward and backward pass take {plain:.0f} us.",
        width=118,
    )
