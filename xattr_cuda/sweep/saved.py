"""What a step saves for its backward pass, and the way from there to what was left to recompute."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch import Tensor

from .engine import Tape

Optionals = Sequence[Tensor | None]


@dataclass
class Restore:
    """Puts the tensors that autograd gives back in their places."""

    tape: Tape  # without a tensor
    counts: list[int]  # of parameters a layer
    kept_counts: list[int]  # of those that were saved
    residual_counts: list[int]
    seeds: list[int]
    kept: list[int]
    cotangents: list[int]

    def __call__(self, tensors: Optionals) -> "Saved":
        stream = iter(tensors)
        graph = self.tape.graph
        xs, g0 = list(islice(stream, graph.inputs)), list(islice(stream, graph.inputs))
        scale = next(stream)
        rest: Iterator[Any] = stream
        seeds = {v: next(rest) for v in self.seeds}
        params = [tuple(islice(rest, count)) for count in self.kept_counts]
        residuals = [tuple(islice(rest, count)) for count in self.residual_counts]
        kept = {v: next(rest) for v in self.kept}
        cotangents = {v: next(rest) for v in self.cotangents}
        tape = Tape(self.tape.program, self.tape.layers, params, self.tape.schedule, self.tape.shapes, residuals, kept)
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
    _waiting: Counter[tuple[str, int]] = field(default_factory=Counter)  # layers that still need a kept tensor

    def __post_init__(self) -> None:
        schedule = self.tape.schedule
        for i in schedule.trainable:
            self._waiting.update(("h", v) for v in schedule.input_sources[i])
            self._waiting.update(("g", v) for v in schedule.cotangent_sources[i])

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
        params = [p[: layer.keeps] for layer, p in zip(tape.layers, tape.params, strict=True)]
        ctx.save_for_backward(
            *xs,
            *g0,
            scale,
            *seeds.values(),
            *(p for tensors in params for p in tensors),
            *(t for residual in tape.residuals for t in residual),
            *tape.kept.values(),
            *cotangents.values(),
        )
        return Restore(
            tape=Tape(tape.program, tape.layers, [], tape.schedule, tape.shapes),
            counts=[len(p) for p in tape.params],
            kept_counts=[len(p) for p in params],
            residual_counts=[len(r) for r in tape.residuals],
            seeds=list(seeds),
            kept=list(tape.kept),
            cotangents=list(cotangents),
        )

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
        for v in sources:
            self._waiting[what, v] -= 1
            if not self._waiting[what, v]:
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
        return self.tape.layers[i].tangent(self.tape.frame(i), *map(self.input_of, self.tape.graph.reads[i]))

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
            found = self.tape.layers[i].cotangent(self.tape.frame(i), g)
            for read, c in zip(graph.reads[i], (found,) if isinstance(found, Tensor) else found, strict=True):
                if read == v:
                    total = c if total is None else total + c
        return total
