"""xattr_cuda: train neural networks with attribution priors, without double backward.

import xattr_cuda as xa

model = xa.models.xmlp([118, 512, 128, 32, 1])
output, attribution = xa.attribute(model, x)
loss = criterion(output, labels) + strength * xa.priors.gini(attribution)
loss.backward()
"""

from . import attr, bridges, models, nn, ops, priors
from ._version import __version__
from .check import check
from .convert import ConversionError, convert
from .ops import use_backend
from .sweep import (
    Attribution,
    Call,
    Constant,
    Frame,
    Layer,
    LayerError,
    LossAttribution,
    NotHomogeneousError,
    Pair,
    Size,
    Sweep,
    UnsupportedLayerError,
    Value,
    attribute,
    attribute_loss,
    not_homogeneous,
    register_rule,
    sample_rows,
    unsupported,
)

__all__ = [
    "Attribution",
    "Call",
    "Constant",
    "ConversionError",
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
    "__version__",
    "attr",
    "attribute",
    "attribute_loss",
    "bridges",
    "check",
    "convert",
    "models",
    "nn",
    "not_homogeneous",
    "ops",
    "priors",
    "register_rule",
    "sample_rows",
    "unsupported",
    "use_backend",
]
