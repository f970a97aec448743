"""X-DNNs ready to train: networks without biases whose every layer is nonnegatively homogeneous."""

from .alexnet import xalexnet
from .checkpoint import load_checkpoint
from .fixup_resnet import xfixup_resnet18, xfixup_resnet34, xfixup_resnet50, xfixup_resnet101, xfixup_resnet152
from .mlp import xmlp
from .vgg import xvgg11, xvgg13, xvgg16, xvgg19

__all__ = [
    "load_checkpoint",
    "xalexnet",
    "xfixup_resnet18",
    "xfixup_resnet34",
    "xfixup_resnet50",
    "xfixup_resnet101",
    "xfixup_resnet152",
    "xmlp",
    "xvgg11",
    "xvgg13",
    "xvgg16",
    "xvgg19",
]
