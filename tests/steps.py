"""Training steps that tests of a device share: networks, steps by sweeps and by double backward, and their errors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Step, eager_attribute, eager_attribute_loss, relative_error, run_step
from torch import Tensor, nn

import xattr_cuda as xa

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DRAWS = 3
"""Rounding may carry a pre-activation across zero in one way of computing and not in the other, which changes gradients
by more than either's error: one of so many draws must be without."""


def perceptron(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> Callable[[], nn.Module]:
    return lambda: xa.models.xmlp(widths, activation=activation)


def convnet(channels: int, features: int, outputs: int) -> nn.Module:
    """For images [3, 16, 16]."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
        nn.LeakyReLU(0.1),
        nn.MaxPool2d(3, 2, 1),
        nn.Flatten(),
        nn.Linear(2 * channels * 16, features, bias=False),
        nn.ReLU(),
        nn.Linear(features, outputs, bias=False),
    )


Drawn = tuple[nn.Module, nn.Module, Tensor]
Taken = Callable[[bool, nn.Module, Tensor], Step]


def drawn(
    build: Callable[[], nn.Module],
    x: Tensor,
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Drawn:
    """(model, the same in float64, x) on the device of x."""
    model, exact = build().to(x.device, dtype), build().to(x.device, torch.float64)
    exact.load_state_dict(model.state_dict())
    x = x.to(dtype)
    if x.dim() == 4:
        x, model = x.contiguous(memory_format=memory_format), model.to(memory_format=memory_format)
    return model, exact, x


def _squares(output: Tensor, attribution: Tensor) -> Tensor:
    return output.float().square().mean() + attribution.float().square().sum(1).mean()


def attributed(target: Tensor | None) -> Taken:
    """A step with the attribution of the outputs, from (whether by sweeps, model, x)."""

    def step(swept: bool, model: nn.Module, x: Tensor) -> Step:
        return run_step(xa.attribute if swept else eager_attribute, model, x, target, loss=_squares)

    return step


def attributed_loss(labels: Tensor) -> Taken:
    """A step with the attribution of a cross-entropy, from (whether by sweeps, model, x)."""

    def step(swept: bool, model: nn.Module, x: Tensor) -> Step:
        def attribute(model: nn.Module, x: Tensor, target: Any, *, cotangent: Any) -> tuple[Tensor, Tensor]:
            function = xa.attribute_loss if swept else eager_attribute_loss
            loss, _, attribution = function(model, x, nn.functional.cross_entropy, labels)
            return loss, attribution

        return run_step(attribute, model, x, loss=lambda loss, a: loss.float() + a.float().square().sum())

    return step


def _worst_ratio(got: Step, plain: Step, truth: Step) -> float:
    """The largest error over twice PyTorch's own, of all that a step computes."""
    ratios = []
    for name, exact in truth.items():
        assert got[name].dtype == plain[name].dtype, name
        limit = 2 * relative_error(plain[name], exact) + torch.finfo(got[name].dtype).eps
        ratios.append(relative_error(got[name], exact) / limit)
    return max(ratios)


def assert_within_twice_pytorch(step: Taken, draw: Callable[[], Drawn]) -> None:
    """All results of a step by sweeps are within twice the error of eager double backward at the same dtype."""
    found = []
    for _ in range(DRAWS):
        model, exact, x = draw()
        found.append(_worst_ratio(step(True, model, x), step(False, model, x), step(False, exact, x.double())))
        if found[-1] <= 1:
            return
    pytest.fail(f"errors over twice those of PyTorch: {found}")
