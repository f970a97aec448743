"""Curved and clipped activations, which only ReLU can stand in for, and only when asked."""

import torch
from torch import nn
from torch.nn import functional as F

from .edit import Change, Edit, names_of

# Sigmoid and softmax are left out: they gate, or end a network, where a ReLU would not do their work.
_CURVED = (
    nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink,
)  # fmt: skip
_CLIPPED = (nn.Hardtanh, nn.Hardswish, nn.Threshold, nn.Hardshrink, nn.Softshrink)  # ReLU6 is a Hardtanh
_DROPOUTS = (nn.AlphaDropout, nn.FeatureAlphaDropout)  # made for SELU: they shift what they keep
_FUNCTIONS = (
    F.gelu, F.silu, F.elu, F.selu, F.celu, F.mish, F.softplus, F.softsign, F.tanh, torch.tanh, F.tanhshrink,
    F.relu6, F.hardtanh, F.hardswish, F.hardshrink, F.softshrink,
)  # fmt: skip


def replaceable(module: nn.Module | None) -> bool:
    """Whether `to_relu` would replace the module."""
    return isinstance(module, (*_CURVED, *_CLIPPED, *_DROPOUTS))


def to_relu(edit: Edit) -> None:
    """Replace activations by ReLU and AlphaDropout by Dropout.

    This reaches modules, and functions that a module keeps as an attribute; not calls written into a forward.
    """
    for module in list(edit.model.modules()):
        inplace = bool(getattr(module, "inplace", False))
        if isinstance(module, (*_CURVED, *_CLIPPED)):
            edit.replace(module, nn.ReLU(inplace), "ReLU")
        elif isinstance(module, _DROPOUTS):
            edit.replace(module, nn.Dropout(module.p, inplace), "Dropout")
    for module, name in names_of(edit.model).items():
        for key, value in list(vars(module).items()):
            if any(value is f for f in _FUNCTIONS):
                setattr(module, key, F.relu)
                edit.changes.append(Change(f"{name}.{key}".lstrip("."), getattr(value, "__name__", str(value)), "relu"))
