"""The rules, one file a family. Importing this package registers them all."""

from . import activation, arithmetic, conv, dropout, elementwise, join, linear, pad, pooling, refusals, shape, upsample
from .registry import reason_not_homogeneous, rule_of

__all__ = [
    "activation",
    "arithmetic",
    "conv",
    "dropout",
    "elementwise",
    "join",
    "linear",
    "pad",
    "pooling",
    "reason_not_homogeneous",
    "refusals",
    "rule_of",
    "shape",
    "upsample",
]
