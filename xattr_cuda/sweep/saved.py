"""What a step saves for its backward pass, and the way from there to what was left to recompute."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .engine import Tape
from .layer import Frame

Optionals = Sequence[Tensor | None]


def _compact(t: Tensor) -> Tensor:
    """t, or a copy where it is a part of something larger that it would keep alive."""
    extent = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return t.contiguous() if extent > t.numel() > 0 else t


class Kept(NamedTuple):
    """What is left of a layer's frame without its tensors, and how many of these were saved."""

    shapes: tuple[torch.Size, ...]
    out_shape: torch.Size
    params: int  # all of them
    saved: int  # parameters that were saved
    residual: int


@dataclass
class Restore:
    """Puts the tensors that autograd gives back in their places."""

    tape: Tape  # without a tensor
    layers: list[Kept]
    seeds: list[int]
    kept: list[int]
    cotangents: list[int]

    def counts(self) -> list[int]:
        """How many parameters each layer has."""
        return [layer.params for layer in self.layers]

    def __call__(self, tensors: tuple[Any, ...]) -> "Saved":
        stream, inputs = iter(tensors), self.tape.graph.inputs
        xs, g0 = list(islice(stream, inputs)), list(islice(stream, inputs))
        scale = next(stream)
        seeds = dict(zip(self.seeds, stream, strict=False))
        kept = dict(zip(self.kept, stream, strict=False))
        cotangents = dict(zip(self.cotangents, stream, strict=False))
        place = len(tensors) - sum(layer.saved + layer.residual for layer in self.layers)
        frames = []
        for shapes, out_shape, _, saved, residual in self.layers:
            middle, end = place + saved, place + saved + residual
            frames.append(Frame(tensors[place:middle], shapes, out_shape, tensors[middle:end]))
            place = end
        old = self.tape
        tape = Tape(old.program, old.layers, old.schedule, old.shapes, frames, kept)
        return Saved(tape, xs, g0, scale, seeds, cotangents)


@dataclass
class Saved:
    """One step in its backward pass."""

    tape: Tape
    xs: Optionals
    g0: Optionals  # cotangents of the network's inputs in the attribution sweep
    scale: Tensor | None
    seeds: dict[int, Tensor]  # where the own chain starts, by value
    cotangents: dict[int, Tensor]  # kept from the attribution sweep, by value
    _memo: dict[tuple[str, int], Tensor | None] = field(default_factory=dict)  # during one search
    _waiting: dict[str, dict[int, int]] = field(default_factory=dict)  # layers that still need a kept tensor

    def __post_init__(self) -> None:
        self._waiting = {what: dict(counts) for what, counts in self.tape.schedule.waiting.items()}

    @staticmethod
    def store(
        ctx: Any,
        tape: Tape,
        *,
        xs: Optionals,
        g0: Optionals,
        scale: Tensor | None,
        seeds: dict[int, Tensor],
        cotangents: dict[int, Tensor],
    ) -> Restore:
        """Hand every tensor to autograd. Returns the way back, which holds none."""
        flat: list[Tensor] = []
        layers: list[Kept] = []
        for layer, (params, shapes, out_shape, residual) in zip(tape.layers, tape.frames, strict=True):
            saved = params[: layer.keeps]
            flat += saved
            flat += residual
            layers.append(Kept(shapes, out_shape, len(params), len(saved), len(residual)))
        found = [_compact(t) for t in (*tape.kept.values(), *cotangents.values())]
        ctx.save_for_backward(*xs, *g0, scale, *seeds.values(), *found, *flat)
        bare = Tape(tape.program, tape.layers, tape.schedule, tape.shapes, [])
        return Restore(bare, layers, list(seeds), list(tape.kept), list(cotangents))

    def inputs(self) -> list[Tensor]:
        """The network's inputs, which were saved."""
        return [x for x in self.xs if x is not None]

    def take_input(self, i: int) -> Tensor:
        """h at trainable layer i, for the last time: what was kept for it alone is dropped."""
        h = self.input_of(self.tape.graph.reads[i][0])
        self._taken("h", self.tape.schedule.input_sources[i], self.tape.kept)
        return h

    def take_cotangent(self, i: int) -> Tensor | None:
        """g at the output of trainable layer i, None where none reached it, for the last time likewise."""
        g = self.cotangent_of(self.tape.graph.inputs + i)
        self._taken("g", self.tape.schedule.cotangent_sources[i], self.cotangents)
        return g

    def _taken(self, what: str, sources: Iterable[int], kept: dict[int, Tensor]) -> None:
        self._memo.clear()
        waiting = self._waiting[what]
        for v in sources:
            waiting[v] -= 1
            if not waiting[v]:
                kept.pop(v, None)

    def _once(self, what: str, v: int, find: Callable[[], Tensor | None]) -> Tensor | None:
        """find(), remembered where another path of the same search may come to it."""
        if len(self.tape.schedule.readers[v]) < 2:
            return find()
        if (what, v) not in self._memo:
            self._memo[what, v] = find()
        return self._memo[what, v]

    def input_of(self, v: int) -> Tensor:
        """h: value v of the forward sweep."""
        if v in self.tape.kept:
            return self.tape.kept[v]
        h = self.xs[v] if v < self.tape.graph.inputs else self._once("h", v, lambda: self._tangent(v))
        assert h is not None
        return h

    def _tangent(self, v: int) -> Tensor:
        i = v - self.tape.graph.inputs
        return self.tape.layers[i].tangent(self.tape.frames[i], *map(self.input_of, self.tape.graph.reads[i]))

    def cotangent_of(self, v: int) -> Tensor | None:
        """g: the cotangent of value v in the attribution sweep, None where none reached it."""
        if v in self.tape.schedule.kept_cotangents:
            return self.cotangents.get(v)
        return self._once("g", v, lambda: self._cotangent(v))

    def _cotangent(self, v: int) -> Tensor | None:
        graph, total = self.tape.graph, self.seeds.get(v)
        for i in sorted(set(self.tape.schedule.readers[v]), reverse=True):
            g = self.cotangent_of(graph.inputs + i)
            if g is None:
                continue
            found = self.tape.layers[i].cotangent(self.tape.frames[i], g)
            for read, c in zip(graph.reads[i], (found,) if isinstance(found, Tensor) else found, strict=True):
                if read == v:
                    total = c if total is None else total + c
        return total
