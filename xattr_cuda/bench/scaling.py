"""How the time of a step grows with batch, width, depth and classes, around one perceptron."""

from dataclasses import dataclass
from typing import Any

from ..training.timing import interleaved
from .cases import perceptron
from .contestants import CONTESTANTS
from .measure import Result, Tell, summarise
from .problem import pose

NAMES = ("plain", "double backward", "attribute", "attribute_loss")
WIDTH, HIDDEN, BATCH, FEATURES = 256, 2, 1024, 256  # of the network around which one number varies
AXES: dict[str, tuple[int, ...]] = {
    "batch": (64, 256, 1024, 4096),
    "width": (32, 64, 128, 256, 512, 1024),
    "hidden layers": (1, 2, 4, 8),
    "classes": (1, 2, 10, 100, 1000),
}
ROUNDS = 15


@dataclass
class Point:
    """The results of one network: axis, the value on it, and a result a contestant."""

    axis: str
    value: int
    results: dict[str, Result]


def network(axis: str, value: int) -> tuple[list[int], int]:
    """(widths, batch) of the network that has `value` on `axis` and else is 256-256-256-1 at batch 1024."""
    number = {"batch": BATCH, "width": WIDTH, "hidden layers": HIDDEN, "classes": 1} | {axis: value}
    return [FEATURES, *[number["width"]] * number["hidden layers"], number["classes"]], number["batch"]


def scale(
    rounds: int | None = None, tell: Tell = lambda *_: None, axes: dict[str, tuple[int, ...]] = AXES
) -> list[Point]:
    """Time every network of the axes, contestants in turn."""
    total = sum(map(len, axes.values()))
    points: list[Point] = []
    for axis, values in axes.items():
        for value in values:
            tell("scaling", len(points), total)
            case = perceptron(f"{axis} {value}", *network(axis, value), rounds=ROUNDS)
            p = pose(case)
            steps = {name: CONTESTANTS[name].make(p) for name in NAMES}
            points.append(Point(axis, value, summarise(interleaved(steps, rounds or ROUNDS))))
    tell("scaling", total, total)
    return points


def to_json(points: list[Point]) -> list[dict[str, Any]]:
    """Plain numbers and words."""
    return [
        {"axis": p.axis, "value": p.value, "results": {name: r.to_json() for name, r in p.results.items()}}
        for p in points
    ]
