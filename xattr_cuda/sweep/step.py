"""What `attribute` and `attribute_loss` do with a run: which sweeps, from which seeds, in which order."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .arguments import fill
from .inputs import without_autocast
from .loss import loss_and_cotangents
from .perceptron import Perceptron
from .run import AnyRun
from .share import SplitPerceptron
from .target import Target, seeds_of

Results = tuple[list[Tensor], list[Tensor]]  # outputs and attributions


def step_of_output(run: AnyRun, target: Target, given: Sequence[Any] | None) -> Results:
    """The outputs and the attributions of a target, or of the cotangents given, one for each output."""
    needs_grad = run.needs_grad(*(given or ()))
    if run.perceptron is not None:
        return _of_perceptron(run.perceptron, needs_grad, target, given)
    outputs = run.forward(keep=needs_grad)
    seeds = seeds_of(outputs, target, given, run.maps_samples_apart)
    if not needs_grad:
        return outputs, run.attributions(seeds.starts, seeds.one_output, seeds.cotangents)
    outputs, attributions, _ = run.sweep(seeds.starts, seeds.one_output, seeds.cotangents, None)
    return outputs, attributions


def _of_perceptron(
    perceptron: Perceptron | SplitPerceptron, needs_grad: bool, target: Target, given: Sequence[Any] | None
) -> Results:
    seeds = perceptron.seeds(target, given)
    (cotangent,) = seeds.cotangents
    step = perceptron.sweep(seeds, needs_grad)
    if needs_grad:
        output, attribution, _ = perceptron.results(step, cotangent, None)
        return [output], [attribution]
    return [step.y], [perceptron.attribution(step, cotangent if seeds.one_output else None)]


def step_of_loss(
    run: AnyRun, criterion: Callable[..., Tensor], args: tuple[Any, ...]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The loss, the outputs and the attributions of the loss."""
    if run.perceptron is not None and run.perceptron.one_output:
        return _loss_of_perceptron(run, run.perceptron, criterion, args)
    device = run.xs[0].device
    with without_autocast(device, run.autocast):
        outputs = run.forward(keep=False)
    loss, seeds = loss_and_cotangents(criterion, outputs, lambda ys: fill(run.structure, ys), args)
    cotangents = [None] * len(outputs)
    with without_autocast(device, run.autocast):
        if not run.needs_grad():
            return loss, outputs, run.attributions(seeds, False, cotangents)
        outputs, attributions, through = run.sweep(seeds, False, cotangents, loss)
    assert through is not None
    return through, outputs, attributions


def _loss_of_perceptron(
    run: AnyRun, perceptron: Perceptron | SplitPerceptron, criterion: Callable[..., Tensor], args: tuple[Any, ...]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """With one output the chain is swept from ones, before the loss is known, whose gradient scales it."""
    with without_autocast(run.xs[0].device, run.autocast):
        needs_grad = run.needs_grad()
        step = perceptron.sweep(perceptron.seeds(None, None), needs_grad)
    loss, (scale,) = loss_and_cotangents(criterion, [step.y], lambda ys: fill(run.structure, ys), args)
    assert scale is not None
    if not needs_grad:
        return loss, [step.y], [perceptron.attribution(step, scale)]
    output, attribution, through = perceptron.results(step, scale, loss)
    return through, [output], [attribution]
