"""Integrated Gradients, by any of Captum's five quadratures."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..sweep.inputs import Inputs, mirror
from ..sweep.target import Target
from ._base import GradientAttribution, as_in_captum
from ._inputs import Baselines, as_arguments, as_baselines, as_tensors
from ._path import Path, Question, chunk_of_steps, convergence_delta, path_attribution

METHODS = ("gausslegendre", "riemann_left", "riemann_middle", "riemann_right", "riemann_trapezoid")


def quadrature(method: str, n_steps: int) -> tuple[list[float], list[float]]:
    """Places in [0, 1] and their weights, `n_steps` of each."""
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}; wanted one of {', '.join(METHODS)}")
    least = 2 if method == "riemann_trapezoid" else 1
    if n_steps < least:
        raise ValueError(f"`n_steps` is {n_steps}; {method} takes at least {least}")
    if method == "gausslegendre":
        nodes, weights = np.polynomial.legendre.leggauss(n_steps)  # on [-1, 1]
        return (0.5 * (1 + nodes)).tolist(), (0.5 * weights).tolist()
    weight = [1 / n_steps] * n_steps
    if method == "riemann_trapezoid":
        weight[0] = weight[-1] = 0.5 / n_steps  # Captum's; they would sum to 1 if all were over n_steps - 1
        return [i / (n_steps - 1) for i in range(n_steps)], weight
    shift = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}[method]
    return [(i + shift) / n_steps for i in range(n_steps)], weight


class IntegratedGradients(GradientAttribution):
    """Integrated Gradients (Sundararajan et al. 2017): x - x' times the mean gradient on the line from x' to x.

    model: any function of the inputs [B, ...] to outputs [B, ...], a module or not, biases allowed. n_steps, method:
    how the mean is approximated: "gausslegendre", "riemann_left", "riemann_middle", "riemann_right" or
    "riemann_trapezoid", all as in Captum; the weights of the last sum to 1 - 1 / n_steps.
    """

    def __init__(self, model: Callable[..., Tensor], n_steps: int = 50, method: str = "gausslegendre") -> None:
        super().__init__(model)
        self.n_steps = n_steps
        self.method = method

    @as_in_captum
    def attribute(
        self,
        inputs: Inputs,
        baselines: Baselines = None,
        target: Target = None,
        additional_forward_args: Any = None,
        n_steps: int | None = None,
        method: str | None = None,
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Attributions of the target's output in the form of `inputs`, each [B, ...] and of its input's dtype.

        inputs: a floating tensor [B, ...] or a tuple of them. baselines: None (zero), a number, a tensor [B, ...] or
        [1, ...], or a tuple of these, one an input. target: as for `xattr_cuda.attribute`. additional_forward_args:
        what the forward takes after the inputs, not attributed; tensors are [B, ...]. n_steps, method: in place of the
        constructor's. internal_batch_size: rows that go through the model at a time; None is n_steps * B, and B is the
        least. return_convergence_delta: also return, as (attributions, delta), the sum of each sample's attributions
        minus F(x) - F(x'), [B], without a gradient.

        Differentiable in inputs, baselines and parameters where gradients are on, by double backward.
        Raises TypeError, ValueError or IndexError for an argument that does not fit.
        """
        tensors, arguments = as_tensors(inputs), as_arguments(additional_forward_args)
        references = tuple(b.unsqueeze(0) for b in as_baselines(baselines, tensors))  # [1, B or 1, ...]
        question = Question(self.model, tensors, target, arguments)
        method, n_steps = self.method if method is None else method, self.n_steps if n_steps is None else n_steps
        places, weights = (
            torch.tensor(numbers, dtype=question.wide, device=tensors[0].device)
            for numbers in quadrature(method, n_steps)
        )
        chunk = chunk_of_steps(internal_batch_size, len(weights), question.batch)
        path = Path(lambda _: references, places.unsqueeze(1), weights, chunk)
        attributions = path_attribution(question, path)
        if not return_convergence_delta:
            return mirror(attributions, inputs)
        return mirror(attributions, inputs), convergence_delta(question, path, attributions, references=1)
