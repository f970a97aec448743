"""One step with the sweeps, from the model to the results: what `attribute` and `attribute_loss` share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .apart import Like, treats_apart
from .engine import Tape, cotangent_sweep, forward_sweep
from .function import Step, attribution_of, below_autograd, sweep_function
from .inputs import autocasts, to_autocast
from .layer import to_dtype
from .perceptron import Perceptron
from .program import BoundProgram, bind
from .through import through_outputs

Optionals = Sequence[Tensor | None]


class AnyRun(Protocol):
    """What a step does with a run, whichever way it goes; see `Run`."""

    @property
    def xs(self) -> list[Tensor]: ...
    @property
    def autocast(self) -> bool: ...
    @property
    def perceptron(self) -> Any: ...
    @property
    def structure(self) -> Any: ...
    def needs_grad(self, *tensors: Any) -> bool: ...
    def maps_samples_apart(self) -> bool: ...
    def forward(self, keep: bool) -> list[Tensor]: ...
    def attributions(self, seeds: Optionals, one_output: bool, cotangents: Optionals) -> list[Tensor]: ...
    def sweep(
        self, seeds: Optionals, one_output: bool, cotangents: Optionals, loss: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]: ...


class Around:
    """The base of runs that wrap another."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.perceptron: Any = None

    @property
    def xs(self) -> list[Tensor]:
        """The inputs."""
        xs: list[Tensor] = self.run.xs
        return xs

    @property
    def autocast(self) -> bool:
        """Whether autocast is on."""
        on: bool = self.run.autocast
        return on

    @property
    def structure(self) -> Any:
        """What the model returns, with positions in `outputs` for tensors."""
        return self.run.structure

    def needs_grad(self, *tensors: Any) -> bool:
        """Whether there is anything to differentiate."""
        needed: bool = self.run.needs_grad(*tensors)
        return needed

    def maps_samples_apart(self) -> bool:
        """Whether one chain serves a network with one output."""
        known: bool = self.run.maps_samples_apart()
        return known


@dataclass
class Run:
    """A step in the making. Lists of cotangents and seeds have an entry for each output of the model."""

    bound: BoundProgram
    xs: list[Tensor]
    autocast: bool  # is on, and has been applied
    perceptron: Perceptron | None = None  # the same step as one native call a sweep
    tape: Tape | None = None
    outputs: Sequence[Tensor] = ()

    @staticmethod
    def start(model: nn.Module, xs: Sequence[Tensor], constants: Sequence[Any]) -> "Run":
        """Bind the model, in autocast's dtype where it is on."""
        device = xs[0].device
        if not autocasts(device):
            return _run(bind(model, len(xs), constants), list(xs), False)
        bound = bind(model, len(xs), [to_autocast(c, device) for c in constants])
        params = [tuple([to_autocast(p, device) for p in tensors]) for tensors in bound.params]
        return _run(replace(bound, params=params), [to_autocast(x, device) for x in xs], True)

    def needs_grad(self, *tensors: Any) -> bool:
        """Whether there is anything to differentiate."""
        if not torch.is_grad_enabled():
            return False
        if self.bound.schedule.trainable:
            return True
        return any(isinstance(t, Tensor) and t.requires_grad for t in (*self.xs, *tensors))

    @property
    def structure(self) -> Any:
        """What the model returns, with positions in `outputs` for tensors."""
        return self.bound.program.structure

    def treats_samples_apart(self) -> bool:
        """Whether a sample's output is known to depend on that sample alone: rows can be swept without others."""
        if self.perceptron is not None:
            return True
        return treats_apart(self.bound, self._likes())

    def maps_samples_apart(self) -> bool:
        """Whether row i of the output is known to depend, for the batch's pattern, on row i of the inputs alone."""
        return self.perceptron is not None or treats_apart(self.bound, self._likes(), found_pattern=True)

    def _likes(self) -> list[Like]:
        return [Like(tuple(x.shape), x.dtype) for x in self.xs]

    def on(self, xs: list[Tensor]) -> "Run":
        """The same step on other inputs: rows of these."""
        perceptron = None if self.perceptron is None else replace(self.perceptron, x=xs[0])
        return Run(replace(self.bound, layers=list(self.bound.layers)), xs, self.autocast, perceptron)

    def plain(self) -> list[Tensor]:
        """The outputs, differentiable, of a step without an attribution."""
        if self.perceptron is not None:
            return [self.perceptron.plain(self.needs_grad())]
        self.forward(keep=self.needs_grad())
        return self.task()

    def task(self) -> list[Tensor]:
        """The outputs, differentiable through the task's chain alone, after a forward sweep that has kept its needs."""
        none = [None] * len(self.outputs)
        return self.sweep(none, False, none, None)[0] if self.needs_grad() else list(self.outputs)

    def through(self, loss: Tensor, outputs: Sequence[Tensor], cotangents: Optionals) -> Tensor:
        """The loss, whose gradient reaches these outputs by their cotangents in it."""
        return through_outputs(loss, outputs, cotangents)

    def lowered(self, dtype: torch.dtype) -> "Run":
        """The step after its forward sweep with all tensors cast, for an own chain alone; its masks are shared."""
        assert self.tape is not None
        params = [tuple([to_dtype(p, dtype) for p in tensors]) for tensors in self.bound.params]
        frames = [layer.in_dtype(frame, dtype) for layer, frame in zip(self.tape.layers, self.tape.frames, strict=True)]
        tape, bound = replace(self.tape, frames=frames, kept={}), replace(self.bound, params=params)
        outputs = [y.detach().to(dtype) for y in self.outputs]
        return Run(bound, [to_dtype(x, dtype) for x in self.xs], self.autocast, None, tape, outputs)

    def forward(self, keep: bool) -> list[Tensor]:
        """The forward sweep. Returns detached outputs; with `keep` it keeps what two chains need."""
        with torch.no_grad(), below_autograd():
            found, self.tape = forward_sweep(self.bound, [x.detach() for x in self.xs], keep)
        outputs: list[Tensor] = []
        for output in found:
            # A program without a weight may hand its input through: an output must alias neither it nor another.
            shared = any(_aliases(output, t) for t in (*self.xs, *outputs))
            outputs.append(output.clone() if shared else output)
        self.outputs = outputs
        return outputs

    def attributions(self, seeds: Optionals, one_output: bool, cotangents: Optionals) -> list[Tensor]:
        """The attributions alone, with nothing to differentiate: every mask is freed as soon as it is used."""
        assert self.tape is not None
        step = Step(self.tape, list(self.outputs), list(seeds), one_output)
        inputs = range(len(self.xs))
        scale = cotangents[0] if one_output else None
        with torch.no_grad(), below_autograd():
            g0 = dict(cotangent_sweep(self.tape, step.seeded(), frozenset(inputs), release=True))
            return [attribution_of(x, g0.get(k), scale) for k, x in enumerate(self.xs)]

    def sweep(
        self, seeds: Optionals, one_output: bool, cotangents: Optionals, loss: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """(outputs, attributions, loss), all differentiable."""
        assert self.tape is not None
        if one_output:
            self.tape.kept.clear()  # one chain needs none of them
        step = Step(self.tape, list(self.outputs), list(seeds), one_output)
        params = [p for tensors in self.bound.params for p in tensors]
        return sweep_function(step, self.xs, cotangents, loss, params)


def _run(bound: BoundProgram, xs: list[Tensor], autocast: bool) -> Run:
    return Run(bound, xs, autocast, Perceptron.of(bound, xs))


def _aliases(a: Tensor, b: Tensor) -> bool:
    return bool(torch._C._is_alias_of(a, b))  # type: ignore[attr-defined]
