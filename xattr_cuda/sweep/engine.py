"""The sweeps: forward, cotangent and tangent, over a graph of layers.

The cotangent and the tangent sweep hand out the tensors that their caller wants, and stop when the last is served.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .fusion import cotangent_fused, forward_fused, tangent_fused
from .layer import Frame, Layer, Residual
from .program import BoundProgram, Program
from .schedule import Graph, Schedule


@dataclass
class Tape:
    """What the forward sweep leaves for the others. Lists of layers have an entry for each, of values likewise."""

    program: Program
    layers: list[Layer]
    params: list[tuple[Tensor, ...]]
    schedule: Schedule
    shapes: list[torch.Size] = field(default_factory=list)  # of the values
    residuals: list[Residual] = field(default_factory=list)  # of the layers
    kept: dict[int, Tensor] = field(default_factory=dict)  # values that were to be kept

    @property
    def graph(self) -> Graph:
        return self.schedule.graph

    def frame(self, i: int) -> Frame:
        """What the forward sweep left at layer i."""
        reads = self.graph.reads[i]
        shapes = tuple([self.shapes[v] for v in reads])
        return Frame(self.params[i], shapes, self.shapes[self.graph.inputs + i], self.residuals[i])


def forward_sweep(bound: BoundProgram, inputs: Sequence[Tensor], keep: bool) -> tuple[list[Tensor], Tape]:
    """h_l = m_l * (W_l h_{l-1}). Returns the outputs and the tape, which with `keep` has what two chains need."""
    graph, schedule = bound.schedule.graph, bound.schedule
    tape = Tape(bound.program, bound.layers, bound.params, schedule)
    count = graph.inputs + len(graph.reads)
    tape.shapes = [torch.Size(())] * count
    tape.residuals = [()] * len(graph.reads)
    values: dict[int, Tensor] = {}

    def put(v: int, h: Tensor) -> None:
        values[v] = h
        tape.shapes[v] = h.shape
        if keep and v in schedule.kept_inputs:
            tape.kept[v] = h

    for v, x in enumerate(inputs):
        put(v, x)
    for i, activation, dead, _ in schedule.stages_up((), True):
        layer, reads = bound.layer(i, tape.shapes), [values[v] for v in graph.reads[i]]
        out = graph.inputs + i
        if activation is None:
            h, tape.residuals[i] = layer.forward(bound.params[i], *reads)
        else:
            out = graph.inputs + activation
            above, slopes = bound.layer(activation, tape.shapes), bound.params[activation]
            h, tape.residuals[activation] = forward_fused(layer, bound.params[i], reads, above, slopes)
            tape.shapes[graph.inputs + i] = h.shape
        del reads
        put(out, h)
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
            tape.residuals[i if activation is None else activation] = ()
    for v in range(graph.inputs):
        if v in wanted and v in sums.found:
            yield v, sums.found[v]


def _cotangents(tape: Tape, i: int, activation: int | None, g: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The cotangents of what a stage reads."""
    layer, frame, reads = tape.layers[i], tape.frame(i), tape.graph.reads
    if activation is None:
        found = layer.cotangent(frame, g)
        yield from zip(reads[i], (found,) if isinstance(found, Tensor) else found, strict=True)
    else:
        yield reads[activation][0], cotangent_fused(layer, frame, g, tape.layers[activation], tape.frame(activation))


def tangent_sweep(tape: Tape, starts: Sequence[Tensor], layers: tuple[int, ...], outputs: bool) -> Iterator[Tensor]:
    """v_l = m_l * (W_l v_{l-1}), from the inputs up, where the tangents `starts` enter.

    Yields the tangent at the input of each of `layers`, in order, and then those of the network's outputs if asked to.
    """
    graph, values = tape.graph, dict(enumerate(starts))
    for i, activation, dead, passes in tape.schedule.stages_up(layers, outputs):
        if i in layers:
            yield values[graph.reads[i][0]]
        if passes:
            layer, reads, out = tape.layers[i], [values[v] for v in graph.reads[i]], graph.inputs + i
            if activation is None:
                values[out] = layer.tangent(tape.frame(i), *reads)
            else:
                above = tape.layers[activation]
                out = graph.inputs + activation
                values[out] = tangent_fused(layer, tape.frame(i), reads, above, tape.frame(activation))
            del reads
        for v in dead:
            del values[v]
    if outputs:
        yield from (values[v] for v in graph.outputs)
