"""A TensorBoard log of a run: scalars, and attributions as colours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import extras

PERCENTILE = 0.99  # of |attribution|, that has the full colour: one pixel must not wash all the others out


def attribution_images(attribution: Tensor) -> Tensor:
    """Attributions [N, H, W] or [N, C, H, W], channels summed, as colours [N, 3, H, W] in [0, 1].

    Red speaks for the target, blue against it, white is nothing. Every image has a scale of its own.
    """
    if attribution.dim() not in (3, 4):
        raise ValueError(f"an attribution has shape {list(attribution.shape)}; wanted [N, H, W] or [N, C, H, W]")
    flat = attribution.detach().float().cpu()
    flat = flat.sum(1) if flat.dim() == 4 else flat  # [N, H, W]
    limit = flat.abs().flatten(1).quantile(PERCENTILE, dim=1)[:, None, None]
    value = (flat / torch.where(limit > 0, limit, 1.0)).clamp(-1, 1)
    red, blue = 1 + value.clamp(max=0), 1 - value.clamp(min=0)
    return torch.stack([red, torch.minimum(red, blue), blue], dim=1)


class Board:
    """The log in a folder, from a step on: what an earlier run logged after that step is hidden."""

    def __init__(self, folder: str | Path, step: int) -> None:
        tensorboard = extras.load("torch.utils.tensorboard", needs="tensorboard", extra="tensorboard")
        self._writer: Any = tensorboard.SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        """Log figures by name."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def images(self, attributions: Mapping[str, Tensor], step: int) -> None:
        """Log attributions by name, coloured."""
        for name, attribution in attributions.items():
            self._writer.add_images(name, attribution_images(attribution), step)

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()
