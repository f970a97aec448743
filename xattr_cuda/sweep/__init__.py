"""Sweeps: the attribution of an X-DNN and the gradient of any prior on it, without double backward."""

from .api import Attribution, LossAttribution, Sweep, attribute, attribute_loss
from .errors import LayerError, NotHomogeneousError, UnsupportedLayerError

__all__ = [
    "Attribution",
    "LayerError",
    "LossAttribution",
    "NotHomogeneousError",
    "Sweep",
    "UnsupportedLayerError",
    "attribute",
    "attribute_loss",
]
