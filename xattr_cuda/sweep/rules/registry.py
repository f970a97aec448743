"""The registry: which rule carries a layer type or a function, and why some cannot have one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from ..layer import Layer


@dataclass(frozen=True)
class Value:
    """Stands for a tensor that depends on the network's inputs, in the arguments of a traced call."""

    index: int


@dataclass(frozen=True)
class Constant:
    """Stands for a tensor that does not: a parameter, a buffer, or what was computed from them."""

    index: int


@dataclass(frozen=True)
class Size:
    """Stands for a number, or a tuple of them, that depends on the shapes of the inputs; known when a sweep runs."""

    index: int


class Call(NamedTuple):
    """What the rule of a function makes of a call: the layer, and which arguments are its inputs and parameters."""

    layer: Layer
    inputs: tuple[Value, ...]
    params: tuple[Constant, ...] = ()


class ModuleRule(NamedTuple):
    """A layer type's rule: how to make the layer of a module, and the module's attributes that are its parameters."""

    build: Callable[[Any], Layer]
    tensors: tuple[str, ...] = ()


_MODULES: dict[type[nn.Module], ModuleRule] = {}
_RESOLVED: dict[type[nn.Module], ModuleRule | None] = {}  # what `rule_of` has found
_FUNCTIONS: dict[Any, Callable[..., Call]] = {}  # by function, or by the name of a tensor method
_REFUSED: dict[type[nn.Module], tuple[str, str]] = {}
_REFUSED_FUNCTIONS: dict[Any, tuple[str, str]] = {}


def register_module(*kinds: type[nn.Module], build: Callable[[Any], Layer], tensors: Iterable[str] = ()) -> None:
    """Say how the sweeps pass through modules of these types."""
    for kind in kinds:
        _MODULES[kind] = ModuleRule(build, tuple(tensors))
    _RESOLVED.clear()


def register_function(*targets: Any, build: Callable[..., Call]) -> None:
    """Say how the sweeps pass through calls of these functions, or of these tensor methods (by name).

    build takes the call's own arguments, with `Value`, `Constant` and `Size` in place of what is traced.
    """
    for target in targets:
        _FUNCTIONS[target] = build


def register_rule(target: Any, build: Callable[..., Any], *, tensors: Iterable[str] = ()) -> None:
    """Teach the sweeps a layer of your own, or replace a rule.

    target: a module type, a function of torch, or the name of a tensor method. build: for a module type, a function of
    the module, or a `Layer` subclass that is constructed from it, called at every step; `tensors` names the module's
    parameters and buffers that the layer's maps use, in the order in which they are handed to them. For a function or
    method, a function of the call's own arguments that returns a `Call`; tensors among the arguments arrive as `Value`
    (depends on the network's input) or `Constant` (a parameter), and numbers taken from shapes as `Size`.
    Programs that were traced before do not change. Design section 2 says what the maps of a layer must be.
    """
    if isinstance(tensors, str):
        raise TypeError(f"`tensors` is the string {tensors!r}; wanted a tuple of names")
    if isinstance(target, type) and issubclass(target, nn.Module):
        register_module(target, build=build, tensors=tensors)
    elif (callable(target) and not isinstance(target, nn.Module)) or isinstance(target, str):
        if tuple(tensors):
            raise ValueError("`tensors` names attributes of a module; the rule of a function returns them in its Call")
        register_function(target, build=build)
    else:
        raise TypeError(f"`target` is {target!r}; wanted a module type, a function, or the name of a tensor method")


def refuse(*targets: Any, reason: str, remedy: str) -> None:
    """Say why layer types and functions (or methods, by name) break homogeneity, and what to do about it."""
    for target in targets:
        refused = _REFUSED if isinstance(target, type) and issubclass(target, nn.Module) else _REFUSED_FUNCTIONS
        refused[target] = (reason, remedy)


def rule_of(kind: type[nn.Module]) -> ModuleRule | None:
    """The rule of a layer type. A subclass counts only while it computes what its base does."""
    if kind not in _RESOLVED:
        same = (base for base in kind.__mro__ if base in _MODULES and kind.forward is base.forward)
        _RESOLVED[kind] = _MODULES.get(next(same, kind))
    return _RESOLVED[kind]


def function_rule_of(target: Any) -> Callable[..., Call] | None:
    """The rule of a function, or of a tensor method by its name."""
    return _FUNCTIONS.get(target)


def reason_not_homogeneous(target: Any) -> tuple[str, str] | None:
    """(reason, remedy) of a module, function or method that is known to break homogeneity."""
    if isinstance(target, nn.Module):
        return next((why for kind, why in _REFUSED.items() if isinstance(target, kind)), None)
    return _REFUSED_FUNCTIONS.get(target)
