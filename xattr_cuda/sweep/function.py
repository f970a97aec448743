"""The autograd function: an ordinary first-order node whose backward pass is the tangent and the cotangent sweep.

Notation of design section 2. The *own* chain carries the attribution: cotangents g, kept from the attribution sweep,
and tangents w, swept in the backward pass from (c a + s) x. The *task* chain carries a gradient sent into the output:
cotangents delta, swept in the backward pass, and tangents h. Where the own chain speaks for the output too (one
output, or the loss is attributed) there is one chain, and s is not zero.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import ops
from .engine import Tape, cotangent_sweep, tangent_sweep
from .layer import Pair

INPUT = -1  # the cotangent sweep's name for the network's input


@dataclass
class Step:
    """One step between its sweeps: what autograd does not need to know."""

    tape: Tape
    output: Tensor
    seed: Tensor  # where the own chain starts: ones, the gradient of the loss, or the cotangent
    one_output: bool  # the own chain speaks for the output


def _spread(per_sample: Tensor, dims: int) -> Tensor:
    """[B, 1, ...] or [] to a shape that broadcasts against [B, ...] of `dims` dimensions."""
    return per_sample if per_sample.dim() in (0, dims) else per_sample.reshape(-1, *[1] * (dims - 1))


def attribution_of(x: Tensor, g0: Tensor, scale: Tensor | None) -> Tensor:
    """A = c x * g_0."""
    attribution = x * g0
    return attribution if scale is None else attribution * _spread(scale, x.dim())


@dataclass
class _Saved:
    """What the backward pass got back from autograd, with the way to what was left to recompute."""

    tape: Tape
    x: Tensor | None
    seed: Tensor
    inputs: dict[int, Tensor]
    cotangents: dict[int, Tensor]

    def input_of(self, i: int) -> Tensor:
        """h: the input of layer i in the forward sweep."""
        if i == 0:
            assert self.x is not None
            return self.x
        if i in self.inputs:
            return self.inputs[i]
        return self.tape.layers[i - 1].tangent(
            self.input_of(i - 1), self.tape.params[i - 1], self.tape.residuals[i - 1]
        )

    def cotangent_of(self, i: int) -> Tensor:
        """g: the cotangent at the output of layer i in the attribution sweep."""
        if i == len(self.tape.layers) - 1:
            return self.seed
        if i in self.cotangents:
            return self.cotangents[i]
        above = i + 1
        return self.tape.layers[above].cotangent(
            self.cotangent_of(above), self.tape.params[above], self.tape.residuals[above], self.tape.shapes[above]
        )


class SweepFunction(torch.autograd.Function):
    """(x, cotangent, loss, parameters) -> (output, attribution, loss); None for an absent cotangent or loss.

    With one output the cotangent is the scale c of the attribution; otherwise it is the seed of the own chain.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, step: Step, x: Tensor, cotangent: Tensor | None, loss: Tensor | None, *params: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        tape, trainable = step.tape, step.tape.schedule.trainable
        with below_autograd():
            cotangents = dict(cotangent_sweep(tape, step.seed, tape.schedule.kept_cotangents | {INPUT}))
            g0 = cotangents.pop(INPUT)
            attribution = attribution_of(x, g0, cotangent if step.one_output else None)

        _, needs_x, needs_cotangent, *_ = ctx.needs_input_grad
        ctx.set_materialize_grads(False)
        ctx.one_output, ctx.with_loss, ctx.backend = step.one_output, loss is not None, ops.active()
        ctx.layers, ctx.shapes, ctx.schedule = tape.layers, tape.shapes, tape.schedule
        ctx.counts = [len(tensors) for tensors in tape.params]
        ctx.input_keys, ctx.cotangent_keys = list(tape.inputs), list(cotangents)
        ctx.save_for_backward(
            x if trainable or needs_cotangent else None,
            g0 if needs_x or (needs_cotangent and step.one_output) else None,
            cotangent if step.one_output else None,
            step.seed,
            *params,
            *tape.residuals,
            *tape.inputs.values(),
            *cotangents.values(),
        )
        return step.output, attribution, None if loss is None else loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor | None, a: Tensor | None, d_loss: Tensor | None) -> Any:
        with ops.use_backend(ctx.backend), below_autograd():
            return _backward(ctx, d_output, a, d_loss)


