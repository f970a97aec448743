"""Tracing: from a module to its program, through torch.fx.

fx rather than torch.export: it needs no example, keeps whole modules (so that a step reads their live settings and
parameters), leaves the batch size open, and takes milliseconds.
"""

import inspect
import operator
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, cast

import torch
from torch import fx, nn

from .arguments import leaves, map_leaves
from .errors import LayerError, NotHomogeneousError, UnsupportedLayerError
from .in_place import called, redirect
from .layer import Layer, unsupported
from .peephole import rectify_after_pooling
from .program import (
    SHAPE_READERS,
    Attribute,
    Expression,
    Extra,
    Instruction,
    Program,
    hooked,
    named,
    occurrences,
)
from .rules.registry import (
    Call,
    Constant,
    ModuleRule,
    Size,
    Value,
    function_rule_of,
    reason_not_homogeneous,
    rule_of,
)
from .rules.shape import piece
from .tracer import CONSTANT, Attributes, Tracer
from .wrappers import wrapped

_PIECES = {"chunk", "split", "tensor_split", "unbind", torch.chunk, torch.split, torch.tensor_split, torch.unbind}


_UNKNOWN = Value(-1)  # what follows an error


class _Pieces:
    """Stands for the tuple that chunk and its relatives return, until one of its tensors is taken."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node


def _refusal(target: Any, name: str, kind: str) -> LayerError:
    if answer := reason_not_homogeneous(target):
        return NotHomogeneousError(name, kind, *answer)
    remedy = 'Write one with xa.register_rule, or take the model with engine="autograd", by double backward'
    return UnsupportedLayerError(name, kind, "no rule tells the sweeps how to pass through it", remedy)


def _where(node: fx.Node) -> str:
    """The qualified name of a node: that of its module, or of the module whose forward makes the call."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {"": None}
    return f"{list(stack)[-1]}.{node.name}".lstrip(".")


def _check_tensors(module: nn.Module, rule: ModuleRule) -> None:
    """A rule must know its module's parameters, or they would get no gradient without a word."""
    for name in rule.tensors:
        if not hasattr(module, name):
            raise unsupported(f"its rule names the tensor {name!r}, which it does not have", "See register_rule")
    for name, _ in module.named_parameters():
        if name.split(".")[0] not in (*rule.tensors, "parametrizations"):
            raise unsupported(
                f"its rule does not name its parameter {name!r}, which would get no gradient",
                "Name all parameters in the `tensors` of register_rule",
            )


