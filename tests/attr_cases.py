"""Smooth networks with biases, targets, and a comparison, for the tests of the attribution classes."""

import torch
from torch import Tensor, nn

TARGETS = {  # for outputs [5, 3]
    "int": 2,
    "tuple": (1,),
    "tensor": torch.tensor([2, 0, 1, 1, 0]),
    "tensor of one element": torch.tensor([1]),
    "scalar tensor": torch.tensor(2),
    "list of ints": [2, 2, 0, 1, 0],
}
DENSE = {"tuple": (3, 1), "list of tuples": [(0, 2), (3, 1), (1, 0), (2, 2), (1, 1)]}  # for outputs [5, 4, 3]


class TwoInputs(nn.Module):
    """Biased and smooth, of inputs [B, 4] and [B, 2, 3] and, if given, a gate [B, 8] and a power; outputs [B, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, z: Tensor, gate: Tensor | None = None, power: float | Tensor = 1) -> Tensor:
        h = torch.tanh(self.first(x)) * self.second(z.flatten(1))
        return self.head(h if gate is None else h * gate) ** power


def smooth(*tail: nn.Module, outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, outputs), *tail).double()


def dense() -> nn.Sequential:
    return smooth(nn.Unflatten(1, (4, 3)), outputs=12)


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def pair(batch: int = 5) -> tuple[Tensor, Tensor]:
    return rows(batch, 4), rows(batch, 2, 3)


def assert_equal(got, want, tolerance: float = 1e-10) -> None:
    """Both are tensors, or both are tuples of such, of the same shapes, dtypes and values."""
    assert isinstance(got, tuple) == isinstance(want, tuple)
    if isinstance(got, tuple):
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            assert_equal(g, w, tolerance)
        return
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    assert (got - want).abs().max() <= tolerance * (1 + want.abs().max())
