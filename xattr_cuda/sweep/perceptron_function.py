"""A step of a perceptron as one node of autograd: an ordinary first-order function of two operators.

The same algebra as in function.py, in its notation, for the whole network at once. csrc/perceptron_node.cpp is the same
node without Python between its sweeps; this one serves GPUs where no extension was built, and is its specification.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .function import below_autograd, factor_of, first_order


@dataclass
class PerceptronStep:
    """A step between its two calls. Layers count from 1."""

    weights: Sequence[Tensor]
    slopes: Sequence[float]
    trained: list[int]
    y: Tensor  # [B, N_L]
    unscaled: Tensor | None  # x * g_0, [B, N_0]
    u: Tensor | None  # where the own chain starts, [B, N_L]; None where nothing is attributed
    bits: list[Tensor]
    h: list[Tensor]  # with two chains: inputs of the trained layers but the first
    g: list[Tensor]  # g_0 where it is needed; own cotangents at the outputs of the trained layers but the last

    @property
    def one_output(self) -> bool:
        return self.u is not None and self.y.shape[1] == 1


def sweep(
    x: Tensor, weights: Sequence[Tensor], slopes: Sequence[float], u: Tensor | None, needs_grad: bool, needs_g0: bool
) -> PerceptronStep:
    """The forward and the attribution sweep.

    x: [B, N_0]; weights, slopes: as in ops.mlp_attribute. u: [B, N_L], the output's cotangent; None stands for ones.
    needs_grad: a backward pass may follow; needs_g0: it will need g_0.
    """
    trained = [k for k, w in enumerate(weights, 1) if needs_grad and w.requires_grad]
    u = x.new_ones(len(x), len(weights[-1])) if u is None else u
    keep_h = [] if len(weights[-1]) == 1 else [k - 1 for k in trained if k > 1]
    keep_g = [k for k in (0, *trained) if k < len(weights) and (k > 0 or needs_g0)]
    with below_autograd():
        y, a, bits, h, g = ops.mlp_attribute(x, weights, slopes, u, keep_h, keep_g)
    return PerceptronStep(weights, slopes, trained, y, a, u, bits, h, g)


def plain(x: Tensor, weights: Sequence[Tensor], slopes: Sequence[float], needs_grad: bool) -> Tensor:
    """The output alone, [B, N_L], differentiable if needs_grad: a step without an attribution, the task's chain."""
    trained = [k for k, w in enumerate(weights, 1) if needs_grad and w.requires_grad]
    with below_autograd():
        y, _, bits, h, _ = ops.mlp_attribute(x, weights, slopes, None, [k - 1 for k in trained if k > 1], [])
    if not needs_grad:
        return y
    return results(PerceptronStep(weights, slopes, trained, y, None, None, bits, h, []), x, None, None)[0]


def results(
    step: PerceptronStep, x: Tensor, cotangent: Tensor | None, loss: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(output, attribution, loss), differentiable; see PerceptronFunction."""
    return PerceptronFunction.apply(step, x, cotangent, loss, *step.weights)  # type: ignore[no-untyped-call]


class PerceptronFunction(torch.autograd.Function):
    """(input, cotangent, loss, weights) -> (output, attribution, loss); None for an absent cotangent or loss, and for
    the attribution of a plain step.

    With one output the cotangent is the scale c of the attribution, and one chain serves the output, the attribution
    and the loss; otherwise the cotangent is the own chain's seed, and the output's gradients have a chain of their own.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, step: PerceptronStep, x: Tensor, cotangent: Tensor | None, loss: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        scale, attribution = cotangent if step.one_output else None, step.unscaled
        if attribution is not None and scale is not None:
            attribution = attribution * scale.detach()
        ctx.set_materialize_grads(False)
        ctx.slopes, ctx.trained, ctx.one_output, ctx.backend = step.slopes, step.trained, step.one_output, ops.active()
        keep_x = bool(step.trained) or ctx.needs_input_grad[2]
        views = step.u is not None and step.u.stride(0) == 0
        keep_u = scale is None or views  # what carries a scale starts from ones, which cost nothing as views of one
        ctx.counts = (len(weights), len(step.bits), len(step.h))
        ctx.save_for_backward(
            x if keep_x else None, scale, step.u if keep_u else None, *weights, *step.bits, *step.h, *step.g
        )
        return step.y, attribution, None if loss is None else loss.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor | None, a: Tensor | None, d_loss: Tensor | None) -> Any:
        with ops.use_backend(ctx.backend), below_autograd():
            return _backward(ctx, dy, a, d_loss)


def _backward(ctx: Any, dy: Tensor | None, a: Tensor | None, d_loss: Tensor | None) -> Any:
    layers, masks, inner = ctx.counts
    x, scale, u, *saved = ctx.saved_tensors
    weights, bits = saved[:layers], saved[layers : layers + masks]
    h, g = saved[layers + masks : layers + masks + inner], saved[layers + masks + inner :]
    _, needs_x, needs_cotangent, needs_loss, *_ = ctx.needs_input_grad
    trained: list[int] = ctx.trained
    g0 = g.pop(0) if len(g) > sum(k < layers for k in trained) else None

    u = torch.ones_like(scale) if u is None and scale is not None else u
    s = dy if ctx.one_output else None
    if d_loss is not None and ctx.one_output:
        s = d_loss * scale if s is None else s + d_loss * scale
    attributed = a is not None or s is not None
    delta = None if ctx.one_output else dy
    output_tangent = needs_cotangent and not ctx.one_output and attributed
    input_cotangent = needs_x and delta is not None
    own = attributed and (bool(trained) or output_tangent)
    delta = delta if trained or input_cotangent else None

    gradients: list[Tensor | None] = [None] * layers
    v_end = delta_end = None
    if own or delta is not None:
        cotangents = [*g, u] if trained and trained[-1] == layers else g
        inputs = [x, *h] if trained and trained[0] == 1 else h
        found, v_end, delta_end = ops.mlp_attribute_backward(
            *(x if own else None, a, s, scale, delta, weights, ctx.slopes, bits),
            cotangents if own else [],
            [] if delta is None else inputs,
            trained,
            output_tangent,
            input_cotangent,
        )
        for k, gradient in zip(trained, found, strict=True):
            gradients[k - 1] = gradient

    dx = delta_end if input_cotangent else None
    if needs_x and g0 is not None and (factor := factor_of(a, s, scale, 2)) is not None:
        dx = factor * g0 if dx is None else dx + factor * g0
    d_cotangent = v_end if output_tangent else None
    if needs_cotangent and ctx.one_output and a is not None:
        d_cotangent = (a * x * g0).sum(1, keepdim=True)
    return None, dx, d_cotangent, d_loss if needs_loss else None, *gradients
