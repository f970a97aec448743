"""What is timed, by name: a network and its batch, or the length of a vector whose Gini coefficient is taken."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..models import xfixup_resnet18, xmlp, xvgg16
from ..training.errors import UserError


class Network(NamedTuple):
    """A perceptron and the batch that it is timed on."""

    widths: list[int]
    batch: int


PAPER = Network([118, 512, 128, 32, 1], batch=100)
NETWORKS = {
    "paper": PAPER,
    "paper-512": PAPER._replace(batch=512),
    "survival": Network([37, 300, 200, 100, 1], batch=257),
    "narrow": Network([64, 64, 64, 64, 1], batch=8192),
    "deep": Network([*[256] * 6, 1], batch=4096),
    "image-1": Network([784, 1024, 1024, 1024, 1], batch=2048),
    "image-10": Network([784, 1024, 1024, 1024, 10], batch=2048),
}


@dataclass(frozen=True)
class Case:
    """A network with `classes` outputs, built at a dtype, and the batch of samples of shape `sample` that it trains on.

    rounds: how often each contestant is timed unless the user says otherwise. widths: of a perceptron, else None.
    """

    name: str
    title: str
    build: Callable[[torch.dtype], nn.Module]
    sample: tuple[int, ...]
    batch: int
    classes: int
    rounds: int
    channels_last: bool = False
    widths: tuple[int, ...] | None = None

    @property
    def chains(self) -> int:
        """Chains that `attribute` needs: one where the network has one output, else two."""
        return 1 if self.classes == 1 else 2

    def draw(self, dtype: torch.dtype = torch.float32, batch: int | None = None) -> tuple[nn.Module, Tensor, Tensor]:
        """(model, inputs [B, *sample], labels int64 [B]), drawn from PyTorch's generator."""
        model = self.build(dtype)
        for parameter in model.parameters():
            # Fixup starts some at zero, where every product would be one of zeros.
            if not parameter.is_meta and not parameter.any():
                nn.init.normal_(parameter, std=0.01)
        x = torch.randn(batch or self.batch, *self.sample, dtype=dtype)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            x = x.contiguous(memory_format=torch.channels_last)
        return model, x, torch.randint(max(self.classes, 2), (len(x),))


@dataclass(frozen=True)
class GiniCase:
    """The Gini coefficient of a vector of n numbers and its gradient."""

    name: str
    n: int
    rounds: int

    @property
    def title(self) -> str:
        """The vector in words."""
        return f"Gini coefficient of {self.n} numbers"


def perceptron(name: str, widths: Sequence[int], batch: int, rounds: int) -> Case:
    """A case of a perceptron with these widths, inputs first and outputs last."""
    sizes = tuple(widths)
    return Case(
        name,
        "-".join(map(str, sizes)),
        lambda dtype: xmlp(sizes, dtype=dtype),
        (sizes[0],),
        batch,
        sizes[-1],
        rounds,
        widths=sizes,
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


_ROUNDS = {"paper": 400, "paper-512": 200, "survival": 200, "narrow": 40, "deep": 12, "image-1": 10, "image-10": 10}
_IMAGE = (3, 64, 64)
_STEPS = [
    *(perceptron(name, *network, _ROUNDS[name]) for name, network in NETWORKS.items()),
    Case("small-vgg", "VGG of 6 convolutions, 32x32, channels last", small_vgg, (3, 32, 32), 64, 10, 8, True),
    Case("xresnet18", "X-ResNet-18, 64x64", lambda dtype: xfixup_resnet18(dtype=dtype), _IMAGE, 8, 1000, 15),
    Case("xvgg16", "X-VGG16, 64x64", lambda dtype: xvgg16(image_size=64, dropout=0.0, dtype=dtype), _IMAGE, 8, 1000, 8),
]
STEPS: dict[str, Case] = {case.name: case for case in _STEPS}
GINI: dict[str, GiniCase] = {
    f"gini-{n}": GiniCase(f"gini-{n}", n, rounds) for n, rounds in ((100, 400), (1000, 100), (10_000, 6), (150_528, 20))
}
CASES: dict[str, Case | GiniCase] = {**STEPS, **GINI}

GROUPS = {
    "quick": ("paper", "paper-512", "narrow"),
    "perceptrons": tuple(NETWORKS),
    "convolutional": ("small-vgg", "xresnet18", "xvgg16"),
    "gini": tuple(GINI),
    "all": tuple(CASES),
}
"""Names that stand for several cases."""


def chosen(names: Sequence[str]) -> list[Case | GiniCase]:
    """The cases that these names of cases and groups stand for, each once; UserError for a name that there is not."""
    found: dict[str, Case | GiniCase] = {}
    for name in names:
        if name not in CASES and name not in GROUPS:
            raise UserError(f"there is no case {name!r}; choose among {', '.join((*CASES, *GROUPS))}")
        for one in GROUPS.get(name, (name,)):
            found[one] = CASES[one]
    return list(found.values())
