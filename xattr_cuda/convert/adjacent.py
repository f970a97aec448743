"""Which linear or convolutional layer stands directly before a BatchNorm and feeds nothing else."""

import copy
from collections import Counter
from inspect import signature

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from ..sweep.rules.registry import rule_of
from .edit import names_of

Product = nn.Linear | _ConvNd


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return rule_of(type(m)) is not None or super().is_leaf_module(m, module_qualified_name)


def products_before(model: nn.Module) -> dict[str, str]:
    """BatchNorm to the layer whose weight can take its scale, both by qualified name.

    Both run once, one after the other, in evaluation and in training, and the weight belongs to no other layer. The
    result is empty where the forward cannot be traced. A Linear before a BatchNorm1d is taken to give [B, C].
    """
    model = copy.deepcopy(model)  # tracing runs the forward's Python, which may write to buffers
    found: set[tuple[nn.Module, Product]] = set()
    apart: set[nn.Module] = set()  # what runs without its partner in one of the modes
    own = _with_own_weight(model)
    defaults = {p.name: p.default for p in signature(model.forward).parameters.values() if p.default is not p.empty}
    for training in (False, True):
        try:
            graph = _Tracer().trace(model.train(training), concrete_args=defaults or None)
        except Exception:  # whatever the forward raises for a proxy in place of a tensor
            return {}
        pairs, called = _pairs(graph, model, own)
        found |= pairs
        apart |= called - {m for pair in pairs for m in pair}
    partners = Counter(m for pair in found for m in pair)
    apart |= {m for m, count in partners.items() if count > 1}
    names = names_of(model)
    return {names[norm]: names[product] for norm, product in found if not {norm, product} & apart}


def _pairs(
    graph: fx.Graph, model: nn.Module, own: set[nn.Module]
) -> tuple[set[tuple[nn.Module, Product]], set[nn.Module]]:
    """(pairs of a BatchNorm and the layer before it, all modules called) in one trace."""
    module_of = {n: model.get_submodule(str(n.target)) for n in graph.nodes if n.op == "call_module"}
    calls = Counter(module_of.values())
    # A weight that the forward reads by itself has a use beside its layer's call.
    read = {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}
    elsewhere = {model.get_submodule(path) for path in read}
    pairs: set[tuple[nn.Module, Product]] = set()
    for node, norm in module_of.items():
        source = node.args[0] if node.args else None
        if not isinstance(norm, _BatchNorm) or not isinstance(source, fx.Node) or len(source.users) > 1:
            continue
        product = module_of.get(source)
        if (
            isinstance(product, (nn.Linear, _ConvNd))
            and product in own - elsewhere
            and calls[product] == calls[norm] == 1
            and _channels(product) == norm.num_features
        ):
            pairs.add((norm, product))
    return pairs, set(calls)


def _channels(product: Product) -> int:
    return product.out_features if isinstance(product, nn.Linear) else product.out_channels


def _with_own_weight(model: nn.Module) -> set[nn.Module]:
    """Linear and convolutional layers whose weight is a parameter of theirs alone."""
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    return {
        m
        for m in model.modules()
        if isinstance(m, (nn.Linear, _ConvNd)) and not is_parametrized(m) and uses[id(m.weight)] == 1
    }
