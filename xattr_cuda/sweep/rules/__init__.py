"""The registry: which rule carries which layer type, and why some types cannot have one."""

from torch import nn

from ..layer import Layer
from .activation import ActivationRule, LeakyReLURule, PReLURule
from .dropout import DropoutRule
from .linear import LinearRule
from .shape import FlattenRule, IdentityRule

__all__ = ["ActivationRule", "LinearRule", "reason_not_homogeneous", "rule_of", "supported"]

_RULES: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: LinearRule,
    nn.ReLU: ActivationRule,
    nn.LeakyReLU: LeakyReLURule,
    nn.PReLU: PReLURule,
    nn.Dropout: DropoutRule,
    nn.Flatten: FlattenRule,
    nn.Identity: IdentityRule,
}

_CURVED = "it is not piecewise linear through the origin"
_NORMALISES = "it divides by statistics of its own input, so its output does not scale with the input"
_USE_RELU = "Use ReLU, LeakyReLU or PReLU"
_NOT_HOMOGENEOUS: dict[tuple[type[nn.Module], ...], tuple[str, str]] = {
    (nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus): (_CURVED, _USE_RELU),
    (nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink): (_CURVED, _USE_RELU),
    (nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Threshold, nn.Hardshrink, nn.Softshrink): (
        "it has a fixed threshold, which does not scale with the input",
        _USE_RELU,
    ),
    (nn.Softmax, nn.LogSoftmax, nn.Softmin): (
        "its output does not scale with its input",
        "Remove it: attribute the logits, and leave the softmax to the loss",
    ),
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d): (
        "it subtracts a mean and adds a bias",
        "Remove it, or fold it into a bias-free weight",
    ),
    (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm): (_NORMALISES, "Remove it"),
    (nn.AlphaDropout, nn.FeatureAlphaDropout): ("it shifts what it keeps", "Use Dropout"),
}


def rule_of(kind: type[nn.Module]) -> type[Layer] | None:
    """The rule of a layer type. A subclass counts only while it computes what its base does."""
    if rule := _RULES.get(kind):
        return rule
    for base, rule in _RULES.items():
        if issubclass(kind, base) and kind.forward is base.forward:
            return rule
    return None


def reason_not_homogeneous(module: nn.Module) -> tuple[str, str] | None:
    """(reason, remedy) of a type that is known to break homogeneity."""
    for kinds, answer in _NOT_HOMOGENEOUS.items():
        if isinstance(module, kinds):
            return answer
    return None


def supported() -> str:
    """The names of the layer types that have a rule, for messages."""
    return ", ".join(kind.__name__ for kind in _RULES)
