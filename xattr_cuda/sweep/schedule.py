"""What a step will do, decided before it starts from the graph of layers, their kinds and what is to be trained.

Fusion is a peephole: a product followed, in the direction of a sweep, by an activation that nothing else feeds or reads
becomes one stage. What is saved for the backward pass is what cannot be recomputed without a product from something
that is there anyway.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Traits(NamedTuple):
    """What the schedule needs to know of a layer."""

    fuses: bool  # can apply a neighbouring activation on its way out
    maskable: bool  # is an activation that can be applied so
    recomputes: bool  # its maps are cheap enough to run again instead of saving their results
    shrinks: bool  # returns fewer elements than it takes
    joins: bool  # lays its inputs side by side
    trainable: bool


class Graph(NamedTuple):
    """Which values the layers read. Value v is input v, or the output of layer v - inputs."""

    inputs: int
    reads: tuple[tuple[int, ...], ...]  # of each layer, in an order in which they can run
    outputs: tuple[int, ...]

    def readers(self) -> list[list[int]]:
        """The layers that read each value; a layer that reads it twice is there twice."""
        found: list[list[int]] = [[] for _ in range(self.inputs + len(self.reads))]
        for i, values in enumerate(self.reads):
            for v in values:
                found[v].append(i)
        return found


class Stage(NamedTuple):
    """A layer, and the neighbouring activation that it applies on its way out."""

    layer: int
    activation: int | None
    dead: tuple[int, ...] = ()  # on the way up: values that no later stage reads
    passes: bool = True  # something beyond wants what the layer makes


@dataclass(frozen=True)
class Schedule:
    """What is trained, what is kept for the backward pass, and the stages of sweeps, planned when first asked for."""

    graph: Graph
    traits: tuple[Traits, ...]
    trainable: tuple[int, ...]
    kept_inputs: frozenset[int]  # values of the forward sweep that two chains save
    kept_cotangents: frozenset[int]  # values whose cotangent is saved from the attribution sweep
    input_sources: tuple[frozenset[int], ...]  # for each layer, the kept values that its input is found from
    cotangent_sources: tuple[frozenset[int], ...]  # likewise for the cotangent at its output
    waiting: dict[str, dict[int, int]]  # how many trainable layers need each of them: "h" inputs, "g" cotangents
    readers: list[list[int]]  # the layers that read each value
    _plans: dict[Any, tuple[Stage, ...]] = field(default_factory=dict, compare=False)

    def stages_down(self, wanted: frozenset[int]) -> tuple[Stage, ...]:
        """The stages of a cotangent sweep that serves the cotangents of the values `wanted`."""
        if wanted not in self._plans:
            self._plans[wanted] = _down(self.graph, self.traits, wanted)
        return self._plans[wanted]

    def stages_up(self, layers: tuple[int, ...], outputs: bool) -> tuple[Stage, ...]:
        """The stages of a tangent sweep that serves what these layers read, and the network's outputs if asked to."""
        key = (layers, outputs)
        if key not in self._plans:
            self._plans[key] = _up(self.graph, self.traits, layers, self.graph.outputs if outputs else ())
        return self._plans[key]


def _ancestors(graph: Graph, wanted: Iterable[int]) -> set[int]:
    """The values from which `wanted` are made, and they themselves."""
    found = set(wanted)
    for i in reversed(range(len(graph.reads))):
        if graph.inputs + i in found:
            found.update(graph.reads[i])
    return found


def _joins(traits: Sequence[Traits], product: int, activation: int) -> bool:
    # The tensor between a product and a trainable activation is needed for the gradient of its slopes.
    return traits[product].fuses and traits[activation].maskable and not traits[activation].trainable


def _up(graph: Graph, traits: Sequence[Traits], layers: Collection[int], outputs: Collection[int]) -> tuple[Stage, ...]:
    """Layers in order, as far as they lead to what `layers` read or to `outputs`."""
    needed, readers = _ancestors(graph, {*outputs, *(v for i in layers for v in graph.reads[i])}), graph.readers()
    stages: list[Stage] = []
    fused: set[int] = set()
    for i in range(len(graph.reads)):
        out = graph.inputs + i
        if i in fused or (out not in needed and i not in layers):
            continue
        activation = None
        if len(readers[out]) == 1 and out not in graph.outputs and out in needed:
            (follower,) = readers[out]
            if _joins(traits, i, follower) and graph.inputs + follower in needed:
                activation = follower
                fused.add(follower)
        stages.append(Stage(i, activation, passes=out in needed))
    return _with_dead(graph, stages)