def sweep_function(
    step: Step, x: Tensor, cotangent: Tensor | None, loss: Tensor | None, *params: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """SweepFunction applied."""
    result: tuple[Tensor, Tensor, Tensor | None] = SweepFunction.apply(step, x, cotangent, loss, *params)  # type: ignore[no-untyped-call]
    return result


def _restore(ctx: Any) -> tuple[_Saved, Tensor | None, Tensor | None]:
    """Saved tensors back in their places: (saved, g0, scale)."""
    x, g0, scale, seed, *rest = ctx.saved_tensors
    stream = iter(rest)
    params = [tuple(islice(stream, count)) for count in ctx.counts]
    residuals = list(islice(stream, len(ctx.layers)))
    inputs = {i: next(stream) for i in ctx.input_keys}
    cotangents = {i: next(stream) for i in ctx.cotangent_keys}
    return _Saved(Tape(ctx.layers, params, ctx.schedule, ctx.shapes, residuals), x, seed, inputs, cotangents), g0, scale


def _factor(a: Tensor | None, s: Tensor | None, scale: Tensor | None, dims: int) -> Tensor | None:
    """c a + s, what multiplies x at the start of the own chain; None where neither gradient was sent."""
    if a is not None and scale is not None:
        a = _spread(scale, dims) * a
    if s is None or a is None:
        return a if s is None else _spread(s, dims)
    return a + _spread(s, dims)


@dataclass
class _Chain:
    """A chain in the backward pass: its cotangent at a layer's output, and its tangents, in order."""

    cotangent_of: Callable[[int], Tensor]
    tangents: Iterator[Tensor]


def _parameter_gradients(ctx: Any, saved: _Saved, chains: list[_Chain]) -> list[Tensor | None]:
    tape = saved.tape
    gradients: list[Tensor | None] = [None] * sum(ctx.counts)
    if not chains:
        return gradients
    first = list(accumulate(ctx.counts, initial=0))
    for i in ctx.schedule.trainable:
        pairs: list[Pair] = [(chain.cotangent_of(i), next(chain.tangents)) for chain in chains]
        gradients[first[i] : first[i + 1]] = tape.layers[i].parameter_gradients(
            pairs, tape.params[i], tape.residuals[i]
        )
    return gradients


def _backward(ctx: Any, d_output: Tensor | None, a: Tensor | None, d_loss: Tensor | None) -> Any:
    saved, g0, scale = _restore(ctx)
    tape, x, trainable = saved.tape, saved.x, ctx.schedule.trainable
    _, needs_x, needs_cotangent, needs_loss, *_ = ctx.needs_input_grad
    one_chain = ctx.one_output or ctx.with_loss
    chains: list[_Chain] = []
    dx = d_cotangent = None

    s = d_output if ctx.one_output else d_loss
    factor = _factor(a, s, scale, len(tape.shapes[0]))
    output_tangent = needs_cotangent and not ctx.one_output and a is not None
    if factor is not None and (trainable or output_tangent):
        assert x is not None
        ends = [len(tape.layers)] if output_tangent else []
        chains.append(_Chain(saved.cotangent_of, tangent_sweep(tape, factor * x, {*trainable, *ends})))
    if factor is not None and needs_x:
        assert g0 is not None
        dx = factor * g0
    if needs_cotangent and ctx.one_output and a is not None:
        assert g0 is not None
        assert x is not None
        products = a * x * g0
        d_cotangent = products.flatten(1).sum(1) if products.dim() > 1 else products

    if d_output is not None and not ctx.one_output:
        wanted = {*trainable, *([INPUT] if needs_x else [])}
        deltas = dict(cotangent_sweep(tape, d_output, wanted))
        if needs_x:
            delta0 = deltas.pop(INPUT)
            dx = delta0 if dx is None else dx + delta0
        # With one chain the h were not saved; sweeping x through the masks finds them again.
        if trainable:
            assert x is not None
            h = tangent_sweep(tape, x, trainable) if one_chain else map(saved.input_of, trainable)
            chains.append(_Chain(deltas.pop, h))

    gradients = _parameter_gradients(ctx, saved, chains if trainable else [])
    if output_tangent:
        d_cotangent = next(chains[0].tangents)
    if d_cotangent is not None and scale is not None:
        d_cotangent = d_cotangent.view(scale.shape)
    return None, dx, d_cotangent, d_loss if needs_loss else None, *gradients


def below_autograd() -> Any:
    """Skip autograd's dispatch keys: the sweeps carry derivatives of their own."""
    return torch._C._AutoDispatchBelowAutograd()
