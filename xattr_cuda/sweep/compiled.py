"""The same step inside a graph of torch.compile.

Dynamo traces what surrounds the sweeps (parameters, targets, the criterion) and takes the sweeps themselves as calls
that it does not look into; AOTAutograd then traces through these, autograd function included. Every tensor goes in and
out as an argument or a result, so that each parameter's gradient is known to the graph. What is not a tensor stays in a
`_Record`, found by a number that is a constant of the graph: both calls of a step follow one another whenever the graph
is traced or run.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count, islice
from operator import index
from typing import Any, ParamSpec, TypeVar, cast
from weakref import finalize, ref

import torch
from torch import Tensor, nn

from . import sharded
from .apart import Like, treats_apart
from .engine import Tape
from .inputs import autocasts, to_autocast
from .layer import Frame, to_dtype
from .program import (
    Attribute,
    Expression,
    Extra,
    Program,
    bound,
    constants_of,
    hooked,
    occurrences,
    program_of,
    settings_of,
)
from .run import Optionals, Run
from .through import through_outputs

P = ParamSpec("P")
R = TypeVar("R")

_numbers = count()
_records: dict[int, "_Record"] = {}


def _constant(function: Callable[P, R]) -> Callable[P, R]:
    """Called while a graph is traced; what it returns is a constant of the graph."""
    return cast(Callable[P, R], torch.compiler.assume_constant_result(function))  # type: ignore[no-untyped-call]


def _in_graph(function: Callable[P, R]) -> Callable[P, R]:
    """A call of the graph that Dynamo does not look into."""
    return cast(Callable[P, R], torch.compiler.allow_in_graph(function))  # type: ignore[no-untyped-call]


is_sharded = _constant(sharded.is_sharded)
_REASON = "FSDP inside a model runs its hooks outside of a graph; where you want one graph, shard xa.Sweep(model) alone"
gather = torch.compiler.disable(sharded.gather, reason=_REASON)
release = torch.compiler.disable(sharded.release, reason=_REASON)


class _Record:
    """A step in a compiled graph: its model, its program, and the forward sweep's tape without its tensors."""

    def __init__(self, model: nn.Module, program: Program) -> None:
        self.model, self.program = ref(model), program
        self.tape: Tape | None = None

    def start(self, xs: Sequence[Tensor], constants: Sequence[Any]) -> Run:
        """The step with tensors of the graph."""
        model = self.model()
        assert model is not None
        return Run(bound(self.program, occurrences(model), constants), list(xs), autocast=False)

    def resume(self, run: Run, outputs: Sequence[Tensor], saved: Sequence[Tensor], lowered: bool) -> Run:
        """The step after its forward sweep, whose tape has its tensors back, in the dtype of the run's if lowered."""
        assert self.tape is not None
        stream, old = iter(saved), self.tape
        frames = [
            Frame(params, frame.shapes, frame.out_shape, tuple(islice(stream, len(frame.residual))))
            for params, frame in zip(run.bound.params, old.frames, strict=True)
        ]
        kept = dict(zip(old.kept, stream, strict=True))
        if lowered:
            dtype, kept = run.xs[0].dtype, {}
            frames = [layer.in_dtype(frame, dtype) for layer, frame in zip(old.layers, frames, strict=True)]
        run.tape, run.outputs = replace(old, frames=frames, kept=kept), outputs
        return run


@_constant
def _record(model: nn.Module, inputs: int, extras: tuple[Any, ...]) -> int:
    """The number of a new record. Runs while the graph is traced, with the model itself."""
    number, modules = next(_numbers), occurrences(model)
    for error in hooked(model, modules):
        raise error
    _records[number] = _Record(model, program_of(model, modules, inputs, extras))
    finalize(model, _records.pop, number, None)
    return number


@_constant
def _another(number: int) -> int:
    """The number of a new record of the same step."""
    old, another = _records[number], next(_numbers)
    model = old.model()
    assert model is not None
    _records[another] = _Record(model, old.program)
    finalize(model, _records.pop, another, None)
    return another


@_constant
def _apart(number: int, inputs: tuple[Any, ...], constants: tuple[Any, ...], found_pattern: bool) -> bool:
    """`treats_apart` of the program, by the shapes and dtypes of its tensors."""
    record = _records[number]
    model = record.model()
    assert model is not None
    given = [None if c is None else Like(*c).empty() for c in constants]
    return treats_apart(bound(record.program, occurrences(model), given), [Like(*x) for x in inputs], found_pattern)