def _with_dead(graph: Graph, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages, each with the values that no later one reads."""
    last: dict[int, int] = {}
    for place, stage in enumerate(stages):
        for v in graph.reads[stage.layer]:
            last[v] = place
        if stage.passes:
            last[graph.inputs + (stage.layer if stage.activation is None else stage.activation)] = place
    dead: dict[int, list[int]] = {}
    for v, place in last.items():
        if v not in graph.outputs:
            dead.setdefault(place, []).append(v)
    return tuple(stage._replace(dead=tuple(dead.get(place, ()))) for place, stage in enumerate(stages))


def _down(graph: Graph, traits: Sequence[Traits], wanted: Collection[int]) -> tuple[Stage, ...]:
    """Layers in reverse, as far as a wanted value lies below their inputs."""
    below: set[int] = set(wanted)
    for i, values in enumerate(graph.reads):
        if not below.isdisjoint(values):
            below.add(graph.inputs + i)
    readers = graph.readers()
    stages: list[Stage] = []
    fused: set[int] = set()
    for i in reversed(range(len(graph.reads))):
        if i in fused or below.isdisjoint(graph.reads[i]):
            if graph.inputs + i in wanted:  # its cotangent is served, but leads nowhere
                stages.append(Stage(i, None, passes=False))
            continue
        v = graph.reads[i][0]
        activation = v - graph.inputs
        alone = len(graph.reads[i]) == 1 and len(readers[v]) == 1 and v not in graph.outputs and v not in wanted
        joins = alone and activation >= 0 and _joins(traits, i, activation)
        if joins:
            fused.add(activation)
        stages.append(Stage(i, activation if joins else None))
    return tuple(stages)


def _pieces(graph: Graph, traits: Sequence[Traits], v: int) -> set[int]:
    """v, or the values that it is joined from, where it is found from them without a product."""
    below = v
    while below >= graph.inputs and traits[below - graph.inputs].recomputes:
        reads = graph.reads[below - graph.inputs]
        if traits[below - graph.inputs].joins:
            return set().union(*(_pieces(graph, traits, u) for u in reads))
        if len(reads) > 1:
            break
        (below,) = reads
    return {v}


def _kept_inputs(graph: Graph, traits: Sequence[Traits]) -> frozenset[int]:
    """Values that the trainable layers read and that cannot be found again cheaply.

    What is joined from others is kept as these, once: a dense network would keep each of them many times over.
    """
    known, kept = set(range(graph.inputs)), set()
    for i, values in enumerate(graph.reads):
        if traits[i].trainable:
            for v in set(values) - known:
                pieces = _pieces(graph, traits, v) - known
                kept |= pieces
                known |= pieces | {v}
        if traits[i].recomputes and known.issuperset(values):
            known.add(graph.inputs + i)
    return frozenset(kept)


def _kept_cotangents(graph: Graph, traits: Sequence[Traits]) -> frozenset[int]:
    """Values whose cotangent the trainable layers need and that cannot be found again cheaply."""
    readers = graph.readers()
    known, kept = set(), set()
    for i in reversed(range(len(graph.reads))):
        out = graph.inputs + i
        seeded = out in graph.outputs
        above = all(traits[r].recomputes and graph.inputs + r in known for r in readers[out])
        if (seeded and not readers[out]) or (not seeded and above):
            known.add(out)
        if traits[i].trainable and out not in known:
            kept.add(_above_pooling(graph, traits, readers, out))
            known.add(out)
    return frozenset(kept)


def _above_pooling(graph: Graph, traits: Sequence[Traits], readers: Sequence[Sequence[int]], v: int) -> int:
    """v, or a smaller value above it from whose cotangent that of v is found again without a product."""
    smallest = v
    while v not in graph.outputs and len(readers[v]) == 1:
        (i,) = readers[v]
        if not traits[i].recomputes or len(graph.reads[i]) > 1:
            break
        v = graph.inputs + i
        if traits[i].shrinks:
            smallest = v
    return smallest


def _sources(kept: Collection[int], behind: Sequence[Sequence[int]], order: Iterable[int]) -> list[frozenset[int]]:
    """For each value the kept ones that it is found from, where it is found from the values `behind` it."""
    found: list[frozenset[int]] = [frozenset()] * len(behind)
    for v in order:
        found[v] = frozenset([v]) if v in kept else frozenset().union(*(found[u] for u in behind[v]))
    return found


def _sources_of_inputs(graph: Graph, kept: Collection[int]) -> tuple[frozenset[int], ...]:
    """For each layer the kept values that its input is found from."""
    values = range(graph.inputs + len(graph.reads))
    found = _sources(kept, [()] * graph.inputs + list(graph.reads), values)
    return tuple(frozenset().union(*(found[v] for v in reads)) for reads in graph.reads)


def _sources_of_cotangents(graph: Graph, kept: Collection[int]) -> tuple[frozenset[int], ...]:
    """For each layer the values with kept cotangents that the cotangent at its output is found from."""
    readers = graph.readers()
    above = [[graph.inputs + i for i in layers] for layers in readers]
    return tuple(_sources(kept, above, reversed(range(len(above))))[graph.inputs :])


def schedule(graph: Graph, traits: tuple[Traits, ...]) -> Schedule:
    """The schedule of a graph of layers."""
    kept_inputs, kept_cotangents = _kept_inputs(graph, traits), _kept_cotangents(graph, traits)
    trainable = tuple(i for i, t in enumerate(traits) if t.trainable)
    sources = {"h": _sources_of_inputs(graph, kept_inputs), "g": _sources_of_cotangents(graph, kept_cotangents)}
    return Schedule(
        graph=graph,
        traits=traits,
        trainable=trainable,
        kept_inputs=kept_inputs,
        kept_cotangents=kept_cotangents,
        input_sources=sources["h"],
        cotangent_sources=sources["g"],
        waiting={what: dict(Counter(v for i in trainable for v in found[i])) for what, found in sources.items()},
        readers=graph.readers(),
    )
