"""xattr_cuda: train neural networks with attribution priors, without double backward.

import xattr_cuda as xa

model = xa.models.xmlp([118, 512, 128, 32, 1])
output, attribution = xa.attribute(model, x)
loss = criterion(output, labels) + strength * xa.priors.gini(attribution)
loss.backward()
"""

from . import models, ops, priors
from ._version import __version__
from .ops import use_backend
from .sweep import (
    Attribution,
    LayerError,
    LossAttribution,
    NotHomogeneousError,
    Sweep,
    UnsupportedLayerError,
    attribute,
    attribute_loss,
)

__all__ = [
    "Attribution",
    "LayerError",
    "LossAttribution",
    "NotHomogeneousError",
    "Sweep",
    "UnsupportedLayerError",
    "__version__",
    "attribute",
    "attribute_loss",
    "models",
    "ops",
    "priors",
    "use_backend",
]
