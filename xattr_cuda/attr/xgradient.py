"""X-Gradient: Integrated Gradients of an X-DNN in closed form."""

from typing import Any

import torch
from torch import nn

from ..sweep import attribute
from ..sweep.inputs import Inputs
from ..sweep.target import Target
from ._base import GradientAttribution, as_in_captum
from ._inputs import Baselines, as_arguments, as_tensors, chosen_output, row_sums, target_cotangent


class XGradient(GradientAttribution):
    """X-Gradient (Hesse, Schaub-Meyer and Roth 2021): Integrated Gradients of an X-DNN from the zero baseline, exactly.

    model: an X-DNN, as `xattr_cuda.attribute` takes it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)

    @as_in_captum
    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        baselines: Baselines = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Attributions of the target's output in the form of `inputs`, each [B, ...]; Design section 2.

        inputs: a floating tensor [B, ...] or a tuple of them. target: as for `xattr_cuda.attribute`. baselines: None or
        0. additional_forward_args: what the forward takes after the inputs, held constant. return_convergence_delta:
        also return, as (attributions, delta), the sum of each sample's attributions minus F(x) - F(0), [B], without a
        gradient; F(0) is 0.

        Differentiable once in inputs and parameters, without double backward.
        Raises NotHomogeneousError for a layer that has no closed form, and ValueError for another baseline.
        """
        as_tensors(inputs)
        _check_baselines(baselines)
        arguments = as_arguments(additional_forward_args)
        output, attributions = attribute(self.model, inputs, target, constants=arguments)
        if not return_convergence_delta:
            return attributions
        with torch.no_grad():
            end = chosen_output(output, target_cotangent(output, target))
            return attributions, torch.stack([row_sums(a) for a in as_tensors(attributions)]).sum(0) - end


def _check_baselines(baselines: Baselines) -> None:
    given = baselines if isinstance(baselines, tuple) else (0 if baselines is None else baselines,)
    if any(not isinstance(b, int | float) or b != 0 for b in given):
        raise ValueError(
            "`baselines` is not zero; the closed form is that of the zero baseline: leave `baselines` out, "
            "or use IntegratedGradients"
        )
