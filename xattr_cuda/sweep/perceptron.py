"""Perceptrons: chains of linear layers and activations, whose sweeps are one native call forward and one backward.

Which networks are ones, and a step of them. Whatever does not fit — dropout, trained slopes, sizes that do not match,
a device without kernels — takes the engine's way, layer by layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from . import perceptron_function
from .layer import Layer
from .program import BoundProgram
from .rules.activation import ActivationRule, LeakyReLURule
from .rules.dropout import DropoutRule
from .rules.linear import LinearRule
from .rules.maps import IdentityRule
from .target import Seeds, Target, seeds_of

_PLAIN = (Tensor, nn.Parameter)  # subclasses may be anything
_ONES = Seeds([None], [None], True)  # of one output that nobody weights: the node starts from ones


def _passes(layer: Layer) -> bool:
    return type(layer) is IdentityRule or (type(layer) is DropoutRule and layer.p == 0)


def _slope(layer: Layer) -> float | None:
    """The slope of a fixed activation, None for any other layer. Zero is ReLU's alone, which maps infinity to zero."""
    if type(layer) is ActivationRule:
        return 0.0
    return layer.negative_slope or None if type(layer) is LeakyReLURule else None


def _fits(weights: Sequence[Tensor], x: Tensor) -> bool:
    """Whether the tensors are what the operators take, and have kernels. The engine says what is wrong with others."""
    columns = x.shape[1]
    if torch._C._are_functorch_transforms_active() or type(x) not in _PLAIN:
        return False
    for weight in weights:
        if type(weight) not in _PLAIN:
            return False
        if weight.dim() != 2 or weight.shape[1] != columns or weight.dtype != x.dtype or weight.device != x.device:
            return False
        columns = weight.shape[0]
    return ops.has_perceptron_kernels(weights)


_one: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def _ones(x: Tensor) -> Tensor | None:
    """Ones [B, 1] on a GPU without a launch: views of one number, written once for all streams of the device."""
    key = x.device, x.dtype
    if key not in _one:
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return None  # a graph's memory would not outlive it
        with torch.inference_mode(False):
            _one[key] = torch.ones(1, 1, dtype=x.dtype, device=x.device)
        if x.is_cuda:
            torch.cuda.current_stream(x.device).synchronize()
    return _one[key].expand(len(x), 1)


@dataclass
class Perceptron:
    """A step of a perceptron: the network and its input."""

    x: Tensor
    weights: list[Tensor]
    slopes: list[float]

    @staticmethod
    def of(bound: BoundProgram, xs: Sequence[Tensor]) -> "Perceptron | None":
        """The program's layers as one perceptron, if they are one that has kernels."""
        if len(xs) != 1 or xs[0].dim() != 2:
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

    @property
    def _node(self) -> Any:
        """Who makes the node of autograd: C++ where it is there and PyTorch's dispatcher chooses the kernels."""
        return perceptron_function if ops.extension is None or ops.active() not in ("auto", "cpu") else ops.extension

    def seeds(self, target: Target, given: Sequence[Any] | None) -> Seeds:
        """`seeds_of` the output, which need not be there yet."""
        if self.one_output and target is None and given is None:
            return _ONES
        return seeds_of([self.blank()], target, given, lambda: True)

    def sweep(self, seeds: Seeds, needs_grad: bool) -> Any:
        """The forward and the attribution sweep: a step with `y`, and `unscaled`, the attribution before its scale."""
        scale = seeds.cotangents[0] if seeds.one_output else None
        needs_g0 = needs_grad and (self.x.requires_grad or (scale is not None and scale.requires_grad))
        start = seeds.starts[0]
        if start is None and self.x.device.type != "cpu":
            start = _ones(self.x)
        return self._node.sweep(self.x, self.weights, self.slopes, start, needs_grad, needs_g0)

    def attribution(self, step: Any, scale: Tensor | None) -> Tensor:
        """The attribution of a step, of which nothing is differentiated."""
        unscaled: Tensor = step.unscaled
        return unscaled if scale is None else unscaled * scale

    def plain(self, needs_grad: bool) -> Tensor:
        """The output alone, differentiable if needs_grad."""
        output: Tensor = self._node.plain(self.x, self.weights, self.slopes, needs_grad)
        return output

    def results(self, step: Any, cotangent: Tensor | None, loss: Tensor | None) -> Any:
        """(output, attribution, loss), differentiable."""
        return self._node.results(step, self.x, cotangent, loss)
