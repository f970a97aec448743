"""X-DNNs ready to train: networks without biases whose every layer is nonnegatively homogeneous."""

from .mlp import xmlp

__all__ = ["xmlp"]
