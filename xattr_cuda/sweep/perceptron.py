"""Perceptrons: chains of linear layers and activations, whose sweeps are one native call forward and one backward.

The same algebra as in function.py, in its notation, for the whole network at once. Whatever does not fit — dropout,
trained slopes, large layers, sizes that do not match, a network on a GPU — takes the engine's way, layer by layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import ops
from .function import below_autograd, factor_of
from .layer import Layer
from .program import BoundProgram
from .rules.activation import ActivationRule, LeakyReLURule
from .rules.dropout import DropoutRule
from .rules.linear import LinearRule
from .rules.maps import IdentityRule
from .target import Seeds


def _passes(layer: Layer) -> bool:
    return type(layer) is IdentityRule or (type(layer) is DropoutRule and layer.p == 0)


def _slope(layer: Layer) -> float | None:
    """The slope of a fixed activation, None for any other layer. Zero is ReLU's alone, which maps infinity to zero."""
    if type(layer) is ActivationRule:
        return 0.0
    return layer.negative_slope or None if type(layer) is LeakyReLURule else None


def _fits(weights: Sequence[Tensor], x: Tensor) -> bool:
    """Whether the tensors are what the operators take, and weights that lie in cache.

    The engine says what is wrong with others, and frees what large layers leave as soon as it has been used.
    """
    columns, size = x.shape[1], 0
    for weight in weights:
        size += weight.numel()
        if weight.dim() != 2 or weight.shape[1] != columns or weight.dtype != x.dtype or weight.device != x.device:
            return False
        columns = weight.shape[0]
    return size <= ops.extension.LARGEST_NETWORK


@dataclass
class Perceptron:
    """A step of a perceptron: the network and its input."""

    x: Tensor
    weights: list[Tensor]
    slopes: list[float]

    @staticmethod
    def of(bound: BoundProgram, xs: Sequence[Tensor]) -> "Perceptron | None":
        """The program's layers as one perceptron, if they are one that the native kernels run."""
        native = ops.extension is not None and ops.active() in ("auto", "cpu")
        if not native or len(xs) != 1 or xs[0].dim() != 2 or xs[0].device.type != "cpu":
            return None
        weights: list[Tensor] = []
        slopes: list[float] = []
        value = 0
        for i, (layer, params) in enumerate(zip(bound.layers, bound.params, strict=True)):
            if bound.schedule.graph.reads[i] != (value,):
                return None
            value = i + 1
            if _passes(layer):
                continue
            if type(layer) is LinearRule and len(slopes) == len(weights):
                weights.append(params[0])
                continue
            slope = _slope(layer)
            if slope is None or len(slopes) == len(weights):
                return None
            slopes.append(slope)
        if bound.schedule.graph.outputs != (value,) or len(slopes) + 1 != len(weights) or not _fits(weights, xs[0]):
            return None
        return Perceptron(xs[0], weights, slopes)

    @property
    def one_output(self) -> bool:
        return self.weights[-1].shape[0] == 1

    def blank(self) -> Tensor:
        """A tensor like the output, [B, N_L], without values."""
        return self.x.new_empty(self.x.shape[0], self.weights[-1].shape[0])

    def sweep(self, seeds: Seeds, needs_grad: bool) -> "PerceptronStep":
        """The forward and the attribution sweep, and what the backward pass will need of them."""
        x, last = self.x, len(self.weights)
        trained = [k for k, w in enumerate(self.weights, 1) if needs_grad and w.requires_grad]
        scale = seeds.cotangents[0] if seeds.one_output else None
        keep_h = [] if seeds.one_output else [k - 1 for k in trained if k > 1]
        keep_g = [k for k in trained if k < last]
        if needs_grad and (x.requires_grad or (scale is not None and scale.requires_grad)):
            keep_g = [0, *keep_g]
        u = seeds.starts[0]
        assert u is not None
        with below_autograd():
            y, a, bits, h, g = ops.mlp_attribute(x, self.weights, self.slopes, u, keep_h, keep_g)
        return PerceptronStep(self.slopes, trained, seeds.one_output, y, a, u, bits, h, g)

    def results(self, step: "PerceptronStep", cotangent: Tensor | None, loss: Tensor | None) -> Any:
        """(output, attribution, loss), differentiable."""
        return PerceptronFunction.apply(step, self.x, cotangent, loss, *self.weights)  # type: ignore[no-untyped-call]


@dataclass
class PerceptronStep:
    """A step between its two native calls."""

    slopes: list[float]
    trained: list[int]
    one_output: bool
    y: Tensor  # [B, N_L]
    unscaled: Tensor  # x * g_0, [B, N_0]
    u: Tensor  # where the own chain starts, [B, N_L]
    bits: list[Tensor]
    h: list[Tensor]  # with two chains: inputs of the trained layers but the first
    g: list[Tensor]  # g_0 where it is needed; own cotangents at the outputs of the trained layers but the last


class PerceptronFunction(torch.autograd.Function):
    """(input, cotangent, loss, weights) -> (output, attribution, loss); None for an absent cotangent or loss.

    With one output the cotangent is the scale c of the attribution, and one chain serves the output, the attribution
    and the loss; otherwise the cotangent is the own chain's seed, and the output's gradients have a chain of their own.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, step: PerceptronStep, x: Tensor, cotangent: Tensor | None, loss: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        scale = cotangent if step.one_output else None
        attribution = step.unscaled if scale is None else step.unscaled * scale.detach()
        ctx.set_materialize_grads(False)
        ctx.slopes, ctx.trained, ctx.one_output, ctx.backend = step.slopes, step.trained, step.one_output, ops.active()
        keep_x = bool(step.trained) or ctx.needs_input_grad[2]
        ctx.counts = (len(weights), len(step.bits), len(step.h))
        ctx.save_for_backward(
            x if keep_x else None, scale, step.u if scale is None else None, *weights, *step.bits, *step.h, *step.g
        )
        return step.y, attribution, None if loss is None else loss.clone()

    @staticmethod
    @once_differentiable
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

    u = torch.ones_like(scale) if u is None else u  # what carries a scale starts from ones
    s = dy if ctx.one_output else None
    if d_loss is not None and ctx.one_output:
        s = d_loss * scale if s is None else s + d_loss * scale
    factor = factor_of(a, s, scale, 2)
    delta = None if ctx.one_output else dy
    output_tangent = needs_cotangent and not ctx.one_output and factor is not None
    input_cotangent = needs_x and delta is not None
    v = factor * x if factor is not None and (trained or output_tangent) else None
    delta = delta if trained or input_cotangent else None

    gradients: list[Tensor | None] = [None] * layers
    v_end = delta_end = None
    if v is not None or delta is not None:
        own = [*g, u] if trained and trained[-1] == layers else g
        inputs = [x, *h] if trained and trained[0] == 1 else h
        found, v_end, delta_end = ops.mlp_attribute_backward(
            *(v, delta, weights, ctx.slopes, bits, [] if v is None else own, [] if delta is None else inputs),
            *(trained, output_tangent, input_cotangent),
        )
        for k, gradient in zip(trained, found, strict=True):
            gradients[k - 1] = gradient

    dx = delta_end if input_cotangent else None
    if needs_x and factor is not None and g0 is not None:
        dx = factor * g0 if dx is None else dx + factor * g0
    d_cotangent = v_end if output_tangent else None
    if needs_cotangent and ctx.one_output and a is not None:
        d_cotangent = (a * x * g0).sum(1, keepdim=True)
    return None, dx, d_cotangent, d_loss if needs_loss else None, *gradients
