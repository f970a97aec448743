"""A program: the graph of layers that the sweeps run through, and its binding to a model at each step.

A program holds positions, not modules: every step reads the live modules again, so a replaced parameter, a changed
dropout rate or a swapped layer is always seen. Programs are cached beside the module, by its structure.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from numbers import Number
from types import BuiltinFunctionType, FunctionType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .arguments import map_leaves
from .errors import LayerError, UnsupportedLayerError
from .inputs import autocasts
from .layer import Layer
from .reads import Reads
from .rules.registry import Constant, ModuleRule, Size, Value, rule_of
from .schedule import Graph, Schedule, Traits, schedule
from .sharded import check_gathered, is_of_fsdp

Signature = tuple[Any, ...]

_PLAIN = (bool, int, float, str, tuple, type(None))
_SEEN = (bool, int, float, str, type, FunctionType, BuiltinFunctionType, torch.dtype)
_reads: WeakKeyDictionary[type[nn.Module], Reads] = WeakKeyDictionary()
_LIMIT = 64  # programs of one model
_fixed: dict[type[nn.Module], bool] = {}  # module types of PyTorch, whose forward depends on nothing that changes
_OWN = frozenset(vars(nn.Module()))  # attributes that every module has
SHAPE_READERS: dict[Any, Callable[..., Any]] = {
    "shape": lambda shape: shape,
    "size": lambda shape, dim=None: shape if dim is None else shape[dim],
    "ndim": len,
    "dim": len,
    "ndimension": len,
    "numel": math.prod,
    "nelement": math.prod,
    torch.numel: math.prod,
    len: lambda shape: shape[0],
}
"""What a forward may ask of a tensor without looking at its values, as functions of its shape."""


@dataclass(frozen=True)
class Expression:
    """A call whose result the layers need: of a shape reader, or of a function of sizes, constants and numbers."""

    target: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    method: bool = False  # target names a method of the first argument


@dataclass(frozen=True)
class Attribute:
    """A tensor of the model: the attribute of a module, by the module's position and its qualified name."""

    position: int
    path: str
    name: str


@dataclass(frozen=True)
class Extra:
    """An argument of the model's forward that is held constant."""

    index: int


@dataclass(frozen=True)
class Instruction:
    """A layer in a program. Value i is the network's input i, or the output of instruction i - number of inputs."""

    name: str
    kind: str
    inputs: tuple[int, ...]
    params: tuple[int, ...]  # indices of constants
    layer_type: type[Layer]
    rule: ModuleRule | None = None  # of a module: the layer is built anew at every step ...
    position: int = 0  # ... from the module at this position
    layer: Layer | None = None  # of a function call: the layer is built once
    rebuild: Callable[[Callable[[Size], Any]], Layer] | None = None  # ... or when the sizes that it needs are known


@dataclass(frozen=True)
class Program:
    """Instructions in an order in which they can run, and what else they need."""

    inputs: int
    instructions: tuple[Instruction, ...]
    constants: tuple[Attribute | Extra | Expression, ...]
    sizes: tuple[Expression, ...]
    outputs: tuple[int, ...]
    structure: Any  # what the model returns, with positions in `outputs` for tensors
    schedules: dict[tuple[int, ...], Schedule] = field(default_factory=dict, compare=False)  # by `_state` of layers
    apart: dict[Any, bool] = field(default_factory=dict, compare=False)  # what apart.py has found

    @property
    def graph(self) -> Graph:
        return Graph(self.inputs, tuple(i.inputs for i in self.instructions), self.outputs)

    def schedule(self, layers: Sequence[Layer], params: Sequence[Sequence[Tensor]]) -> Schedule:
        """The schedule for these layers and parameters, made once for each choice of what is trained."""
        state = tuple([_state(p) if p else 0 for p in params])
        if state not in self.schedules:
            traits = tuple(traits_of(layer, p) for layer, p in zip(layers, params, strict=True))
            self.schedules[state] = schedule(self.graph, traits)
        return self.schedules[state]

    def size(self, size: Size, shapes: Sequence[torch.Size]) -> Any:
        """What a size is for values of these shapes."""
        expression = self.sizes[size.index]

        def known(a: Any) -> Any:
            if isinstance(a, Value):
                return shapes[a.index]
            return self.size(a, shapes) if isinstance(a, Size) else a

        args, kwargs = map_leaves(known, (expression.args, expression.kwargs))
        return expression.target(*args, **kwargs)


