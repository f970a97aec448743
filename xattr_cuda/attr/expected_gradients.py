"""Expected Gradients: Integrated Gradients from references drawn at random, one gradient each."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..sweep.inputs import Inputs, mirror
from ..sweep.target import Target
from ._base import GradientAttribution, as_in_captum
from ._inputs import as_arguments, as_background, as_tensors
from ._path import Path, Question, chunk_of_steps, convergence_delta, path_attribution


class ExpectedGradients(GradientAttribution):
    """Expected Gradients (Erion et al. 2021): the mean of (x - x') times the gradient at x' + alpha (x - x').

    References x' are drawn from the background and alpha from U(0, 1), afresh for every sample, so that the expectation
    is the mean of Integrated Gradients over the background.

    model: any function of the inputs [B, ...] to outputs [B, ...], a module or not, biases allowed. background: the
    references [M, ...], or a tuple of such tensors, one an input, whose rows are drawn together. n_samples: draws for
    each sample of the batch.
    """

    def __init__(self, model: Callable[..., Tensor], background: Inputs, n_samples: int = 1) -> None:
        super().__init__(model)
        self.background = background
        self.n_samples = n_samples

    @as_in_captum
    def attribute(
        self,
        inputs: Inputs,
        baselines: Inputs | None = None,
        target: Target = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        *,
        n_samples: int | None = None,
        generator: torch.Generator | None = None,
        internal_batch_size: int | None = None,
    ) -> Any:
        """Attributions of the target's output in the form of `inputs`, each [B, ...] and of its input's dtype.

        inputs: a floating tensor [B, ...] or a tuple of them. baselines, n_samples: in place of the constructor's
        background and n_samples. target: as for `xattr_cuda.attribute`. additional_forward_args: what the forward takes
        after the inputs, not attributed; tensors are [B, ...]. generator: of the draws; None is torch's own.
        internal_batch_size: rows that go through the model at a time; None is n_samples * B, and B is the least.
        return_convergence_delta: also return, as (attributions, delta), the sum of each sample's attributions minus
        F(x) - F(x'), [B], with the mean of F over the references drawn for it, without a gradient.

        Differentiable in inputs, background and parameters where gradients are on, by double backward.
        Raises TypeError, ValueError or IndexError for an argument that does not fit.
        """
        tensors, arguments = as_tensors(inputs), as_arguments(additional_forward_args)
        name, given = ("background", self.background) if baselines is None else ("baselines", baselines)
        background = as_background(name, given, tensors)
        question = Question(self.model, tensors, target, arguments)
        samples = self.n_samples if n_samples is None else n_samples
        if samples < 1:
            raise ValueError(f"`n_samples` is {samples}; wanted at least one draw a sample")
        chunk = chunk_of_steps(internal_batch_size, samples, question.batch)
        path = _drawn_path(question, background, samples, chunk, generator)
        attributions = path_attribution(question, path)
        if not return_convergence_delta:
            return mirror(attributions, inputs)
        return mirror(attributions, inputs), convergence_delta(question, path, attributions, references=samples)


def _drawn_path(
    question: Question, background: tuple[Tensor, ...], samples: int, chunk: int, generator: torch.Generator | None
) -> Path:
    """A reference and a place on the way for each of S draws and B samples; a sample's inputs share both."""
    shape, device = (samples, question.batch), question.inputs[0].device
    source = device if generator is None else generator.device
    rows = torch.randint(len(background[0]), shape, generator=generator, device=source).to(device)
    places = torch.rand(shape, generator=generator, dtype=question.wide, device=source).to(device)
    weights = torch.full((samples,), 1 / samples, dtype=question.wide, device=device)
    return Path(lambda steps: tuple(b[rows[steps]] for b in background), places, weights, chunk)
