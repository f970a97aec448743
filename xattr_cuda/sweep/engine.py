"""The sweeps: forward, cotangent and tangent, over a graph of layers.

The cotangent and the tangent sweep hand out the tensors that their caller wants, and stop when the last is served.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .fusion import cotangent_fused, forward_fused, tangent_fused
from .layer import Frame, Layer
from .program import BoundProgram, Program
from .schedule import Graph, Schedule


@dataclass
class Tape:
    """What the forward sweep leaves for the others. Lists of layers have an entry for each, of values likewise."""

    program: Program
    layers: list[Layer]
    schedule: Schedule
    shapes: list[torch.Size]  # of the values
    frames: list[Frame]  # of the layers
    kept: dict[int, Tensor] = field(default_factory=dict)  # values that were to be kept

    @property
    def graph(self) -> Graph:
        return self.schedule.graph


_NOTHING = Frame((), (), torch.Size(()), ())


def forward_sweep(bound: BoundProgram, inputs: Sequence[Tensor], keep: bool) -> tuple[list[Tensor], Tape]:
    """h_l = m_l * (W_l h_{l-1}). Returns the outputs and the tape, which with `keep` has what two chains need."""
    graph, schedule, params, layers = bound.schedule.graph, bound.schedule, bound.params, bound.layers
    shapes = [x.shape for x in inputs] + [_NOTHING.out_shape] * len(graph.reads)
    frames = [_NOTHING] * len(graph.reads)
    tape = Tape(bound.program, bound.layers, schedule, shapes, frames)
    kept = schedule.kept_inputs if keep else frozenset()
    values, sized = dict(enumerate(inputs)), bool(bound.program.sizes)
    for i, activation, dead, _ in schedule.stages_up((), True):
        if sized:
            bound.settle(i, shapes)
        hs, out = [values[v] for v in graph.reads[i]], graph.inputs + i
        read = tuple([h.shape for h in hs])
        if activation is None:
            h, residual = layers[i].forward(params[i], *hs)
            frames[i] = Frame(params[i], read, h.shape, residual)
        else:
            slopes = params[activation]
            h, residual = forward_fused(layers[i], params[i], hs, layers[activation], slopes)
            frames[i] = Frame(params[i], read, h.shape, ())
            frames[activation] = Frame(slopes, (h.shape,), h.shape, residual)
            shapes[out] = h.shape
            out = graph.inputs + activation
        values[out], shapes[out] = h, h.shape
        if out in kept:
            tape.kept[out] = h
        del hs
        for v in dead:
            del values[v]
    return [values[v] for v in graph.outputs], tape


class _Sums:
    """Cotangents of values, summed over the layers that read them."""

    def __init__(self, seeds: dict[int, Tensor]) -> None:
        self.found, self.own = dict(seeds), set[int]()

    def add(self, v: int, g: Tensor) -> None:
        if v not in self.found:
            self.found[v] = g
        elif v in self.own:
            self.found[v].add_(g)
        else:
            self.found[v] = self.found[v] + g
            self.own.add(v)


def cotangent_sweep(
    tape: Tape, seeds: dict[int, Tensor], wanted: frozenset[int], *, release: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """g_{l-1} = W_l^T (m_l * g_l), from the outputs down, where the cotangents of the values in `seeds` start.

    Yields (v, cotangent of value v) for each v in `wanted` that one reaches, last first, network inputs at the end.
    With `release` the residuals are dropped from the tape as they are used.
    """
    graph, sums = tape.graph, _Sums(seeds)
    for i, activation, _, passes in tape.schedule.stages_down(wanted):
        out = graph.inputs + i
        g = sums.found.pop(out, None)
        if g is None:
            continue
        if out in wanted:
            yield out, g
        if passes:
            for v, c in _cotangents(tape, i, activation, g):
                sums.add(v, c)
        if release:
            used = i if activation is None else activation
            tape.frames[used] = tape.frames[used]._replace(residual=())
    for v in range(graph.inputs):
        if v in wanted and v in sums.found:
            yield v, sums.found[v]


def _cotangents(tape: Tape, i: int, activation: int | None, g: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The cotangents of what a stage reads."""
    layer, frame, reads = tape.layers[i], tape.frames[i], tape.graph.reads
    if activation is None:
        found = layer.cotangent(frame, g)
        yield from zip(reads[i], (found,) if isinstance(found, Tensor) else found, strict=True)
    else:
        yield reads[activation][0], cotangent_fused(layer, frame, g, tape.layers[activation], tape.frames[activation])


def tangent_sweep(tape: Tape, starts: Sequence[Tensor], layers: tuple[int, ...], outputs: bool) -> Iterator[Tensor]:
    """v_l = m_l * (W_l v_{l-1}), from the inputs up, where the tangents `starts` enter.

    Yields the tangent at the input of each of `layers`, in order, and then those of the network's outputs if asked to.
    """
    graph, values = tape.graph, dict(enumerate(starts))
    del starts
    for i, activation, dead, passes in tape.schedule.stages_up(layers, outputs):
        if i in layers:
            yield values[graph.reads[i][0]]
        if passes:
            layer, reads, out = tape.layers[i], [values[v] for v in graph.reads[i]], graph.inputs + i
            if activation is None:
                values[out] = layer.tangent(tape.frames[i], *reads)
            else:
                above = tape.layers[activation]
                out = graph.inputs + activation
                values[out] = tangent_fused(layer, tape.frames[i], reads, above, tape.frames[activation])
            del reads
        for v in dead:
            del values[v]
    if outputs:
        yield from (values[v] for v in graph.outputs)
