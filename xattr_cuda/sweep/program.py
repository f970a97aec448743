"""Tracing: from a module to its program, the chain of layers that the sweeps run through.

A program holds positions, not modules: every step reads the live modules again, so a replaced parameter, a changed
dropout rate or a swapped layer is always seen. Programs are cached beside the module, by its structure.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, fx, nn

from .errors import LayerError, NotHomogeneousError, UnsupportedLayerError
from .layer import Layer
from .rules import reason_not_homogeneous, rule_of, supported
from .schedule import Schedule, schedule

Signature = tuple[tuple[int, type[nn.Module], bool], ...]


@dataclass(frozen=True)
class Program:
    """A chain of layers: for each its position in `occurrences(model)`, its qualified name and its rule."""

    layers: tuple[tuple[int, str, type[Layer]], ...]


@dataclass(frozen=True)
class BoundProgram:
    """A program during one step: its layers with the settings and parameters that the modules have now."""

    layers: list[Layer]
    params: list[tuple[Tensor, ...]]
    schedule: Schedule


def occurrences(model: nn.Module) -> list[nn.Module]:
    """The model and all modules below it in order of registration; a shared module as often as it is registered."""
    found = [model]
    for child in model._modules.values():
        if child is not None:
            found += occurrences(child)
    return found


def _signature(modules: list[nn.Module]) -> Signature:
    """What a trace depends on: types, modes, and which occurrences are one module."""
    first: dict[nn.Module, int] = {}
    return tuple([(first.setdefault(m, i), type(m), m.training) for i, m in enumerate(modules)])


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return rule_of(type(m)) is not None or super().is_leaf_module(m, module_qualified_name)


def _refuse(name: str, module: nn.Module) -> LayerError:
    kind = type(module).__name__
    if answer := reason_not_homogeneous(module):
        return NotHomogeneousError(name, kind, *answer)
    return UnsupportedLayerError(
        name, kind, "no rule tells the sweeps how to pass through it", f"Supported are {supported()}"
    )


def _chain(graph: fx.Graph, model: nn.Module) -> list[str]:
    """Qualified names of the modules between the graph's output and its first input, in order."""
    kind = type(model).__name__
    node: Any = next(n for n in reversed(graph.nodes) if n.op == "output").args[0]
    names: list[str] = []
    while isinstance(node, fx.Node) and node.op == "call_module" and len(node.all_input_nodes) == 1:
        names.append(str(node.target))
        node = node.all_input_nodes[0]
    if not isinstance(node, fx.Node):
        raise UnsupportedLayerError("", kind, "its forward does not return one tensor", "Return the output alone")
    if node.op != "placeholder":
        where = f"{node.op} {getattr(node.target, '__name__', node.target)!s}"
        raise UnsupportedLayerError(
            "",
            kind,
            f"its forward is not a chain of modules (met {where})",
            f"Write it as a chain of {supported()}",
        )
    return names[::-1]


def _trace(model: nn.Module, modules: list[nn.Module]) -> Program:
    if rule := rule_of(type(model)):
        return Program(((0, type(model).__name__, rule),))
    if answer := reason_not_homogeneous(model):
        raise NotHomogeneousError("", type(model).__name__, *answer)
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        raise UnsupportedLayerError(
            "",
            type(model).__name__,
            f"its forward cannot be traced: {error}",
            "Give xattr_cuda the bare module, not a wrapper (DistributedDataParallel and torch.compile go around "
            "xa.Sweep), and keep its forward free of branches on data",
        ) from error
    position = {id(m): i for i, m in reversed(list(enumerate(modules)))}
    layers = []
    for name in _chain(graph, model):
        module = model.get_submodule(name)
        rule = rule_of(type(module))
        if rule is None:
            raise _refuse(name, module)
        layers.append((position[id(module)], name, rule))
    return Program(tuple(layers))


_programs: WeakKeyDictionary[nn.Module, dict[Signature, Program]] = WeakKeyDictionary()


def _check_hooks(model: nn.Module, modules: list[nn.Module]) -> None:
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            raise UnsupportedLayerError(
                next(name for name, m in model.named_modules() if m is module),
                type(module).__name__,
                "it has forward or backward hooks, which a sweep would skip",
                "Remove them, or use torch.nn.utils.parametrizations for weight norm and spectral norm",
            )


def bind(model: nn.Module) -> BoundProgram:
    """The program of a model, bound to its modules as they are now.

    Raises NotHomogeneousError or UnsupportedLayerError with the layer's qualified name. A forward that depends on
    plain attributes of its module is traced once for each structure and mode: such an attribute must not change.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` is a {type(model).__name__}; wanted a torch.nn.Module")
    modules = occurrences(model)
    signature = _signature(modules)
    cache = _programs.setdefault(model, {})
    if signature not in cache:
        cache[signature] = _trace(model, modules)
    program = cache[signature]
    _check_hooks(model, modules)
    layers, params, traits = [], [], []
    for position, name, rule in program.layers:
        module = modules[position]
        layer = rule(name, module)
        tensors = layer.parameters(module)
        layers.append(layer)
        params.append(tensors)
        traits.append(layer.traits(tensors))
    return BoundProgram(layers, params, schedule(tuple(traits)))
