"""X-MLP: the perceptron of the paper's experiment on tabular data."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn


def xmlp(
    widths: Sequence[int],
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    dropout: float = 0.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """A bias-free perceptron: Linear layers with an activation, and optionally dropout, between them.

    widths: features of the input, of every hidden layer, and of the output; the paper's is [118, 512, 128, 32, 1].
    activation: makes the module after every hidden layer (nn.ReLU, nn.LeakyReLU, nn.PReLU). dropout: rate after
    every activation. Weights are initialised as torch.nn.Linear does. Put nn.Flatten() before it for images.
    """
    if len(widths) < 2 or any(w < 1 for w in widths):
        raise ValueError(f"`widths` is {list(widths)}; wanted at least two positive integers: input, ..., output")
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers.append(nn.Linear(fan_in, fan_out, bias=False, device=device, dtype=dtype))
        layers.append(activation().to(device=device, dtype=dtype))
        if dropout:
            layers.append(nn.Dropout(dropout))
    del layers[-2 if dropout else -1 :]  # nothing follows the output
    return nn.Sequential(*layers)
