"""Quantus: the X-Gradient as an explain function of its metrics."""

from typing import Any

import numpy as np
import torch
from torch import nn

from ..sweep import attribute


def explain(model: nn.Module, inputs: Any, targets: Any, *, device: torch.device | str | None = None) -> np.ndarray:
    """X-Gradient attributions of the targets' outputs, as the metrics of Quantus ask for them (`explain_func=`).

    model: an X-DNN, in the mode in which it is to be explained. inputs: [B, ...], an array, cast to the dtype of the
    model's parameters. targets: [B] indices of outputs, or an int for all. device: None is the model's.

    Returns an array like `inputs`, float32 where they hold integers. Each sample's attributions sum to its target's
    output: with `normalise=False` and a baseline of zeros Quantus finds them complete.
    Raises NotHomogeneousError for a layer that has no closed form.
    """
    given = torch.as_tensor(inputs)
    like = next(model.parameters(), given)
    target = targets if isinstance(targets, int) else torch.as_tensor(targets)
    with torch.no_grad():
        attribution = attribute(model, given.to(device or like.device, like.dtype), target).attribution
    return attribution.to("cpu", given.dtype if given.is_floating_point() else torch.float32).numpy()