@dataclass(frozen=True)
class BoundProgram:
    """A program during one step: its layers with the settings and parameters that the modules have now."""

    program: Program
    layers: list[Layer]
    params: list[tuple[Tensor, ...]]
    schedule: Schedule

    def settle(self, i: int, shapes: Sequence[torch.Size]) -> None:
        """Give layer i its settings, known now that all values before it have shapes."""
        instruction = self.program.instructions[i]
        if instruction.rebuild is not None:
            layer = instruction.rebuild(lambda size: self.program.size(size, shapes))
            self.layers[i] = named(layer, instruction.name, instruction.kind)


def named(layer: Layer, name: str, kind: str) -> Layer:
    """The layer, which knows now how messages call it."""
    layer.name, layer.kind = name, kind
    return layer


def occurrences(model: nn.Module) -> list[nn.Module]:
    """The model and all modules below it in order of registration; a shared module as often as it is registered."""
    found = [model]
    for child in model._modules.values():
        if child is not None:
            found += occurrences(child)
    return found


def settings_of(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    """(name, value) of a module's plain attributes, its mode among them."""
    return tuple([(k, v) for k, v in vars(module).items() if isinstance(v, _PLAIN)])


def _frozen(value: Any, depth: int = 4) -> Any:
    """A value that a forward may branch on, hashable; None for what is none."""
    if isinstance(value, _SEEN):
        return value
    if depth == 0 or isinstance(value, (Tensor, nn.Module)):
        return None
    if isinstance(value, (tuple, list)):
        return type(value), tuple([_frozen(v, depth - 1) for v in value])
    if isinstance(value, dict):
        return tuple([(k, _frozen(v, depth - 1)) for k, v in value.items()])
    if isinstance(value, (set, frozenset)):
        return frozenset([_frozen(v, depth - 1) for v in value])
    if isinstance(value, (Enum, Number)):
        return value
    if isinstance(value, partial):
        return _frozen((value.func, value.args, value.keywords), depth)
    kind = type(value)
    if kind is not SimpleNamespace and kind.__module__.split(".")[0] in sys.stdlib_module_names:
        return kind
    return kind, _frozen(getattr(value, "__dict__", {}), depth - 1)


def _reads_of(kind: type[nn.Module]) -> Reads | None:
    """Find what the forward of a module type reads; None if no trace goes through it."""
    if kind not in _fixed:
        _fixed[kind] = kind.__module__.startswith("torch.nn.")
    if _fixed[kind] or rule_of(kind) is not None:
        return None
    if kind not in _reads:
        _reads[kind] = Reads(kind)
    return _reads[kind]


def _traced_settings(module: nn.Module) -> tuple[Any, ...]:
    """What a module that a trace goes through was given: its forward may depend on it."""
    parts = [(k, v is None) for of in (module._modules, module._parameters, module._buffers) for k, v in of.items()]
    return (*parts, *[(k, _frozen(v)) for k, v in vars(module).items() if k not in _OWN])


def signature_of(modules: list[nn.Module]) -> Signature:
    """What a trace depends on: types, modes, settings, what code reads, and which occurrences are one module."""
    reads = {kind: _reads_of(kind) for kind in dict.fromkeys([type(m) for m in modules])}
    traced = [r for r in reads.values() if r is not None]
    names = frozenset().union(*[r.names for r in traced])  # the settings of children that a forward may read

    def settings(module: nn.Module) -> tuple[Any, ...]:
        if reads[type(module)] is not None:
            return _traced_settings(module)
        read = names & vars(module).keys() if names else ()
        return tuple([(k, _frozen(vars(module)[k])) for k in read]) if read else ()

    first: dict[nn.Module, int] = {}
    found = [(first.setdefault(m, i), type(m), m.training, settings(m)) for i, m in enumerate(modules)]
    beside = tuple([_frozen(v) for r in traced for v in r.values()])
    return (autocasts(torch.device("cpu")), autocasts(torch.device("cuda")), beside, *found)


def hooked(model: nn.Module, modules: list[nn.Module]) -> Iterator[UnsupportedLayerError]:
    """An error for every module with hooks that nobody runs; those of FSDP are run around the sweeps."""
    if _has_any_global_hook():
        yield UnsupportedLayerError(
            "", type(model).__name__, "hooks of all modules are registered, which a sweep would skip", "Remove them"
        )
    for module in modules:
        if "forward" in module.__dict__:
            yield UnsupportedLayerError(
                next(name for name, m in model.named_modules() if m is module),
                type(module).__name__,
                "the instance has a forward of its own in place of its class's, which a sweep would skip",
                "Make it a method of a class",
            )
        forward = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if module._backward_hooks or module._backward_pre_hooks or not all(is_of_fsdp(hook) for hook in forward):
            yield UnsupportedLayerError(
                next(name for name, m in model.named_modules() if m is module),
                type(module).__name__,
                "it has forward or backward hooks, which a sweep would skip",
                "Remove them, or use torch.nn.utils.parametrizations for weight norm and spectral norm",
            )


def constants_of(program: Program, read: Callable[[Attribute | Extra], Any]) -> list[Any]:
    """The program's constants, in the live graph of autograd: a layer may use a function of a parameter."""
    values: list[Any] = []

    def known(a: Any) -> Any:
        return values[a.index] if isinstance(a, Constant) else a

    for constant in program.constants:
        if isinstance(constant, Expression):
            args, kwargs = map_leaves(known, (constant.args, constant.kwargs))
            call = getattr(args[0], constant.target) if constant.method else constant.target
            values.append(call(*args[1:], **kwargs) if constant.method else call(*args, **kwargs))
        else:
            values.append(read(constant))
    return values


def _tensor(constant: Any) -> Tensor:
    """A constant as a layer takes it: a number that was read from a buffer becomes a tensor again."""
    if isinstance(constant, Tensor):
        return constant
    return torch.tensor(constant, dtype=torch.float64 if isinstance(constant, float) else None)


def bound(program: Program, modules: list[nn.Module], constants: Sequence[Any]) -> BoundProgram:
    """The program with layers built from the modules as they are, and the given constants."""
    layers: list[Layer] = []
    params: list[tuple[Tensor, ...]] = []
    for instruction in program.instructions:
        if instruction.rule is None:
            assert instruction.layer is not None
            layers.append(instruction.layer)
        else:
            try:
                layer = instruction.rule.build(modules[instruction.position])
            except LayerError as error:
                raise error.at(instruction.name, instruction.kind) from None
            layers.append(named(layer, instruction.name, instruction.kind))
        params.append(tuple([_tensor(constants[i]) for i in instruction.params]) if instruction.params else ())
    check_gathered(program.instructions, params)
    return BoundProgram(program, layers, params, program.schedule(layers, params))


def _state(params: Sequence[Tensor]) -> int:
    """What a layer's traits depend on beside its type: whether a parameter is trained, and whether all are numbers."""
    trainable, single = False, True
    for p in params:
        trainable = trainable or p.requires_grad
        single = single and p.numel() == 1
    return 1 + trainable + 2 * single


def traits_of(layer: Layer, params: Sequence[Tensor]) -> Traits:
    """What the schedule needs to know of a layer."""
    trainable = any(p.requires_grad for p in params)
    one_slope = all(p.numel() == 1 for p in params)
    maskable = layer.maskable and one_slope
    return Traits(layer.fuses, maskable, layer.recomputes, layer.shrinks, layer.joins, trainable)


_programs: WeakKeyDictionary[nn.Module, dict[Signature, Program]] = WeakKeyDictionary()


def program_of(model: nn.Module, modules: list[nn.Module], inputs: int, extras: Sequence[Any]) -> Program:
    """The program of a model as it is now, traced where it has changed."""
    given = tuple([None if isinstance(e, Tensor) else _frozen(e) for e in extras])
    signature = (inputs, given, signature_of(modules))
    cache = _programs.setdefault(model, {})
    if signature not in cache:
        from .trace import trace  # here, since it imports this module

        if len(cache) == _LIMIT:
            del cache[next(iter(cache))]  # the oldest
        cache[signature] = trace(model, modules, inputs, extras)
    return cache[signature]


def bind(model: nn.Module, inputs: int = 1, extras: Sequence[Any] = ()) -> BoundProgram:
    """The program of a model, bound to its modules as they are now.

    Raises NotHomogeneousError or UnsupportedLayerError with the layer's qualified name.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` is a {type(model).__name__}; wanted a torch.nn.Module")
    modules = occurrences(model)
    program = program_of(model, modules, inputs, extras)
    for error in hooked(model, modules):
        raise error

    def read(constant: Attribute | Extra) -> Any:
        if isinstance(constant, Extra):
            return extras[constant.index]
        return getattr(modules[constant.position], constant.name)

    return bound(program, modules, constants_of(program, read))
