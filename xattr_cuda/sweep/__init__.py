"""Sweeps: the attribution of an X-DNN and the gradient of any prior on it, without double backward."""

from .api import Attribution, LossAttribution, Sweep, attribute, attribute_loss
from .errors import LayerError, NotHomogeneousError, UnsupportedLayerError
from .layer import Frame, Layer, Pair, not_homogeneous, unsupported
from .rows import sample_rows
from .rules.registry import Call, Constant, Size, Value, register_rule
from .trace import offenders

__all__ = [
    "Attribution",
    "Call",
    "Constant",
    "Frame",
    "Layer",
    "LayerError",
    "LossAttribution",
    "NotHomogeneousError",
    "Pair",
    "Size",
    "Sweep",
    "UnsupportedLayerError",
    "Value",
    "attribute",
    "attribute_loss",
    "not_homogeneous",
    "offenders",
    "register_rule",
    "sample_rows",
    "unsupported",
]
