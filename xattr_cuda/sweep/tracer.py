"""What torch.fx looks into: everything but modules that have a rule, and those of PyTorch."""

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from .rules.registry import rule_of


class Tracer(fx.Tracer):
    """A tracer whose leaves are the layers of a program."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return rule_of(type(m)) is not None or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return super().call_module(m, m.forward, args, kwargs)  # hooks are no part of the network, and want tensors
