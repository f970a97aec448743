"""Attributions to train through: the X-Gradient by sweeps, the others by PyTorch's double backward.

Every method is a function (model, x, samples, references, generator) -> (output, attribution) for a network with one
output a sample: x [B, F], output [B, 1], attribution [B, F], both differentiable once in the parameters. `samples` is
the number of gradients that EG and IG take a sample; `references` [R, F] are the rows that EG draws from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..sweep import attribute

Attributor = Callable[[nn.Module, Tensor, int, Tensor, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Method:
    """How a method attributes (None: there is no prior), in words, and whether its network has biases by default."""

    attribute: Attributor | None
    words: str
    bias: bool = True
    samples: bool = False  # whether it takes more than one gradient


def xgradient(
    model: nn.Module, x: Tensor, samples: int, references: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """X-Gradient of a bias-free network: Integrated Gradients in closed form, by one chain of sweeps."""
    return attribute(model, x)


def gradient(
    model: nn.Module, x: Tensor, samples: int, references: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The gradient of the output itself, as in Ross et al. 2017; not multiplied by the input."""
    x = x.detach().requires_grad_()
    output = model(x)
    return output, _gradient(output, x)


def integrated_gradients(
    model: nn.Module, x: Tensor, samples: int, references: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Integrated Gradients (Sundararajan et al. 2017) from the zero baseline by the midpoint rule, `samples` steps.

    On standardised inputs the zero baseline is the mean of the training rows.
    """
    place = (torch.arange(samples, dtype=x.dtype, device=x.device) + 0.5) / samples
    points = (place[:, None, None] * x.detach()).requires_grad_()  # [S, B, F]
    return model(x), x * _gradient(model(points.flatten(0, 1)), points).mean(0)


def expected_gradients(
    model: nn.Module, x: Tensor, samples: int, references: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Expected Gradients (Erion et al. 2021): `samples` random references a row, a random place on the way to each."""
    rows = torch.randint(len(references), (samples, len(x)), generator=generator)
    baseline = references[rows]  # [S, B, F]
    place = torch.rand(samples, len(x), 1, generator=generator, dtype=x.dtype)
    difference = x.detach() - baseline
    points = (baseline + place * difference).requires_grad_()
    return model(x), (difference * _gradient(model(points.flatten(0, 1)), points)).mean(0)


def _gradient(output: Tensor, x: Tensor) -> Tensor:
    """Gradient of the summed output, itself differentiable: the graph that double backward goes through."""
    (result,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    return result


METHODS = {
    "xgradient": Method(xgradient, "X-Gradient, one chain of sweeps", bias=False),
    "eg": Method(expected_gradients, "Expected Gradients, double backward", samples=True),
    "ig": Method(integrated_gradients, "Integrated Gradients, double backward", samples=True),
    "gradient": Method(gradient, "input gradient, double backward"),
    "none": Method(None, "no prior"),
}
