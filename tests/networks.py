"""Small X-DNNs in float64 of every structure that the sweeps must serve, by name, with an input for each."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import xattr_cuda as xa


def linear(fan_in: int, fan_out: int) -> nn.Linear:
    return nn.Linear(fan_in, fan_out, bias=False)


class Chain(nn.Module):
    """A custom module whose forward is a chain; its layers are registered in another order than they run."""

    def __init__(self) -> None:
        super().__init__()
        self.head = linear(5, 3)
        self.unused = nn.Tanh()
        self.act = nn.LeakyReLU(0.2)
        self.features = nn.Sequential(linear(6, 8), nn.ReLU(), linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.features(x)))


class Rectifier(nn.ReLU):
    """A subclass that computes what its base does."""


def _shared() -> nn.Sequential:
    middle, act = linear(8, 8), nn.PReLU()
    return nn.Sequential(linear(6, 8), act, middle, act, middle, nn.ReLU(), linear(8, 3))


def _weight_norm() -> nn.Sequential:
    norm = torch.nn.utils.parametrizations.weight_norm
    return nn.Sequential(norm(linear(6, 8)), nn.ReLU(), linear(8, 5), nn.ReLU(), norm(linear(5, 3)))


def _tied() -> nn.Sequential:
    """Two layers with one parameter."""
    first, second = linear(6, 6), linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), linear(6, 3))


class Case(NamedTuple):
    """A network and the shape of a sample."""

    build: Callable[[], nn.Module]
    sample: tuple[int, ...]


def _mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU, dropout: float = 0.0) -> Case:
    return Case(lambda: xa.models.xmlp(widths, activation=activation, dropout=dropout), (widths[0],))


CASES: dict[str, Case] = {
    "one output": _mlp(6, 8, 40, 5, 1),
    "many outputs": _mlp(6, 8, 40, 5, 3),
    "a linear module": Case(lambda: linear(6, 3), (6,)),
    "one layer": Case(lambda: nn.Sequential(linear(6, 1)), (6,)),
    "no weight": Case(lambda: nn.Sequential(nn.ReLU(), nn.LeakyReLU(0.3)), (6,)),
    "nothing": Case(lambda: nn.Sequential(nn.Identity()), (6,)),
    "two linear layers in a row": Case(
        lambda: nn.Sequential(linear(6, 8), linear(8, 5), nn.ReLU(), linear(5, 3)), (6,)
    ),
    "activation at both ends": Case(lambda: nn.Sequential(nn.LeakyReLU(0.1), linear(6, 5), nn.ReLU()), (6,)),
    "activations in a row": Case(
        lambda: nn.Sequential(linear(6, 8), nn.LeakyReLU(-0.5), nn.PReLU(8), nn.ReLU(), linear(8, 3)), (6,)
    ),
    "in-place ReLU": _mlp(6, 8, 40, 3, activation=lambda: nn.ReLU(inplace=True)),
    "in-place LeakyReLU": _mlp(6, 8, 40, 1, activation=lambda: nn.LeakyReLU(0.2, inplace=True)),
    "PReLU": _mlp(6, 8, 40, 3, activation=nn.PReLU),
    "PReLU and one output": _mlp(6, 8, 40, 1, activation=nn.PReLU),
    "PReLU by channel": Case(
        lambda: nn.Sequential(linear(6, 8), nn.PReLU(8), linear(8, 33), nn.PReLU(33), linear(33, 3)), (6,)
    ),
    "PReLU before a linear layer": Case(lambda: nn.Sequential(nn.PReLU(6), linear(6, 3), nn.PReLU(3)), (6,)),
    "a sequence": Case(lambda: nn.Sequential(linear(6, 8), nn.ReLU(), linear(8, 3)), (4, 6)),
    "a sequence with PReLU by channel": Case(
        lambda: nn.Sequential(linear(6, 8), nn.PReLU(4), linear(8, 4), nn.PReLU(4), linear(4, 3)), (4, 6)
    ),
    "an image": Case(lambda: nn.Sequential(nn.Flatten(), linear(24, 8), nn.ReLU(), linear(8, 3)), (2, 3, 4)),
    "an image with PReLU by channel": Case(
        lambda: nn.Sequential(nn.PReLU(2), nn.Flatten(), linear(24, 8), nn.ReLU(), linear(8, 1)), (2, 3, 4)
    ),
    "flattened halfway": Case(
        lambda: nn.Sequential(linear(6, 8), nn.ReLU(), nn.Flatten(-2), nn.Identity(), linear(32, 1)), (4, 6)
    ),
    "dropout": _mlp(6, 8, 40, 3, dropout=0.4),
    "dropout and one output": _mlp(6, 8, 40, 1, activation=nn.PReLU, dropout=0.4),
    "dropout of everything": _mlp(6, 8, 3, dropout=1.0),
    "dropout of the input": Case(
        lambda: nn.Sequential(nn.Dropout(0.3), linear(6, 3), nn.ReLU(), nn.Dropout(0.2)), (6,)
    ),
    "nested": Case(
        lambda: nn.Sequential(
            nn.Sequential(linear(6, 8), nn.ReLU()),
            nn.Sequential(nn.Sequential(linear(8, 5), nn.Identity()), Rectifier()),
            linear(5, 3),
        ),
        (6,),
    ),
    "a custom module": Case(Chain, (6,)),
    "shared layers": Case(_shared, (6,)),
    "one parameter for two layers": Case(_tied, (6,)),
    "weight norm": Case(_weight_norm, (6,)),
}


def build(name: str, batch: int = 7, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """The network and an input of the given batch."""
    if "dropout" in name and torch.get_default_device().type != "cpu":
        pytest.skip("PyTorch's own dropout draws its mask in another way on a GPU")
    case = CASES[name]
    return case.build().to(dtype), torch.randn(batch, *case.sample, dtype=torch.float64).to(dtype)
