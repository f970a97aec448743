"""The sweeps: forward, cotangent and tangent, over a chain of layers.

The cotangent and the tangent sweep hand out the tensors that flow past the layers their caller `needs`, and stop when
the last of them is served.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from .layer import Layer
from .program import BoundProgram
from .rules import ActivationRule, LinearRule
from .schedule import Schedule


@dataclass
class Tape:
    """What the forward sweep leaves for the others; lists have one entry a layer."""

    layers: list[Layer]
    params: list[tuple[Tensor, ...]]
    schedule: Schedule
    shapes: list[torch.Size] = field(default_factory=list)  # of the layer's input
    residuals: list[Tensor | None] = field(default_factory=list)
    inputs: dict[int, Tensor] = field(default_factory=dict)  # of the layers that were to be kept

    def fused(self, product: int, activation: int, like: Tensor) -> tuple[LinearRule, Tensor, Tensor | None]:
        """The product, and the mask and the slope that it applies on its way out."""
        layer = cast(ActivationRule, self.layers[activation])
        bits = cast(Tensor, self.residuals[activation])
        return cast(LinearRule, self.layers[product]), bits, layer.slope(self.params[activation], like)


def forward_sweep(program: BoundProgram, x: Tensor, keep: Collection[int]) -> tuple[Tensor, Tape]:
    """h_l = m_l * (W_l h_{l-1}). Returns the output and the tape, with the inputs of the layers in `keep`."""
    layers, params = program.layers, program.params
    tape, h = Tape(layers, params, program.schedule), x
    for i, activation in program.schedule.up:
        tape.shapes.append(h.shape)
        if i in keep:
            tape.inputs[i] = h
        if activation is None:
            h, residual = layers[i].forward(h, params[i])
            tape.residuals.append(residual)
        else:
            slope = cast(ActivationRule, layers[activation]).slope(params[activation], h)
            h, bits = cast(LinearRule, layers[i]).forward_masked(h, params[i], slope)
            tape.shapes.append(h.shape)
            tape.residuals += [None, bits]
    return h, tape


def cotangent_sweep(
    tape: Tape, g: Tensor, needs: Collection[int], *, release: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """g_{l-1} = W_l^T (m_l * g_l), from the output down.

    Yields (l, cotangent at the output of layer l) for each l in `needs`, last first; -1 stands for the network's
    input. With `release` the residuals are dropped from the tape as they are used.
    """
    left = len(needs)
    for i, activation in tape.schedule.down:
        if i in needs:
            yield i, g
            left -= 1
        if not left:
            return
        if activation is None:
            g = tape.layers[i].cotangent(g, tape.params[i], tape.residuals[i], tape.shapes[i])
        else:
            layer, bits, slope = tape.fused(i, activation, g)
            g = layer.cotangent_masked(g, tape.params[i], bits, slope)
            i = activation
        if release:
            tape.residuals[i] = None
    if left:
        yield -1, g


def tangent_sweep(tape: Tape, v: Tensor, needs: Collection[int]) -> Iterator[Tensor]:
    """v_l = m_l * (W_l v_{l-1}), from the input up.

    Yields the tangent at the input of each layer in `needs`, in order; len(layers) stands for the network's output.
    """
    left = len(needs)
    for i, activation in tape.schedule.up:
        if i in needs:
            yield v
            left -= 1
        if not left:
            return
        if activation is None:
            v = tape.layers[i].tangent(v, tape.params[i], tape.residuals[i])
        else:
            layer, bits, slope = tape.fused(i, activation, v)
            v = layer.tangent_masked(v, tape.params[i], bits, slope)
    if left:
        yield v
