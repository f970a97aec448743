"""Gradients along straight lines to the inputs, weighted and summed: what Integrated and Expected Gradients share."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..sweep.target import Target
from ._inputs import chosen_output, repeat_arguments, row_sums, target_cotangent


@dataclass(frozen=True)
class Question:
    """Which output of which model is attributed to which inputs; `arguments` follow the inputs in its forward."""

    model: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]  # each [B, ...]
    target: Target
    arguments: tuple[Any, ...]

    @property
    def batch(self) -> int:
        """B."""
        return len(self.inputs[0])

    @property
    def wide(self) -> torch.dtype:
        """The dtype that sums over steps are taken in: the widest of the inputs', single precision at least."""
        return reduce(torch.promote_types, [x.dtype for x in self.inputs], torch.float32)


@dataclass(frozen=True)
class Path:
    """S steps on lines that start at references and end at the inputs.

    starts(steps): the references of a slice of the steps, for each input [S or 1, B or 1, ...]. places: the share of
    the way to the input, [S, B] or [S, 1]. weights: of each step, [S]. Both are at least single precision. chunk: how
    many steps are taken at a time.
    """

    starts: Callable[[slice], tuple[Tensor, ...]]
    places: Tensor
    weights: Tensor
    chunk: int


def path_attribution(question: Question, path: Path) -> tuple[Tensor, ...]:
    """The sum over the steps of weight * (x - x') * gradient at x' + place * (x - x'), for each input [B, ...].

    Differentiable where gradients are on (the graph holds every chunk); elsewhere a chunk is freed before the next.
    """
    total: list[Tensor] = []
    for steps in _chunks(len(path.weights), path.chunk):
        part = _part(question, path, steps)
        total = [t + p for t, p in zip(total, part, strict=True)] if total else part
    return tuple(t.to(x.dtype) for t, x in zip(total, question.inputs, strict=True))


def _part(question: Question, path: Path, steps: slice) -> list[Tensor]:
    places, weights, starts = path.places[steps], path.weights[steps], path.starts(steps)
    ways = [x - start for x, start in zip(question.inputs, starts, strict=True)]  # [S or 1, B, ...]
    points = [
        (start + _to_rank(places, way) * way).to(x.dtype)
        for x, start, way in zip(question.inputs, starts, ways, strict=True)
    ]
    gradients = _gradients(question, points)
    return [(_to_rank(weights, g) * g * way).sum(0) for g, way in zip(gradients, ways, strict=True)]


def _to_rank(t: Tensor, like: Tensor) -> Tensor:
    """t with trailing dimensions of one, to broadcast from the left."""
    return t.reshape(*t.shape, *[1] * (like.dim() - t.dim()))


def _gradients(question: Question, points: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of the target's output at every point, [S, B, ...]; with a graph where gradients are on."""
    steps, create_graph = len(points[0]), torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        points = [p if p.requires_grad else _leaf(p) for p in points]
        output = _output(question, [p.flatten(0, 1) for p in points], steps)
        if not output.requires_grad:
            raise ValueError(
                "`model` returned an output without a gradient in its inputs; its forward must not detach it"
            )
        u = _cotangent(question, output.detach(), steps)
        return torch.autograd.grad(output, points, u, create_graph=create_graph, materialize_grads=True)


def _leaf(t: Tensor) -> Tensor:
    return (t.clone() if t.is_inference() else t.detach()).requires_grad_()


def _output(question: Question, rows: Sequence[Tensor], steps: int) -> Tensor:
    """The model's output at [S * B, ...] rows, checked."""
    arguments = repeat_arguments(question.arguments, steps, question.batch)
    arguments = tuple(a.clone() if isinstance(a, Tensor) and a.is_inference() else a for a in arguments)
    output = question.model(*rows, *arguments)
    if not isinstance(output, Tensor):
        raise TypeError(f"`model` returned a {type(output).__name__}; wanted a tensor [B, ...] of outputs")
    if output.dim() == 0 or len(output) != steps * question.batch:
        raise ValueError(
            f"`model` returned shape {list(output.shape)} for {steps * question.batch} rows; wanted one output a row"
        )
    return output


def _cotangent(question: Question, output: Tensor, steps: int) -> Tensor:
    """The target's cotangent at the outputs of [S * B] rows, of their shape."""
    u = target_cotangent(output[: question.batch], question.target)
    return u.expand(steps, *u.shape).flatten(0, 1)


def _chunks(steps: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, steps)) for i in range(0, steps, size))


def chunk_of_steps(internal_batch_size: int | None, steps: int, batch: int) -> int:
    """How many of S steps of B rows go through the model at a time: all, or as fit, but at least one."""
    if internal_batch_size is None:
        return steps
    if internal_batch_size < 1:
        raise ValueError(f"`internal_batch_size` is {internal_batch_size}; wanted a positive number of rows, or None")
    if internal_batch_size < batch:
        given = f"`internal_batch_size` is {internal_batch_size}"
        warnings.warn(f"{given}, less than one step of {batch} rows, which is run instead", stacklevel=4)
    return max(1, internal_batch_size // max(1, batch))


@torch.no_grad()
def convergence_delta(question: Question, path: Path, attributions: tuple[Tensor, ...], references: int) -> Tensor:
    """The sum of each sample's attributions minus F(x) - F(x'), [B]; F(x') is the mean over so many references."""
    total = _explained(question, question.inputs, 1)
    for steps in _chunks(references, path.chunk):
        starts = [
            start.expand(steps.stop - steps.start, *x.shape).to(x.dtype).flatten(0, 1)
            for x, start in zip(question.inputs, path.starts(steps), strict=True)
        ]
        total = total - _explained(question, starts, steps.stop - steps.start) / references
    return torch.stack([row_sums(a) for a in attributions]).sum(0) - total


def _explained(question: Question, rows: Sequence[Tensor], steps: int) -> Tensor:
    """The target's output at [S * B, ...] rows, summed over the steps: [B]."""
    output = _output(question, rows, steps)
    chosen = chosen_output(output, _cotangent(question, output, steps))
    return chosen.reshape(steps, question.batch).sum(0)
