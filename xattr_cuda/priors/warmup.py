"""The strength of a prior over a training run: schedule and Schedule."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "cosine": lambda t: (1 - math.cos(math.pi * t)) / 2,
}


class Schedule:
    """A prior times a strength that changes from step to step; made by `schedule`, which says what it does."""

    def __init__(self, prior: Callable[..., Tensor], strength_at: Callable[[int], float]) -> None:
        self.prior, self.strength_at = prior, strength_at
        self._go_to(0)

    def _go_to(self, steps: int) -> None:
        self.steps = steps
        self._strength = torch.tensor(self.strength, dtype=torch.float64)  # a number would be compiled anew every step

    @property
    def strength(self) -> float:
        """The strength of the step that comes."""
        return self.strength_at(self.steps)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The prior of these arguments, times the strength."""
        value = self.prior(*args, **kwargs)
        return (self._strength * value).to(value.dtype)

    def step(self) -> None:
        """Count a step: call it once after each of the optimiser's, outside of what is compiled."""
        self._go_to(self.steps + 1)

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint must hold: the number of steps done. The settings belong to the code."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state_dict` was taken."""
        self._go_to(_whole("load_state_dict: `steps`", state["steps"]))


def schedule(
    prior: Callable[..., Tensor],
    strength: float,
    warmup: int,
    *,
    delay: int = 0,
    shape: str | Callable[[float], float] = "linear",
) -> Schedule:
    """`prior` times a strength that grows from 0 to `strength` over `warmup` steps, after `delay` steps without.

    strength_at(step) = strength * shape(t), t = (step - delay) / warmup held within [0, 1]; steps count from 0, so that
    the full strength is reached at step delay + warmup. shape: "linear", t; "cosine", (1 - cos(pi t)) / 2; or a
    function from [0, 1] to a factor. So a network learns the task first, and then to answer for the right reasons, as
    variational autoencoders anneal their divergence (Bowman et al. 2016).

    prior: any function from an attribution to a scalar. Returns a `Schedule`: called like the prior; `.step()` after
    each step of the optimiser; `.strength` now and `.strength_at(step)` at any step, without state; `.state_dict()` and
    `.load_state_dict(state)`, with which a resumed run continues.

    >>> import torch, xattr_cuda as xa
    >>> prior = xa.priors.schedule(xa.priors.l1, strength=0.4, warmup=100, delay=10, shape="cosine")
    >>> for _ in range(60):  # after each step: loss + prior(attribution)
    ...     prior.step()
    >>> round(prior.strength, 6), prior.state_dict(), prior.strength_at(200)
    (0.2, {'steps': 60}, 0.4)
    """
    if not callable(prior):
        raise TypeError(f"schedule: `prior` is a {type(prior).__name__}; wanted a function of an attribution")
    if not math.isfinite(strength):
        raise ValueError(f"schedule: `strength` is {strength}; wanted a finite number")
    warmup, delay = _whole("schedule: `warmup`", warmup), _whole("schedule: `delay`", delay)
    if not callable(shape) and shape not in SHAPES:
        raise ValueError(f"schedule: `shape` is {shape!r}; wanted {', '.join(map(repr, SHAPES))} or a function")
    curve = shape if callable(shape) else SHAPES[shape]

    def strength_at(step: int) -> float:
        since = step - delay
        if since < 0:
            return 0.0
        return strength * curve(min(since / warmup, 1.0) if warmup else 1.0)

    return Schedule(prior, strength_at)


def _whole(name: str, value: int) -> int:
    """`value`, unless it is no number of steps."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is {value!r}; wanted a whole number of steps, 0 or more")
    return value
