"""Who takes part: one training step (zero_grad, loss, backward) each, of the same model on the same batch."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..attr import ExpectedGradients, IntegratedGradients
from ..sweep import attribute, attribute_loss
from .problem import Problem

Step = Callable[[], object]
Loss = Callable[[Problem], Tensor]


@dataclass(frozen=True)
class Contestant:
    """How a step is taken.

    words: one line about it. group: `base` always takes part, and `share` in a whole benchmark; `compiled` and
    `sampled` when asked for; `floor` where it can. make: from a problem to the step. reference: a function from a
    problem to the loss whose eager gradients this step must have, None where there is none (its attribution is random).
    prior: whether it trains with a prior.
    """

    words: str
    group: str
    make: Callable[[Problem], Step]
    reference: Loss | None
    prior: bool = True


def plain_loss(p: Problem) -> Tensor:
    """No prior, []."""
    return p.criterion(p.model(p.x), p.truth)


def double_backward(p: Problem) -> tuple[Tensor, Tensor]:
    """(output, input x gradient of the target's output), by autograd, its graph kept for a second backward pass."""
    output = p.model(p.leaf.clone())  # a copy: networks that write in place may not write into a leaf
    (gradient,) = torch.autograd.grad(p.pick(output), p.leaf, create_graph=True)
    return output, p.x * gradient


def sweeps(p: Problem) -> tuple[Tensor, Tensor]:
    """(output, attribution of the target's output), by sweeps."""
    return attribute(p.model, p.x, p.target)


def double_backward_loss(p: Problem) -> Tensor:
    """The attribution of the target's output by double backward: []."""
    output, attribution = double_backward(p)
    return p.penalised(p.criterion(output, p.truth), attribution)


def double_backward_of_the_loss(p: Problem) -> Tensor:
    """The same with the attribution of the loss, d loss / d output held constant: []."""
    output = p.model(p.leaf.clone())
    loss = p.criterion(output, p.truth)
    (cotangent,) = torch.autograd.grad(loss, output, retain_graph=True)
    (gradient,) = torch.autograd.grad(output, p.leaf, cotangent, create_graph=True)
    return p.penalised(loss, p.x * gradient)


def quarter(p: Problem) -> slice:
    """The first quarter of the batch's rows, one at least."""
    return slice(0, max(1, len(p.x) // 4))


def double_backward_loss_of_a_quarter(p: Problem) -> Tensor:
    """The same with the attribution of a quarter of the rows; the output's loss is that of all: []."""
    output, attribution = double_backward(p)
    return p.penalised(p.criterion(output, p.truth), attribution[quarter(p)])


def functional_loss(p: Problem) -> Tensor:
    """The gradient in the input by torch.func.grad, which torch.compile can trace: []."""

    def explained(x: Tensor) -> tuple[Tensor, Tensor]:
        output = p.model(x)
        return p.pick(output), output

    gradient, output = torch.func.grad(explained, has_aux=True)(p.x)
    return p.penalised(p.criterion(output, p.truth), p.x * gradient)


def attribute_sweep_loss(p: Problem) -> Tensor:
    """The attribution of the target's output by sweeps: []."""
    output, attribution = sweeps(p)
    return p.penalised(p.criterion(output, p.truth), attribution)


def attribute_sweep_loss_of_a_quarter(p: Problem) -> Tensor:
    """The attribution of a quarter of the rows by sweeps: []."""
    output, attribution = attribute(p.model, p.x, p.target, rows=quarter(p))
    return p.penalised(p.criterion(output, p.truth), attribution)


def attribute_loss_sweep_loss(p: Problem) -> Tensor:
    """The attribution of the loss by sweeps: []."""
    loss, _, attribution = attribute_loss(p.model, p.x, p.criterion, p.truth)
    return p.penalised(loss, attribution)


def integrated_gradients_loss(steps: int) -> Loss:
    """Integrated Gradients from zero with so many gradients a sample: for an X-DNN the same number as one gradient."""

    def loss(p: Problem) -> Tensor:
        attribution = IntegratedGradients(p.model, n_steps=steps).attribute(p.x, target=p.target)
        return p.penalised(plain_loss(p), attribution)

    return loss


def expected_gradients_loss(samples: int) -> Loss:
    """Expected Gradients over the batch as background, so many random references a sample: []."""

    def loss(p: Problem) -> Tensor:
        attribution = ExpectedGradients(p.model, p.x, n_samples=samples).attribute(p.x, target=p.target)
        return p.penalised(plain_loss(p), attribution)

    return loss


def eager(loss: Loss) -> Callable[[Problem], Step]:
    """A step whose loss is computed eagerly."""

    def make(p: Problem) -> Step:
        def step() -> None:
            p.model.zero_grad(set_to_none=True)
            p.leaf.grad = None
            loss(p).backward()

        return step

    return make


def network(results: Callable[[Problem], tuple[Tensor, ...]]) -> Callable[[Problem], Step]:
    """A step of the network alone: its results, and the backward pass from gradients in them that are there already.

    What is left out is the criterion, the prior and their derivatives.
    """

    def make(p: Problem) -> Step:
        def step() -> None:
            p.model.zero_grad(set_to_none=True)
            p.leaf.grad = None
            found = results(p)
            torch.autograd.backward(found, [torch.empty_like(t) for t in found])

        return step

    return make


def compiled(loss: Loss) -> Callable[[Problem], Step]:
    """A step whose loss is one graph of torch.compile, its backward pass made by AOTAutograd."""

    def make(p: Problem) -> Step:
        graph = torch.compile(lambda: loss(p))

        def step() -> None:
            p.model.zero_grad(set_to_none=True)
            graph().backward()

        return step

    return make


def compiled_whole(loss: Loss) -> Callable[[Problem], Step]:
    """A step that is one graph from the forward to the parameters' gradients, every backward pass traced."""

    def make(p: Problem) -> Step:
        def whole() -> None:
            # A leaf of the graph itself: Dynamo does not trace gradients in tensors that come from outside.
            inside = Problem(
                p.model, p.x, p.x.clone().requires_grad_(), p.target, p.truth, p.criterion, p.chains, p.widths
            )
            loss(inside).backward()

        graph = torch.compile(whole, fullgraph=True)

        def step() -> None:
            p.model.zero_grad(set_to_none=True)
            with _traced_backward():
                graph()

        return step

    return make


def _traced_backward() -> Any:
    """Dynamo's switch for tracing torch.autograd.grad and backward; RuntimeError where this PyTorch has none."""
    import torch._dynamo as dynamo  # here, since it takes seconds to import

    if not hasattr(dynamo.config, "trace_autograd_ops"):
        raise RuntimeError("this PyTorch cannot trace a backward pass")
    return dynamo.config.patch(trace_autograd_ops=True)


def bare_products(p: Problem) -> Step:
    """The products alone that a step of a perceptron with a prior needs, at::mm into memory allocated beforehand.

    With one chain: forward, attribution and tangent sweep, and a weight gradient over B rows; with two also the
    cotangent sweep, and weight gradients over 2 B rows. Neither activations nor the loss are computed.
    """
    assert p.widths is not None, "bare products are those of perceptrons"
    calls: list[tuple[Tensor, Tensor, Tensor]] = []  # (left, right, result) of every product
    sizes, B, last = list(pairwise(p.widths)), len(p.x), len(p.widths) - 2

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=p.x.dtype, device=p.x.device)

    for i, (k, n) in enumerate(sizes):
        weight, low, high = tensor(n, k), tensor(B, k), tensor(B, n)
        left, right = tensor(p.chains * B, n), tensor(p.chains * B, k)
        calls.append((low, weight.T, tensor(B, n)))  # forward
        calls.append((high, weight, tensor(B, k)))  # attribution
        if i < last:
            calls.append((low, weight.T, tensor(B, n)))  # tangent: nobody asks for that of the output
        if p.chains == 2 and i > 0:
            calls.append((high, weight, tensor(B, k)))  # cotangent: nobody asks for that of the input
        calls.append((left.T, right, tensor(n, k)))  # weight gradient

    def step() -> None:
        for a, b, out in calls:
            torch.mm(a, b, out=out)

    return step


CONTESTANTS: dict[str, Contestant] = {
    "plain": Contestant("no prior, eager: the step that all others are compared with", "base", eager(plain_loss),
                        plain_loss, prior=False),
    "double backward": Contestant("the prior through autograd twice, eager: the authors' way", "base",
                                  eager(double_backward_loss), double_backward_loss),
    "attribute": Contestant("xa.attribute: sweeps, one chain with one output and two with more", "base",
                            eager(attribute_sweep_loss), double_backward_loss),
    "attribute_loss": Contestant("xa.attribute_loss: the attribution of the loss, always one chain", "base",
                                 eager(attribute_loss_sweep_loss), double_backward_of_the_loss),
    "attribute, rows=1/4": Contestant("xa.attribute of a quarter of the rows, the output of all", "share",
                                      eager(attribute_sweep_loss_of_a_quarter), double_backward_loss_of_a_quarter),
    "compiled plain": Contestant("no prior, torch.compile", "compiled", compiled(plain_loss), plain_loss, prior=False),
    "compiled func.grad": Contestant("the prior by torch.func.grad inside torch.compile", "compiled",
                                     compiled(functional_loss), double_backward_loss),
    "compiled whole step": Contestant("double backward, all of it traced into one graph (trace_autograd_ops)",
                                      "compiled", compiled_whole(double_backward_loss), double_backward_loss),
    "compiled attribute": Contestant("xa.attribute inside torch.compile", "compiled", compiled(attribute_sweep_loss),
                                     double_backward_loss),
    "EG(1)": Contestant("Expected Gradients prior, 1 reference a sample, double backward", "sampled",
                        eager(expected_gradients_loss(1)), None),
    "EG(8)": Contestant("Expected Gradients prior, 8 references a sample, double backward", "sampled",
                        eager(expected_gradients_loss(8)), None),
    "IG(16)": Contestant("Integrated Gradients prior, 16 steps a sample, double backward", "sampled",
                         eager(integrated_gradients_loss(16)), double_backward_loss),
    "bare products": Contestant("only the matrix products of `attribute`, into allocated memory: a measured floor",
                                "floor", bare_products, None, prior=False),
}  # fmt: skip


def selected(p: Problem, groups: frozenset[str]) -> dict[str, Contestant]:
    """The contestants of these groups that the problem has: bare products are those of perceptrons."""
    return {
        name: one for name, one in CONTESTANTS.items() if one.group in groups and (one.group != "floor" or p.widths)
    }
