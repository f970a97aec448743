"""What is timed: a network, a batch and the step that trains it, by name."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import xattr_cuda as xa

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from cases import NETWORKS, Network  # the shapes that the tests use too


class Workload(NamedTuple):
    """A network with `classes` outputs, built at a dtype, and its batch."""

    title: str
    build: Callable[[torch.dtype], nn.Module]
    sample: tuple[int, ...]
    batch: int
    classes: int
    rounds: int
    channels_last: bool = False

    def draw(self, dtype: torch.dtype, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
        """(model, inputs, labels), drawn from PyTorch's generator."""
        model = self.build(dtype)
        for parameter in model.parameters():
            if not parameter.any():  # Fixup starts some at zero, where every product would be one of zeros
                nn.init.normal_(parameter, std=0.01)
        x = torch.randn(batch, *self.sample, dtype=dtype)
        if self.channels_last:
            model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        return model, x, torch.randint(max(self.classes, 2), (batch,))


def _perceptron(network: Network, rounds: int) -> Workload:
    widths = network.widths
    title = "-".join(map(str, widths))
    return Workload(
        title,
        lambda dtype: xa.models.xmlp(widths, dtype=dtype),
        (widths[0],),
        network.batch,
        widths[-1],
        rounds,
    )


def small_vgg(dtype: torch.dtype) -> nn.Module:
    """Six convolutions of 64 to 256 channels and a linear layer, for images of 32x32."""
    layers: list[nn.Module] = []
    fan_in = 3
    for width in (64, 128, 256):
        for _ in range(2):
            layers += [nn.Conv2d(fan_in, width, 3, padding=1, bias=False, dtype=dtype), nn.ReLU()]
            fan_in = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256 * 16, 10, bias=False, dtype=dtype))


IMAGE = (3, 64, 64)
WORKLOADS = {
    **{
        name: _perceptron(NETWORKS[name], rounds)
        for name, rounds in {"paper": 400, "paper-512": 200, "narrow": 40, "image-1": 8, "image-10": 8}.items()
    },
    "small-vgg": Workload("VGG of 6 convolutions, 32x32, channels last", small_vgg, (3, 32, 32), 64, 10, 8, True),
    "xvgg16": Workload(
        "X-VGG16, 64x64", lambda dtype: xa.models.xvgg16(image_size=64, dropout=0.0, dtype=dtype), IMAGE, 8, 1000, 8
    ),
    "xresnet18": Workload(
        "X-ResNet-18, 64x64", lambda dtype: xa.models.xfixup_resnet18(dtype=dtype), IMAGE, 8, 1000, 15
    ),
}
PERCEPTRONS = ("paper", "paper-512", "narrow")
CONVOLUTIONAL = ("xvgg16", "xresnet18")
