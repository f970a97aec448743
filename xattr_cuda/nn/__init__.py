"""Layers for X-DNNs that PyTorch lacks. Importing this package teaches the sweeps to carry them."""

from . import rules
from .batch_scale import BatchScale1d, BatchScale2d, BatchScale3d

__all__ = ["BatchScale1d", "BatchScale2d", "BatchScale3d", "rules"]