_through = _in_graph(through_outputs)


def _known(sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes as numbers that the graph is traced for, where it left them open."""
    return tuple([index(n) for n in sizes])


@_constant
def _sources(number: int) -> tuple[tuple[Any, ...], ...]:
    """Where the program's constants come from: (path, name) of an attribute, (index,) of an argument, () elsewhere."""
    found: list[tuple[Any, ...]] = []
    for constant in _records[number].program.constants:
        if isinstance(constant, Attribute):
            found.append((constant.path, constant.name))
        else:
            found.append((constant.index,) if isinstance(constant, Extra) else ())
    return tuple(found)


@_constant
def _computes_constants(number: int) -> bool:
    return any(isinstance(c, Expression) for c in _records[number].program.constants)


@_constant
def _watched(number: int) -> tuple[tuple[str, str, Any], ...]:
    """(path, attribute, value) of all plain settings of the modules that the program depends on."""
    model = _records[number].model()
    assert model is not None
    return tuple((path, *setting) for path, module in model.named_modules() for setting in settings_of(module))


def _encoded(structure: Any) -> Any:
    """A structure as nested tuples, the only containers that Dynamo takes for constants."""
    if isinstance(structure, dict):
        return "dict", tuple((k, _encoded(part)) for k, part in structure.items())
    if isinstance(structure, (tuple, list)):
        return "list" if isinstance(structure, list) else "tuple", tuple(_encoded(part) for part in structure)
    return "leaf", structure


def _decoded(code: Any) -> Any:
    kind, parts = code
    if kind == "dict":
        return {k: _decoded(part) for k, part in parts}
    if kind == "leaf":
        return parts
    decoded = [_decoded(part) for part in parts]
    return decoded if kind == "list" else tuple(decoded)


@_constant
def _structure(number: int) -> Any:
    return _encoded(_records[number].program.structure)


@_constant
def _output_count(number: int) -> int:
    return len(_records[number].program.outputs)


@_in_graph
def _constants(number: int, *given: Any) -> tuple[Any, ...]:
    """All constants of the program, given its attributes and arguments, with None in the place of others."""
    program = _records[number].program
    places = {id(constant): value for constant, value in zip(program.constants, given, strict=True)}

    return tuple(constants_of(program, lambda constant: places[id(constant)]))


@_in_graph
def _forward(number: int, keep: bool, inputs: int, *tensors: Any) -> tuple[Tensor, ...]:
    """Outputs and then whatever tensors the tape holds."""
    record = _records[number]
    run = record.start(tensors[:inputs], tensors[inputs:])
    outputs = run.forward(keep)
    record.tape = run.tape
    assert run.tape is not None
    return (*outputs, *(t for frame in run.tape.frames for t in frame.residual), *run.tape.kept.values())


def _resumed(number: int, lowered: bool, tensors: Sequence[Any]) -> tuple[Run, list[Any], list[Any], Any]:
    """(run, seeds, cotangents, loss) from the flat arguments of a call in the graph; lowered: as by `Run.lowered`."""
    record, stream = _records[number], iter(tensors)
    program = record.program
    outputs = len(program.outputs)
    xs, constants = list(islice(stream, program.inputs)), list(islice(stream, len(program.constants)))
    seeds, cotangents, loss = list(islice(stream, outputs)), list(islice(stream, outputs)), next(stream)
    found = list(islice(stream, outputs))
    return record.resume(record.start(xs, constants), found, list(stream), lowered), seeds, cotangents, loss


@_in_graph
def _sweep(number: int, lowered: bool, one_output: bool, *tensors: Any) -> tuple[Tensor, ...]:
    """Outputs, attributions and, if there is one, the loss."""
    run, seeds, cotangents, loss = _resumed(number, lowered, tensors)
    outputs, attributions, through = run.sweep(seeds, one_output, cotangents, loss)
    return (*outputs, *attributions, *([] if through is None else [through]))


@_in_graph
def _attributions(number: int, lowered: bool, one_output: bool, *tensors: Any) -> tuple[Tensor, ...]:
    run, seeds, cotangents, _ = _resumed(number, lowered, tensors)
    return tuple(run.attributions(seeds, one_output, cotangents))


class CompiledRun:
    """`Run` for a graph: the same methods, over calls that Dynamo does not look into."""

    perceptron = None

    def __init__(
        self, number: int, xs: list[Tensor], constants: list[Any], autocast: bool, lowered: bool = False
    ) -> None:
        self.number, self.xs, self.constants, self.autocast = number, xs, constants, autocast
        self.way = (number, lowered)
        self.saved: list[Tensor] = []
        self.outputs: list[Tensor] = []

    @staticmethod
    def start(model: nn.Module, xs: Sequence[Tensor], constants: Sequence[Any]) -> "CompiledRun":
        device = xs[0].device
        extras = tuple([None if isinstance(c, Tensor) else c for c in constants])
        number = _record(model, len(xs), extras)
        for path, name, value in _watched(number):
            if getattr(model.get_submodule(path), name) != value:
                raise RuntimeError(f"xattr_cuda: {path}.{name} changed while a graph was traced")
        given: list[Any] = []
        for source in _sources(number):
            if len(source) == 2:
                given.append(getattr(model.get_submodule(source[0]), source[1]))
            else:
                given.append(constants[source[0]] if source else None)
        if _computes_constants(number):
            given = list(_constants(number, *given))
        cast_xs, cast_constants = ([to_autocast(t, device) for t in ts] for ts in (xs, given))
        return CompiledRun(number, cast_xs, cast_constants, autocasts(device))

    @property
    def structure(self) -> Any:
        """What the model returns, with positions in `outputs` for tensors."""
        return _decoded(_structure(self.number))

    def needs_grad(self, *tensors: Any) -> bool:
        given = (*self.xs, *self.constants, *tensors)
        return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in given)

    def treats_samples_apart(self) -> bool:
        """As `Run`'s, found while the graph is traced."""
        return self._apart(False)

    def maps_samples_apart(self) -> bool:
        """As `Run`'s, found while the graph is traced."""
        return self._apart(True)

    def _apart(self, found_pattern: bool) -> bool:
        inputs = tuple([((0, *_known(x.shape[1:])), x.dtype) for x in self.xs])
        constants = [(_known(c.shape), c.dtype) if isinstance(c, Tensor) else None for c in self.constants]
        return _apart(self.number, inputs, tuple(constants), found_pattern)

    def on(self, xs: list[Tensor]) -> "CompiledRun":
        """The same step on other inputs: rows of these."""
        return CompiledRun(_another(self.number), xs, self.constants, self.autocast)

    def plain(self) -> list[Tensor]:
        """The outputs, differentiable, of a step without an attribution."""
        self.forward(keep=self.needs_grad())
        return self.task()

    def task(self) -> list[Tensor]:
        """The outputs, differentiable through the task's chain alone, after a forward sweep that has kept its needs."""
        none = [None] * len(self.outputs)
        return self.sweep(none, False, none, None)[0] if self.needs_grad() else self.outputs

    def through(self, loss: Tensor, outputs: Sequence[Tensor], cotangents: Optionals) -> Tensor:
        """The loss, whose gradient reaches these outputs by their cotangents in it."""
        return _through(loss, tuple(outputs), tuple(cotangents))

    def lowered(self, dtype: torch.dtype) -> "CompiledRun":
        """The step after its forward sweep with all tensors cast, for an own chain alone; its masks are shared."""
        xs = [to_dtype(x, dtype) for x in self.xs]
        constants = [to_dtype(c, dtype) if isinstance(c, Tensor) else c for c in self.constants]
        low = CompiledRun(self.number, xs, constants, self.autocast, lowered=True)
        low.outputs, low.saved = [y.detach().to(dtype) for y in self.outputs], self.saved
        return low

    def forward(self, keep: bool) -> list[Tensor]:
        results = list(_forward(self.number, keep, len(self.xs), *self.xs, *self.constants))
        outputs = _output_count(self.number)
        self.outputs, self.saved = results[:outputs], results[outputs:]
        return self.outputs

    def _arguments(self, seeds: Optionals, cotangents: Optionals, loss: Tensor | None) -> list[Any]:
        return [*self.xs, *self.constants, *seeds, *cotangents, loss, *self.outputs, *self.saved]

    def attributions(self, seeds: Optionals, one_output: bool, cotangents: Optionals) -> list[Tensor]:
        return list(_attributions(*self.way, one_output, *self._arguments(seeds, cotangents, None)))

    def sweep(
        self, seeds: Optionals, one_output: bool, cotangents: Optionals, loss: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        results = list(_sweep(*self.way, one_output, *self._arguments(seeds, cotangents, loss)))
        end, ends = len(self.outputs), len(self.outputs) + len(self.xs)
        return results[:end], results[end:ends], None if loss is None else results[ends]
