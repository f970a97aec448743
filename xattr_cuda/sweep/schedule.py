"""What a step will do, decided before it starts from the kinds of its layers and from what is to be trained.

Fusion is a peephole: a product followed, in the direction of a sweep, by an activation becomes one operator. What is
saved for the backward pass is what cannot be recomputed without a product from something that is there anyway.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

Stage = tuple[int, int | None]
"""A layer, and the neighbouring activation that it applies on its way out, if any."""


class Traits(NamedTuple):
    """What the schedule needs to know of a layer."""

    product: bool  # multiplies by a weight, and can apply an activation
    maskable: bool  # is an activation that a product can apply
    recomputes: bool  # its maps are cheap enough to run again instead of saving their results
    trainable: bool


@dataclass(frozen=True)
class Schedule:
    """The stages of the sweeps up (forward, tangent) and down (cotangent), and what the backward pass needs."""

    up: tuple[Stage, ...]
    down: tuple[Stage, ...]
    trainable: tuple[int, ...]
    kept_inputs: frozenset[int]  # layers whose forward input two chains save
    kept_cotangents: frozenset[int]  # layers whose output cotangent is saved from the attribution sweep


def _stages(order: Sequence[int], traits: Sequence[Traits]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    fused: int | None = None
    for place, i in enumerate(order):
        if i == fused:
            continue
        neighbour = order[place + 1] if place + 1 < len(order) else None
        # The tensor between a product and a trainable activation is needed for the gradient of its slopes.
        joins = neighbour is not None and traits[neighbour].maskable and not traits[neighbour].trainable
        fused = neighbour if traits[i].product and joins else None
        stages.append((i, fused))
    return tuple(stages)


def _kept(order: Iterable[int], traits: Sequence[Traits]) -> frozenset[int]:
    """Trainable layers for which the tensor that reaches them along `order` must be saved."""
    kept, known = set(), True  # what enters the first layer is there anyway
    for i in order:
        if traits[i].trainable and not known:
            kept.add(i)
            known = True
        known = known and traits[i].recomputes
    return frozenset(kept)


@lru_cache(maxsize=4096)
def schedule(traits: tuple[Traits, ...]) -> Schedule:
    """The schedule of a chain of layers."""
    up = range(len(traits))
    down = up[::-1]
    return Schedule(
        up=_stages(up, traits),
        down=_stages(down, traits),
        trainable=tuple(i for i in up if traits[i].trainable),
        kept_inputs=_kept(up, traits),
        kept_cotangents=_kept(down, traits),
    )
