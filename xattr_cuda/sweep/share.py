"""A step that attributes a share of the batch: the chosen rows are swept as ever, the others in the task's chain alone.

Every class has the methods of `Run`, and is used in its place. Where samples are not known to be treated apart, all
rows are attributed and the chosen ones returned: right, and no cheaper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .perceptron import Perceptron
from .precision import LowerPrecision
from .rows import Rows
from .run import AnyRun, Around, Optionals, Run
from .target import Seeds, Target
from .through import through_outputs

if TYPE_CHECKING:
    from .compiled import CompiledRun


def with_options(
    run: "Run | CompiledRun", rows: Rows | None, attribution_dtype: torch.dtype | None, given: Sequence[torch.dtype]
) -> AnyRun:
    """The run that attributes these rows (None: all) in this dtype (None: the model's). given: the inputs' dtypes."""

    def lowered(one: "Run | CompiledRun") -> AnyRun:
        if attribution_dtype in (None, one.xs[0].dtype):
            return one
        assert attribution_dtype is not None
        return LowerPrecision(one, attribution_dtype, given)

    if rows is None or rows.all_in_order:
        return lowered(run)
    if rows.chosen == 0:
        return Unattributed(run)
    # Not every network takes an empty batch, as the others are if all rows are chosen.
    if not run.treats_samples_apart() or (rows.chosen == rows.batch and run.perceptron is None):
        return ChosenOfAll(lowered(run), rows)
    own, others = ([part(x) for x in run.xs] for part in (rows.take, rows.leave))
    return Split(run, lowered(run.on(own)), run.on(others), rows)


class Unattributed(Around):
    """No row attributed: a plain step, and attributions of no rows."""

    run: "Run | CompiledRun"

    def forward(self, keep: bool) -> list[Tensor]:
        self.plain = self.run.plain()
        return [y.detach() for y in self.plain]

    def attributions(self, seeds: Optionals, one_output: bool, cotangents: Optionals) -> list[Tensor]:
        return [x.new_empty(0, *x.shape[1:]) for x in self.xs]

    def sweep(
        self, seeds: Optionals, one_output: bool, cotangents: Optionals, loss: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        through = None if loss is None else self.run.through(loss, self.plain, seeds)
        return self.plain, [x[:0] * 0 for x in self.xs], through


class ChosenOfAll(Around):
    """All rows attributed, of which the chosen ones are returned."""

    def __init__(self, run: AnyRun, rows: Rows) -> None:
        super().__init__(run)
        self.rows = rows

    def forward(self, keep: bool) -> list[Tensor]:
        return self.run.forward(keep)

    def attributions(self, seeds: Optionals, one_output: bool, cotangents: Optionals) -> list[Tensor]:
        return [self.rows.take(a) for a in self.run.attributions(seeds, one_output, cotangents)]

    def sweep(
        self, seeds: Optionals, one_output: bool, cotangents: Optionals, loss: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        outputs, attributions, through = self.run.sweep(seeds, one_output, cotangents, loss)
        return outputs, [self.rows.take(a) for a in attributions], through


def _each(part: Any, tensors: Optionals) -> list[Tensor | None]:
    return [None if t is None else part(t) for t in tensors]


class Split(Around):
    """The chosen rows in a run of their own, and the others in one without an attribution."""

    def __init__(self, whole: "Run | CompiledRun", own: AnyRun, others: "Run | CompiledRun", rows: Rows) -> None:
        super().__init__(whole)
        self.own, self.others, self.rows = own, others, rows
        self.plain: list[Tensor] = []
        if own.perceptron and whole.perceptron and others.perceptron:
            self.perceptron = SplitPerceptron(whole.perceptron, own.perceptron, others.perceptron, rows)

    def _joined(self, own: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
        return [self.rows.join(a, b) for a, b in zip(own, others, strict=True)]

    def forward(self, keep: bool) -> list[Tensor]:
        own = self.own.forward(keep)
        self.plain = self.others.plain()
        return self._joined(own, [y.detach() for y in self.plain])

    def attributions(self, seeds: Optionals, one_output: bool, cotangents: Optionals) -> list[Tensor]:
        take = self.rows.take
        return self.own.attributions(_each(take, seeds), one_output, _each(take, cotangents))

    def sweep(
        self, seeds: Optionals, one_output: bool, cotangents: Optionals, loss: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        take = self.rows.take
        own, attributions, through = self.own.sweep(_each(take, seeds), one_output, _each(take, cotangents), loss)
        if through is not None:
            through = self.others.through(through, self.plain, _each(self.rows.leave, seeds))
        return self._joined(own, self.plain), attributions, through


@dataclass
class _SplitStep:
    """A step of a perceptron whose rows are split, between its calls."""

    own: Any
    plain: Tensor
    y: Tensor


@dataclass
class SplitPerceptron:
    """The methods of `Perceptron`, for the chosen rows and for the others."""

    whole: Perceptron
    own: Perceptron
    others: Perceptron
    rows: Rows

    @property
    def one_output(self) -> bool:
        return self.whole.one_output

    def seeds(self, target: Target, given: Sequence[Any] | None) -> Seeds:
        return self.whole.seeds(target, given)

    def sweep(self, seeds: Seeds, needs_grad: bool) -> _SplitStep:
        take = self.rows.take
        chosen = Seeds(_each(take, seeds.starts), _each(take, seeds.cotangents), seeds.one_output)
        own, plain = self.own.sweep(chosen, needs_grad), self.others.plain(needs_grad)
        return _SplitStep(own, plain, self.rows.join(own.y, plain.detach()))

    def attribution(self, step: _SplitStep, scale: Tensor | None) -> Tensor:
        return self.own.attribution(step.own, None if scale is None else self.rows.take(scale))

    def results(self, step: _SplitStep, cotangent: Tensor | None, loss: Tensor | None) -> Any:
        chosen = None if cotangent is None else self.rows.take(cotangent)
        output, attribution, through = self.own.results(step.own, chosen, loss)
        if through is not None:
            others = None if cotangent is None else self.rows.leave(cotangent)
            through = through_outputs(through, [step.plain], [others])
        return self.rows.join(output, step.plain), attribution, through
