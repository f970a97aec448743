"""Calls that write to their argument, in a traced graph: whoever reads the tensor afterwards reads their result."""

import inspect
import operator

from torch import fx, nn

_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem}


def called(node: fx.Node) -> str:
    """What a node calls, in a word."""
    return str(getattr(node.target, "__name__", node.target))


def _is_in_place(node: fx.Node, model: nn.Module) -> bool:
    """Whether a node writes to its first argument."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    name = called(node)
    if node.op == "call_method" or node.target not in _IN_PLACE:
        writes = name.endswith("_") and not name.endswith("__")
        if writes or node.op == "call_method":
            return writes
    if node.target in _IN_PLACE:
        return True
    if not inspect.isfunction(node.target) or "inplace" not in inspect.signature(node.target).parameters:
        return False
    given = inspect.signature(node.target).bind_partial(*node.args, **node.kwargs)
    return bool(given.arguments.get("inplace", False))


def redirect(graph: fx.Graph, model: nn.Module) -> dict[fx.Node, fx.Node]:
    """Let whoever reads a tensor after a call has written to it read the call's result. Returns {call: tensor}."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    written: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "call_function", "call_method") and _is_in_place(node, model):
            target = node.args[0] if node.args else None
            if isinstance(target, fx.Node):
                written[node] = target
                for user in list(target.users):
                    if order[user] > order[node]:
                        user.replace_input_with(target, node)
    return written
