"""What breaks homogeneity, with the reason and the remedy: layer types, functions and methods."""

import operator
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .registry import refuse


class _Refusal(NamedTuple):
    """Names of layer types, names of functions (wherever torch has them, in place or not), and what to say."""

    modules: str
    functions: str
    reason: str
    remedy: str


_RECTIFY = "Use ReLU, LeakyReLU or PReLU"
_USE_RELU = f'{_RECTIFY}; for modules, xa.convert(model, activations="relu") does it'
_DOES_NOT_SCALE = "its output does not scale with its input"
_REFUSALS = (
    _Refusal(
        "GELU SiLU ELU SELU CELU Mish Softplus Tanh Sigmoid LogSigmoid Softsign Tanhshrink",
        "gelu silu elu selu celu mish softplus tanh sigmoid logsigmoid softsign tanhshrink logit expit",
        "it is not piecewise linear through the origin",
        _USE_RELU,
    ),
    _Refusal(
        "Hardtanh ReLU6 Hardswish Hardsigmoid Threshold Hardshrink Softshrink",
        "relu6 hardswish hardsigmoid threshold hardshrink softshrink",
        "it has a fixed threshold, which does not scale with the input",
        _USE_RELU,
    ),
    _Refusal(
        "Softmax Softmax2d LogSoftmax Softmin",
        "softmax log_softmax softmin gumbel_softmax logsumexp",
        _DOES_NOT_SCALE,
        "Remove it: attribute the logits, and leave the softmax to the loss",
    ),
    _Refusal(
        "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d",
        "batch_norm instance_norm",
        "it subtracts a mean and adds a bias",
        "Remove it, or fold it into a bias-free weight, as xa.convert does with BatchNorm",
    ),
    _Refusal(
        "LayerNorm GroupNorm RMSNorm LocalResponseNorm",
        "layer_norm group_norm rms_norm local_response_norm normalize cosine_similarity",
        "it divides by statistics of its own input, so its output does not scale with the input",
        "Remove it",
    ),
    _Refusal(
        "AlphaDropout FeatureAlphaDropout",
        "alpha_dropout feature_alpha_dropout",
        "it shifts what it keeps",
        "Use Dropout",
    ),
    _Refusal(
        "",
        "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc",
        "it is curved, so its output does not scale with its input",
        f"{_RECTIFY} instead, or leave it to the loss",
    ),
    _Refusal(
        "",
        "pow float_power square sqrt rsqrt reciprocal prod cumprod var",
        "it is a power of its input other than the first, or a product of its elements",
        "Remove it, or leave it to the loss",
    ),
    _Refusal(
        "",
        "sign sgn round floor ceil trunc frac floor_divide remainder fmod heaviside",
        _DOES_NOT_SCALE,
        "Remove it",
    ),
)


def _functions(names: Iterable[str]) -> Iterator[Any]:
    """All that goes by these names: functions of torch, methods by name, and their forms in place."""
    for name in names:
        for form in (name, f"{name}_"):
            yield from (getattr(place, form) for place in (torch, F, torch.special) if hasattr(place, form))
            if hasattr(Tensor, form):
                yield form


for _modules, _names, _reason, _remedy in _REFUSALS:
    refuse(*(getattr(nn, kind) for kind in _modules.split()), reason=_reason, remedy=_remedy)
    refuse(*_functions(_names.split()), reason=_reason, remedy=_remedy)
refuse(
    "detach",
    "data",
    torch.detach,
    reason="it carries no gradient, so the attribution of what is made of it would not be complete",
    remedy="Leave it out, or compute it outside of the network and give it by constants=",
)
refuse(
    operator.pow,
    operator.ipow,
    operator.floordiv,
    operator.mod,
    reason="it is a power or a remainder, which does not scale with the input",
    remedy="Remove it, or leave it to the loss",
)
