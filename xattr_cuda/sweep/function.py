"""The autograd function: an ordinary first-order node whose backward pass is the tangent and the cotangent sweep.

Notation of design section 2. The *own* chain carries the attribution: cotangents g, kept from the attribution sweep,
and tangents w, swept in the backward pass from (c a + s) x. The *task* chain carries gradients sent into the outputs:
cotangents delta, swept in the backward pass, and tangents h. Where the own chain speaks for the output too (one
output, or the loss is attributed) there is one chain, and s is not zero.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .engine import Tape, cotangent_sweep, tangent_sweep
from .layer import Pair
from .saved import Saved

Tensors = Sequence[Tensor]
Optionals = Sequence[Tensor | None]


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that refuses to be differentiated, where a graph of it is asked for.

    torch.autograd.function.once_differentiable refuses only where what was sent requires a gradient, and elsewhere
    passes constants for gradients.
    """

    @wraps(backward)
    def checked(ctx: Any, *sent: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "xattr_cuda: the sweeps are differentiable once, and create_graph=True asks for more; for second order "
                "use xa.attribute(..., engine='autograd')"
            )
        return backward(ctx, *sent)

    return checked


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
    @first_order
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


def factor_of(a: Tensor | None, s: Tensor | None, scale: Tensor | None, dims: int) -> Tensor | None:
    """c a + s, what multiplies x at the start of the own chain; None where neither gradient was sent."""
    if a is not None and scale is not None:
        a = _spread(scale, dims) * a
    if s is None or a is None:
        return a if s is None else _spread(s, dims)
    return a + _spread(s, dims)


class _ParameterGradients:
    """Gradients of all parameters, in which layers may be added to more than once."""

    def __init__(self, saved: Saved, counts: Sequence[int]) -> None:
        self.tape, self.first = saved.tape, list(accumulate(counts, initial=0))
        self.found: list[Tensor | None] = [None] * sum(counts)

    def add(self, i: int, pairs: Sequence[Pair]) -> None:
        """The gradients that layer i has from these chains."""
        if not pairs:
            return
        layer, first = self.tape.layers[i], self.first[i]
        new = layer.parameter_gradients(self.tape.frames[i], pairs)
        if len(new) != self.first[i + 1] - first:
            raise RuntimeError(
                f"the rule of {layer.where} returned {len(new)} gradients for {self.first[i + 1] - first} parameters; "
                "wanted one for each (None where it is no number's)"
            )
        for k, d in enumerate(new, first):
            before = self.found[k]
            self.found[k] = d if before is None or d is None else before.add_(d)


def _task_down(
    saved: Saved,
    d_outputs: Optionals,
    needs_x: Sequence[bool],
    gradients: _ParameterGradients,
    waits: Callable[[int], bool],
) -> dict[int, Tensor]:
    """The task chain's way down: delta of the inputs, and of the layers that wait for it; the others have it now."""
    tape, inputs = saved.tape, saved.tape.graph.inputs
    wanted = {inputs + i for i in tape.schedule.trainable} | {k for k, needed in enumerate(needs_x) if needed}
    waiting: dict[int, Tensor] = {}
    for v, delta in cotangent_sweep(tape, by_value(tape, d_outputs), frozenset(wanted)):
        if v < inputs or waits(v - inputs):
            waiting[v] = delta
        else:
            gradients.add(v - inputs, [(delta, saved.take_input(v - inputs))])
    return waiting


def _up(
    saved: Saved,
    own: Iterator[Tensor] | None,
    deltas: dict[int, Tensor],
    inputs_again: Iterator[Tensor] | None,
    gradients: _ParameterGradients,
) -> None:
    """The way up: each layer's pair of the own chain, and of the task chain where its delta has waited."""

    def pairs_of(i: int) -> list[Pair]:
        pairs: list[Pair] = []
        if own is not None:
            w, g = next(own), saved.take_cotangent(i)
            if g is not None:
                pairs.append((g, w))
        h = None if inputs_again is None else next(inputs_again)
        delta = deltas.pop(saved.tape.graph.inputs + i, None)
        if delta is not None:
            pairs.append((delta, saved.take_input(i) if h is None else h))
        return pairs

    for i in saved.tape.schedule.trainable:
        gradients.add(i, pairs_of(i))  # no name holds a pair while the next is swept


def _starts(saved: Saved, factors: list[Tensor | None]) -> list[Tensor]:
    """Where the own chain's tangents start. The factors are used up."""
    return [torch.zeros_like(x) if (f := factors.pop(0)) is None else f * x for x in saved.inputs()]


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


def _backward(ctx: Any, sent: Optionals) -> Any:
    saved: Saved = ctx.restore(ctx.saved_tensors)
    ctx.maybe_clear_saved_tensors()  # unless the graph is retained, tensors go as soon as they have been used
    tape, trainable = saved.tape, saved.tape.schedule.trainable
    inputs, outputs = tape.graph.inputs, len(tape.graph.outputs)
    d_outputs, attributed, d_loss = sent[:outputs], sent[outputs:-1], sent[-1]
    needs = ctx.needs_input_grad[1:]
    needs_x, needs_cotangents, needs_loss = needs[:inputs], needs[inputs : inputs + outputs], needs[inputs + outputs]
    gradients = _ParameterGradients(saved, ctx.restore.counts())

    s = d_outputs[0] if ctx.one_output else d_loss
    factors = [factor_of(a, s, saved.scale, len(tape.shapes[k])) for k, a in enumerate(attributed)]
    dx = [
        f * g if needed and f is not None and g is not None else None
        for needed, f, g in zip(needs_x, factors, saved.g0, strict=True)
    ]
    d_cotangents: list[Tensor | None] = [None] * outputs
    if ctx.one_output and any(needs_cotangents):
        d_cotangents = [_scale_gradient(saved, attributed)]
    output_tangents = not ctx.one_output and any(needs_cotangents) and any(a is not None for a in attributed)
    has_own = any(f is not None for f in factors) and bool(trainable or output_tangents)

    deltas: dict[int, Tensor] = {}
    inputs_again = None
    if not ctx.one_output and any(d is not None for d in d_outputs):
        # With one chain the h were not saved; sweeping x through the masks finds them again.
        if ctx.with_loss and trainable:
            inputs_again = tangent_sweep(tape, saved.inputs(), trainable, False)

        def waits(i: int) -> bool:
            return ctx.with_loss or (has_own and tape.layers[i].joins_chains(tape.frames[i]))

        deltas = _task_down(saved, d_outputs, needs_x, gradients, waits)
        dx = [_add(d, deltas.pop(k, None)) for k, d in enumerate(dx)]

    own = tangent_sweep(tape, _starts(saved, factors), trainable, output_tangents) if has_own else None
    _up(saved, own, deltas, inputs_again, gradients)
    if output_tangents and own is not None:
        d_cotangents = [t if n else None for t, n in zip(own, needs_cotangents, strict=True)]
    return None, *dx, *d_cotangents, d_loss if needs_loss else None, *gradients.found


def below_autograd() -> Any:
    """Skip autograd's dispatch keys: the sweeps carry derivatives of their own."""
    return torch._C._AutoDispatchBelowAutograd()
