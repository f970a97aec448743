"""Steps that attribute some rows, by either engine, with all their gradients; for the tests of rows=."""

from typing import Any

import torch
from helpers import collect
from torch import Tensor, nn

import xattr_cuda as xa


def small_convnet(scale: bool = False) -> nn.Module:
    layers = [
        *(nn.Conv2d(3, 6, 3, padding=1, bias=False), xa.nn.BatchScale2d(6) if scale else nn.Identity(), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, bias=False), nn.LeakyReLU(0.1), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(8, 4, bias=False)),
    ]
    return nn.Sequential(*layers)


def step(model: nn.Module, x: Tensor, rows: Any, engine: str, target: Any = None, cotangent: Any = None) -> Any:
    """xa.attribute's results and all gradients."""
    x = x.detach().clone().requires_grad_()
    u = None if cotangent is None else cotangent.detach().clone().requires_grad_()
    output, a = xa.attribute(model, x, target, cotangent=u, rows=rows, engine=engine)
    total = output.sin().sum() + (3 * a).sin().sum() + a.square().sum()
    leaves = {**{n: p for n, p in model.named_parameters() if p.requires_grad}, "x": x, "u": u}
    return collect(total, {"output": output, "attribution": a}, leaves)


def loss_step(model: nn.Module, x: Tensor, rows: Any, engine: str) -> Any:
    """xa.attribute_loss's results and all gradients, one sent into every result."""
    x, weight = x.detach().clone().requires_grad_(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    loss, output, a = xa.attribute_loss(
        model, x, lambda y: weight * (y.square().mean() + y.sin().sum()), rows=rows, engine=engine
    )
    total = 3 * loss + output.cos().sum() + (3 * a).sin().sum() + a.square().sum()
    leaves = {**{n: p for n, p in model.named_parameters() if p.requires_grad}, "x": x, "weight": weight}
    return collect(total, {"loss": loss, "output": output, "attribution": a}, leaves)
