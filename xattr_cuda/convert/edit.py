"""A conversion under way: the copy that is edited, what was changed, and what cannot be."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from ..sweep import LayerError, UnsupportedLayerError


class Change(NamedTuple):
    """One layer that was changed."""

    layer: str  # its qualified name, the first of several
    before: str
    after: str


@dataclass
class Edit:
    """The copy and the records of its changes."""

    model: nn.Module
    changes: list[Change] = field(default_factory=list)
    refused: list[LayerError] = field(default_factory=list)

    def replace(self, old: nn.Module, new: nn.Module, after: str) -> None:
        """Put a module in the place of another wherever that is registered, in the same mode, and record it."""
        name, kind = names_of(self.model)[old], type(old).__name__
        if has_hooks(old):
            self.refused.append(
                UnsupportedLayerError(name, kind, "it must be replaced, and its hooks with it", "Remove the hooks")
            )
            return
        self.changes.append(Change(name, kind, after))
        new.train(old.training)
        if old is self.model:
            self.model = new
        for parent in list(self.model.modules()):
            for key, child in list(parent._modules.items()):
                if child is old:
                    parent._modules[key] = new


def names_of(model: nn.Module) -> dict[nn.Module, str]:
    """Every module's qualified name, the first of several."""
    return {module: name for name, module in model.named_modules()}


def has_hooks(module: nn.Module) -> bool:
    """Whether something listens to a module's passes."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