class _Converter:
    """Turns the nodes of an fx graph into a program, in order."""

    def __init__(
        self,
        model: nn.Module,
        modules: list[nn.Module],
        graph: fx.Graph,
        errors: list[LayerError] | None,
    ) -> None:
        self.model, self.graph, self.errors = model, graph, errors
        self.position = {id(m): i for i, m in reversed(list(enumerate(modules)))}
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.written = redirect(graph, model)
        self.found: dict[fx.Node, Any] = {}
        self.storage: dict[int, int] = {}  # of each value: the first value that it may share memory with
        self.inputs = 0
        self.instructions: list[Instruction] = []
        self.constants: list[Attribute | Extra | Expression] = []
        self.sizes: list[Expression] = []

    def run(self, inputs: int) -> Program:
        for node in self.graph.nodes:
            if node.op == "placeholder" and self.inputs < inputs:
                self.found[node] = Value(self.inputs)
                self.storage[self.inputs] = self.inputs
                self.inputs += 1
        (output,) = (node for node in self.graph.nodes if node.op == "output")
        needed = self._needed(output)
        for node in self.written.keys() - needed:
            raise UnsupportedLayerError(
                _where(node),
                called(node),
                "it writes in place, and the network reads what it has written by another name or not at all",
                "Use the form that is not in place, and its result",
            )
        for node in self.graph.nodes:
            if node in needed and node not in self.found and node is not output:
                self.found[node] = self._convert_or_note(node)
        returned = self._known(output.args[0])
        flat, places = leaves(returned), count()
        kind = type(self.model).__name__
        if not flat or not all(isinstance(v, Value) for v in flat):
            raise UnsupportedLayerError(
                "",
                kind,
                "its forward returns something else than tensors that depend on the inputs",
                "Return a tensor, or a tuple, list or dictionary of tensors",
            )
        return Program(
            inputs=self.inputs,
            instructions=tuple(self.instructions),
            constants=tuple(self.constants),
            sizes=tuple(self.sizes),
            outputs=tuple(v.index for v in flat),
            structure=map_leaves(lambda _: next(places), returned),
        )

    def _needed(self, output: fx.Node) -> set[fx.Node]:
        needed, stack = {output}, [output]
        while stack:
            new = [n for n in stack.pop().all_input_nodes if n not in needed]
            needed.update(new)
            stack += new
        return needed

    def _known(self, args: Any) -> Any:
        """Arguments with what the nodes among them have become."""
        return map_leaves(lambda a: self.found[a] if isinstance(a, fx.Node) else a, args)

    def _convert_or_note(self, node: fx.Node) -> Any:
        """What the node becomes; where errors are collected, something to go on with after one."""
        try:
            converted = self._convert(node)
            self._check_written(node, converted)
        except LayerError as error:
            if self.errors is None:
                raise
            self.errors.append(error)
            return _UNKNOWN
        return converted

    def _convert(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._constant(Extra(int(str(node.target).removeprefix(CONSTANT))))
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            if name.startswith("_tensor_constant"):
                raise UnsupportedLayerError(
                    _where(node),
                    "tensor",
                    "its forward uses a tensor that is neither an attribute nor made of any, so that it would stay as "
                    "it was at the trace",
                    "Register it as a buffer",
                )
            return self._constant(Attribute(self.position[id(self.model.get_submodule(path))], path, name))
        args, kwargs = self._known((node.args, node.kwargs))
        given = leaves((args, kwargs))
        if any(isinstance(a, (Value, _Pieces)) for a in given):
            return self._on_value(node, args, kwargs)
        if any(isinstance(a, Size) for a in given) and node not in self.written:
            return self._size(Expression(self._function(node), args, kwargs))
        if node.op == "call_module" or node in self.written:
            raise UnsupportedLayerError(
                _where(node),
                called(node),
                "it does not depend on the network's input, or writes to a parameter or buffer",
                "Compute it outside of the network's forward",
            )
        return self._constant(Expression(node.target, args, kwargs, method=node.op == "call_method"))

    def _function(self, node: fx.Node) -> Callable[..., Any]:
        """A function of sizes: tuples of numbers have no method that a size needs."""
        if node.op == "call_method":
            return SHAPE_READERS.get(node.target, operator.methodcaller(str(node.target)))
        return cast(Callable[..., Any], node.target)

    def _on_value(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        first = args[0] if args else None
        if node.op == "call_module":
            return self._module(node, args, kwargs)
        if isinstance(first, _Pieces):
            return self._piece(node, first.node, args)
        target = node.target
        if target is getattr:
            target, args = args[1], args[:1]
        if target in SHAPE_READERS and isinstance(first, Value):
            return self._size(Expression(SHAPE_READERS[target], args, kwargs))
        if target in _PIECES:
            return _Pieces(node)
        build = function_rule_of(target)
        if build is None:
            raise _refusal(target, _where(node), str(target) if isinstance(target, str) else called(node))
        return self._call(node, build, args, kwargs)

    def _constant(self, constant: Attribute | Extra | Expression) -> Constant:
        if isinstance(constant, Attribute) and constant in self.constants:
            return Constant(self.constants.index(constant))
        self.constants.append(constant)
        return Constant(len(self.constants) - 1)

    def _size(self, expression: Expression) -> Size:
        self.sizes.append(expression)
        return Size(len(self.sizes) - 1)

    def _value(self, instruction: Instruction, layer: Layer) -> Value:
        self.instructions.append(instruction)
        value = self.inputs + len(self.instructions) - 1
        shared = instruction.inputs[0] if layer.aliases and instruction.inputs else value
        self.storage[value] = self.storage.get(shared, value)
        return Value(value)

    def _module(self, node: fx.Node, args: Any, kwargs: Any) -> Value:
        name, module = str(node.target), self.model.get_submodule(str(node.target))
        rule = rule_of(type(module))
        if rule is None:
            raise _refusal(module, name, type(module).__name__)
        if kwargs or not all(isinstance(a, Value) for a in args):
            raise UnsupportedLayerError(
                name, type(module).__name__, "it is called with more than tensors", "Pass settings to its constructor"
            )
        return self.module(name, module, rule, tuple(a.index for a in args))

    def module(self, name: str, module: nn.Module, rule: ModuleRule, inputs: tuple[int, ...]) -> Value:
        """The output of a module that has a rule."""
        kind, position = type(module).__name__, self.position[id(module)]
        path = "" if module is self.model else name
        try:
            layer = rule.build(module)
            _check_tensors(module, rule)
        except LayerError as error:
            raise error.at(name, kind) from None
        if not isinstance(layer, Layer):
            raise TypeError(f"the rule of layer {name!r} ({kind}) built a {type(layer).__name__}; wanted a Layer")
        params = tuple(self._constant(Attribute(position, path, tensor)).index for tensor in rule.tensors)
        return self._value(Instruction(name, kind, inputs, params, type(layer), rule=rule, position=position), layer)

    def _piece(self, node: fx.Node, source: fx.Node, args: Any) -> Value:
        if node.target is not operator.getitem or not isinstance(args[1], int):
            raise UnsupportedLayerError(
                _where(source),
                called(source),
                "its pieces are not taken one by one",
                "Unpack them: a, b = x.chunk(2, dim=1)",
            )
        name = source.target if isinstance(source.target, str) else called(source)
        given_args, given_kwargs = self._known((source.args, source.kwargs))
        return self._call(source, lambda *a, **k: piece(name, a, k, args[1]), given_args, given_kwargs)

    def _call(self, node: fx.Node, build: Callable[..., Any], args: Any, kwargs: Any) -> Value:
        name, kind = _where(node), called(node)
        try:
            call = build(*args, **kwargs)
        except LayerError as error:
            raise error.at(name, kind) from None
        except TypeError as error:
            reason = f"its rule does not take these arguments ({error})"
            raise UnsupportedLayerError(name, kind, reason, "Leave out what the rule does not know") from error
        if not isinstance(call, Call):
            raise TypeError(f"the rule of layer {name!r} ({kind}) returned a {type(call).__name__}; wanted a Call")
        sized = any(isinstance(a, Size) for a in leaves((args, kwargs)))

        def rebuild(size: Callable[[Size], Any]) -> Layer:
            known_args, known_kwargs = map_leaves(lambda a: size(a) if isinstance(a, Size) else a, (args, kwargs))
            return cast(Layer, build(*known_args, **known_kwargs).layer)

        inputs, params = tuple(v.index for v in call.inputs), tuple(c.index for c in call.params)
        layer = named(call.layer, name, kind)
        made = Instruction(name, kind, inputs, params, type(layer), layer=layer, rebuild=rebuild if sized else None)
        return self._value(made, layer)

    def _check_written(self, node: fx.Node, after: Any) -> None:
        """Nobody may read a tensor that `node` has written to through another name of its memory."""
        target = self.written.get(node)
        before = self.found.get(target) if target else None
        if not isinstance(before, Value) or not isinstance(after, Value) or before is _UNKNOWN:
            return
        self.storage[after.index] = self.storage[before.index]
        for other, value in self.found.items():
            known = isinstance(value, Value) and value is not _UNKNOWN
            same = known and self.storage[value.index] == self.storage[before.index]
            if same and other not in (target, node) and any(self.order[u] > self.order[node] for u in other.users):
                raise UnsupportedLayerError(
                    _where(node),
                    called(node),
                    "it writes in place to a tensor that is read again through another view of it",
                    "Use the form that is not in place",
                )


def _check_arguments(model: nn.Module, inputs: int, extras: Sequence[Any]) -> None:
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if all(p.kind != p.VAR_POSITIONAL for p in parameters) and len(positional) < inputs + len(extras):
        raise ValueError(
            f"{type(model).__name__}.forward takes {len(positional)} arguments, got {inputs} inputs"
            + (f" and {len(extras)} constants" if extras else "")
        )


def _check_unchanged(model: nn.Module, attributes: Attributes) -> None:
    for module, attribute in attributes.changed():
        name = next(name for name, m in model.named_modules() if m is module)
        raise UnsupportedLayerError(
            name,
            type(module).__name__,
            f"its forward changes its attribute {attribute!r}, which a sweep would not do",
            'Change it outside of the forward, or use engine="autograd"',
        )


def _single(model: nn.Module, modules: list[nn.Module], rule: ModuleRule, inputs: int) -> Program:
    """The program of a model that is one layer."""
    converter = _Converter(model, modules, fx.Graph(), None)
    converter.inputs = inputs
    converter.storage = {i: i for i in range(inputs)}
    value = converter.module(type(model).__name__, model, rule, tuple(range(inputs)))
    return Program(inputs, tuple(converter.instructions), tuple(converter.constants), (), (value.index,), structure=0)


def trace(
    model: nn.Module,
    modules: list[nn.Module],
    inputs: int,
    extras: Sequence[Any] = (),
    errors: list[LayerError] | None = None,
) -> Program:
    """The program of a model for a number of inputs and of constant arguments.

    With a list of errors it collects there what it would raise about a layer; the program is of no use then.
    """
    kind = type(model).__name__
    for error in wrapped(model):
        raise error
    if rule := rule_of(type(model)):
        return _single(model, modules, rule, inputs)
    if answer := reason_not_homogeneous(model):
        raise NotHomogeneousError("", kind, *answer)
    _check_arguments(model, inputs, extras)
    attributes = Attributes(modules)
    try:
        with torch.enable_grad():  # as double backward runs it
            graph = Tracer(inputs, extras).traced(model)
        _check_unchanged(model, attributes)
    except LayerError as error:
        raise error.at("", kind) from None
    except Exception as error:
        raise UnsupportedLayerError(
            "",
            kind,
            f"its forward cannot be traced: {error}",
            "Give xattr_cuda the bare module, not a wrapper (DistributedDataParallel and torch.compile go around "
            'xa.Sweep), and keep its forward free of branches on data; or use engine="autograd", by double backward',
        ) from error
    finally:
        attributes.restore()
    program = _Converter(model, modules, graph, errors).run(inputs)
    return program if errors else rectify_after_pooling(program)


def offenders(model: nn.Module, inputs: int = 1) -> list[LayerError]:
    """Every layer through which the sweeps cannot pass, as the error that it would raise; empty for an X-DNN.

    inputs: how many of the arguments of the model's forward are attributed.
    """
    modules = occurrences(model)
    errors: list[LayerError] = list(hooked(model, modules))
    try:
        trace(model, modules, inputs, errors=errors)
    except LayerError as error:
        errors.append(error)
    return errors
