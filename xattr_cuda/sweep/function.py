"""The autograd function: an ordinary first-order node whose backward pass is the tangent and the cotangent sweep.

Notation of design section 2. The *own* chain carries the attribution: cotangents g, kept from the attribution sweep,
and tangents w, swept in the backward pass from (c a + s) x. The *task* chain carries gradients sent into the outputs:
cotangents delta, swept in the backward pass, and tangents h. Where the own chain speaks for the output too (one
output, or the loss is attributed) there is one chain, and s is not zero.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import ops
from .engine import Tape, cotangent_sweep, tangent_sweep
from .layer import Pair
from .saved import Saved

Tensors = Sequence[Tensor]
Optionals = Sequence[Tensor | None]


@dataclass
class Step:
    """One step between its sweeps: what autograd does not need to know. Lists have an entry for each output."""

    tape: Tape
    outputs: list[Tensor]
    seeds: list[Tensor | None]  # where the own chain starts: ones, the gradient of the loss, or the cotangent
    one_output: bool  # the own chain speaks for the output

    def seeded(self) -> dict[int, Tensor]:
        """The seeds by value."""
        return by_value(self.tape, self.seeds)


def by_value(tape: Tape, cotangents: Optionals) -> dict[int, Tensor]:
    """Cotangents of the outputs by value; those of an output that is returned twice are added."""
    found: dict[int, Tensor] = {}
    for v, g in zip(tape.graph.outputs, cotangents, strict=True):
        if g is not None:
            found[v] = found[v] + g if v in found else g
    return found


def _spread(per_sample: Tensor, dims: int) -> Tensor:
    """[B, 1, ...] or [] to a shape that broadcasts against [B, ...] of `dims` dimensions."""
    return per_sample if per_sample.dim() in (0, dims) else per_sample.reshape(-1, *[1] * (dims - 1))


def attribution_of(x: Tensor, g0: Tensor | None, scale: Tensor | None) -> Tensor:
    """A = c x * g_0."""
    if g0 is None:
        return torch.zeros_like(x)
    attribution = x * g0
    return attribution if scale is None else attribution * _spread(scale, x.dim())


class SweepFunction(torch.autograd.Function):
    """(inputs, cotangents, loss, parameters) -> (outputs, attributions, loss); None for an absent cotangent or loss.

    With one output its cotangent is the scale c of the attribution; otherwise cotangents are the seeds of the own
    chain.
    """

    @staticmethod
    def forward(ctx: Any, step: Step, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        tape, inputs, outputs = step.tape, step.tape.graph.inputs, len(step.outputs)
        stream = iter(tensors)
        xs = [x for x in islice(stream, inputs) if x is not None]
        scales = list(islice(stream, outputs))
        loss = next(stream)
        scale = scales[0] if step.one_output else None
        network = frozenset(range(inputs))
        with below_autograd():
            seeds = step.seeded()
            cotangents = dict(cotangent_sweep(tape, seeds, tape.schedule.kept_cotangents | network))
            g0 = [cotangents.pop(v, None) for v in range(inputs)]
            attributions = [attribution_of(x, g, scale) for x, g in zip(xs, g0, strict=True)]

        needs = ctx.needs_input_grad[1:]
        needs_cotangent = any(needs[inputs : inputs + outputs])
        ctx.set_materialize_grads(False)
        ctx.one_output, ctx.with_loss, ctx.backend = step.one_output, loss is not None, ops.active()
        keep_x = bool(tape.schedule.trainable) or needs_cotangent
        ctx.restore = Saved.store(
            ctx,
            tape,
            xs=[x if keep_x else None for x in xs],
            g0=[g if needs[k] or (needs_cotangent and step.one_output) else None for k, g in enumerate(g0)],
            scale=scale,
            seeds=seeds,
            cotangents=cotangents,
        )
        return (*step.outputs, *attributions, None if loss is None else loss.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        with ops.use_backend(ctx.backend), below_autograd():
            return _backward(ctx, gradients)


def sweep_function(
    step: Step, xs: Tensors, cotangents: Optionals, loss: Tensor | None, params: Tensors
) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """SweepFunction applied: (outputs, attributions, loss)."""
    results: Sequence[Any] = SweepFunction.apply(step, *xs, *cotangents, loss, *params)  # type: ignore[no-untyped-call]
    outputs = len(step.outputs)
    return list(results[:outputs]), list(results[outputs:-1]), results[-1]


def _factor(a: Tensor | None, s: Tensor | None, scale: Tensor | None, dims: int) -> Tensor | None:
    """c a + s, what multiplies x at the start of the own chain; None where neither gradient was sent."""
    if a is not None and scale is not None:
        a = _spread(scale, dims) * a
    if s is None or a is None:
        return a if s is None else _spread(s, dims)
    return a + _spread(s, dims)


@dataclass
class _Chain:
    """A chain in the backward pass: its cotangent at a value, if one reaches it, and its tangents, in order."""

    cotangent_of: Callable[[int], Tensor | None]
    tangents: Iterator[Tensor]


def _parameter_gradients(saved: Saved, counts: Sequence[int], chains: list[_Chain]) -> list[Tensor | None]:
    tape = saved.tape
    gradients: list[Tensor | None] = [None] * sum(counts)
    if not chains:
        return gradients
    first = list(accumulate(counts, initial=0))
    for i in tape.schedule.trainable:
        pairs: list[Pair] = []
        for chain in chains:
            v = next(chain.tangents)
            g = chain.cotangent_of(tape.graph.inputs + i)
            if g is not None:
                pairs.append((g, v))
        if pairs:
            found = tape.layers[i].parameter_gradients(tape.frame(i), pairs)
            gradients[first[i] : first[i] + len(found)] = found
    return gradients


def _own_chain(
    saved: Saved, factors: Optionals, needs_output_tangent: bool
) -> tuple[_Chain | None, Callable[[], list[Tensor]]]:
    """The own chain, and the tangents of the outputs at its end."""
    trainable = saved.tape.schedule.trainable
    if not (trainable or needs_output_tangent) or all(f is None for f in factors):
        return None, list
    starts = [torch.zeros_like(x) if f is None else f * x for f, x in zip(factors, saved.inputs(), strict=True)]
    tangents = tangent_sweep(saved.tape, starts, trainable, needs_output_tangent)
    return _Chain(saved.cotangent_of, tangents), lambda: list(tangents)


def _scale_gradient(saved: Saved, attributed: Optionals) -> Tensor | None:
    """dL/dc = sum over the features of a * x * g_0."""
    total: Tensor | None = None
    for a, x, g0 in zip(attributed, saved.inputs(), saved.g0, strict=True):
        if a is not None and g0 is not None:
            products = a * x * g0
            products = products.flatten(1).sum(1) if products.dim() > 1 else products
            total = products if total is None else total + products
    assert saved.scale is not None
    return None if total is None else total.view(saved.scale.shape)


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _backward(ctx: Any, gradients: Optionals) -> Any:
    saved: Saved = ctx.restore(ctx.saved_tensors)
    tape, trainable = saved.tape, saved.tape.schedule.trainable
    inputs, outputs = tape.graph.inputs, len(tape.graph.outputs)
    d_outputs, attributed, d_loss = gradients[:outputs], gradients[outputs:-1], gradients[-1]
    needs = ctx.needs_input_grad[1:]
    needs_x, needs_cotangents, needs_loss = needs[:inputs], needs[inputs : inputs + outputs], needs[inputs + outputs]
    chains: list[_Chain] = []
    d_cotangents: list[Tensor | None] = [None] * outputs

    s = d_outputs[0] if ctx.one_output else d_loss
    factors = [_factor(a, s, saved.scale, len(tape.shapes[k])) for k, a in enumerate(attributed)]
    output_tangents = not ctx.one_output and any(needs_cotangents) and any(a is not None for a in attributed)
    own, ends = _own_chain(saved, factors, output_tangents)
    if own is not None:
        chains.append(own)
    dx = [
        f * g if needed and f is not None and g is not None else None
        for needed, f, g in zip(needs_x, factors, saved.g0, strict=True)
    ]
    if ctx.one_output and any(needs_cotangents):
        d_cotangents = [_scale_gradient(saved, attributed)]

    if not ctx.one_output and any(d is not None for d in d_outputs):
        wanted = {inputs + i for i in trainable} | {k for k, needed in enumerate(needs_x) if needed}
        deltas = dict(cotangent_sweep(tape, by_value(tape, d_outputs), frozenset(wanted)))
        dx = [_add(d, deltas.pop(k, None)) for k, d in enumerate(dx)]
        # With one chain the h were not saved; sweeping x through the masks finds them again.
        if trainable and ctx.with_loss:
            chains.append(_Chain(lambda v: deltas.pop(v, None), tangent_sweep(tape, saved.inputs(), trainable, False)))
        elif trainable:
            h = (saved.input_of(tape.graph.reads[i][0]) for i in trainable)
            chains.append(_Chain(lambda v: deltas.pop(v, None), h))

    d_params = _parameter_gradients(saved, ctx.restore.counts, chains if trainable else [])
    if output_tangents:
        d_cotangents = [t if n else None for t, n in zip(ends(), needs_cotangents, strict=True)]
    return None, *dx, *d_cotangents, d_loss if needs_loss else None, *d_params


def below_autograd() -> Any:
    """Skip autograd's dispatch keys: the sweeps carry derivatives of their own."""
    return torch._C._AutoDispatchBelowAutograd()
