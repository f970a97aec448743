"""Sweeps through networks that are no chains: against eager double backward, eagerly and in one compiled graph."""

from collections.abc import Callable
from typing import Any

import graphs
import pytest
import torch
from helpers import Step, assert_same_step, collect
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import xattr_cuda as xa

by_name = pytest.mark.parametrize("name", graphs.CASES)
Inputs = tuple[Tensor, ...]
Attribute = Callable[[nn.Module, Inputs, Any], tuple[Any, Inputs]]


def swept(model: nn.Module, inputs: Inputs, cotangent: Any) -> tuple[Any, Inputs]:
    return xa.attribute(model, inputs, cotangent=cotangent)


def doubled(model: nn.Module, inputs: Inputs, cotangent: Any) -> tuple[Any, Inputs]:
    """The same by eager double backward."""
    output = model(*(x.clone() for x in inputs))
    pairs = zip(pytree.tree_leaves(output), pytree.tree_leaves(cotangent), strict=True)
    explained = sum((y * u).sum() for y, u in pairs)
    found = torch.autograd.grad(explained, inputs, create_graph=True, allow_unused=True, materialize_grads=True)
    return output, tuple(x * g for x, g in zip(inputs, found, strict=True))


def loss_of(output: Any, attributions: Inputs) -> Tensor:
    """Smooth, and nonlinear in every result."""
    total = sum(y.sin().sum() for y in pytree.tree_leaves(output))
    return total + sum((3 * a).sin().sum() + a.square().sum() for a in attributions)


def weights_for(model: nn.Module, inputs: Inputs) -> Any:
    with torch.no_grad():
        return pytree.tree_map(torch.randn_like, model(*(x.clone() for x in inputs)))


def step(attribute: Attribute, model: nn.Module, inputs: Inputs, cotangent: Any, loss: Any = loss_of) -> Step:
    """Results and all gradients of one step, from leaves of its own."""
    torch.manual_seed(0)
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    cotangent = pytree.tree_map(lambda u: u.detach().clone().requires_grad_(), cotangent)
    output, attributions = attribute(model, inputs, cotangent)
    results = dict(enumerate((*pytree.tree_leaves(output), *attributions)))
    leaves = {f"input {i}": x for i, x in enumerate(inputs)}
    leaves |= {f"cotangent {i}": u for i, u in enumerate(pytree.tree_leaves(cotangent))}
    named = {f"result {i}": t for i, t in results.items()}
    return collect(loss(output, attributions), named, {**dict(model.named_parameters()), **leaves})


@by_name
def test_every_gradient_is_that_of_double_backward(name, backend):
    model, inputs = graphs.build(name)
    cotangent = weights_for(model, inputs)
    assert_same_step(step(swept, model, inputs, cotangent), step(doubled, model, inputs, cotangent))


@by_name
@pytest.mark.parametrize("part", ["output", "attribution"])
def test_a_loss_of_one_result_alone_has_its_gradients(name, part):
    model, inputs = graphs.build(name)
    cotangent = weights_for(model, inputs)

    def loss(output: Any, attributions: Inputs) -> Tensor:
        return loss_of(output, ()) if part == "output" else loss_of((), attributions)

    assert_same_step(*(step(how, model, inputs, cotangent, loss) for how in (swept, doubled)))


@by_name
def test_a_compiled_step_has_every_gradient(name):
    model, inputs = graphs.build(name)
    cotangent = weights_for(model, inputs)
    model.eval()  # random masks are drawn in another order in a graph
    want = step(doubled, model, inputs, cotangent)
    torch.compiler.reset()
    compiled = torch.compile(swept, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert_same_step(step(compiled, model, inputs, cotangent), want)


@by_name
def test_attributions_are_complete(name, backend):
    model, inputs = graphs.build(name)
    cotangent = weights_for(model, inputs)
    with torch.no_grad():
        output, attributions = xa.attribute(model, inputs, cotangent=cotangent)
    pairs = zip(pytree.tree_leaves(output), pytree.tree_leaves(cotangent), strict=True)
    wanted = sum((y * u).flatten(1).sum(1) for y, u in pairs)
    torch.testing.assert_close(sum(a.flatten(1).sum(1) for a in attributions), wanted, rtol=1e-10, atol=1e-10)


# PyTorch itself cannot view an empty batch as [0, -1], as the two that are left out do.
@pytest.mark.parametrize("name", sorted(graphs.CASES.keys() - {"functional", "sizes"}))
def test_an_empty_batch_has_gradients_of_zero(name):
    model, inputs = graphs.build(name)
    empty = tuple(x[:0] for x in inputs)
    result = step(swept, model, empty, weights_for(model, empty))
    gradients = [g for key, g in result.items() if key.startswith("gradient") and g is not None]
    assert gradients
    assert not any(g.any() for g in gradients)


@by_name
def test_frozen_layers_change_no_other_gradient(name):
    model, inputs = graphs.build(name)
    cotangent = weights_for(model, inputs)
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    assert_same_step(step(swept, model, inputs, cotangent), step(doubled, model, inputs, cotangent))


@by_name
def test_attribute_loss_has_the_gradients_of_double_backward(name):
    model, inputs = graphs.build(name)

    def criterion(output: Any) -> Tensor:
        return sum(y.cos().sum() for y in pytree.tree_leaves(output))

    def by_sweep(model: nn.Module, inputs: Inputs, cotangent: Any) -> tuple[Any, Inputs]:
        loss, output, attributions = xa.attribute_loss(model, inputs, criterion)
        return (loss, output), attributions

    def by_double_backward(model: nn.Module, inputs: Inputs, cotangent: Any) -> tuple[Any, Inputs]:
        output = model(*(x.clone() for x in inputs))
        u = pytree.tree_map(lambda y: -y.sin().detach(), output)
        torch.manual_seed(0)
        return (criterion(output), output), doubled(model, inputs, u)[1]

    assert_same_step(*(step(how, model, inputs, ()) for how in (by_sweep, by_double_backward)))


@pytest.mark.parametrize("name", ["residual", "dense", "U-Net", "inception", "images", "volumes"])
def test_channels_last_stays_so(name, backend):
    model, (x,) = graphs.build(name)
    memory_format = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    cotangent = weights_for(model, (x,))
    want = step(doubled, model, (x,), cotangent)
    model, x = model.to(memory_format=memory_format), x.to(memory_format=memory_format)
    assert_same_step(step(swept, model, (x,), cotangent), want)
    assert xa.attribute(model, x, cotangent=cotangent).attribution.is_contiguous(memory_format=memory_format)


def test_outputs_that_are_not_attributed_are_left_out(backend):
    model, inputs = graphs.build("several outputs")
    given = weights_for(model, inputs)
    zeros = {"features": torch.zeros_like(given["features"]), "logits": [torch.zeros_like(u) for u in given["logits"]]}
    for left_out in ("features", "logits"):
        with_none = {**given, left_out: None}
        with_zeros = {**given, left_out: zeros[left_out]}
        got = xa.attribute(model, inputs, cotangent=with_none).attribution
        torch.testing.assert_close(got, xa.attribute(model, inputs, cotangent=with_zeros).attribution)


def test_several_outputs_need_a_cotangent_like_them():
    model, inputs = graphs.build("several outputs")
    given = weights_for(model, inputs)
    with pytest.raises(ValueError, match=r"returns 3 tensors.*`cotangent`"):
        xa.attribute(model, inputs, 0)
    with pytest.raises(ValueError, match="wanted a dict of 2"):
        xa.attribute(model, inputs, cotangent=given["features"])
    with pytest.raises(ValueError, match="wanted a list of 2"):
        xa.attribute(model, inputs, cotangent={**given, "logits": given["logits"][:1]})


def test_a_constant_argument_is_held_constant(backend):
    model = graphs.TwoInputs(lambda m, x, gate: m.head(m.first(x).relu() * gate), first=graphs.linear(6, 5))
    model.head = graphs.linear(5, 1)
    model, x = model.double(), torch.randn(4, 6, dtype=torch.float64)
    gate = torch.rand(4, 5, dtype=torch.float64, requires_grad=True)
    got = xa.attribute(model, x, constants=(gate,))
    explained = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(explained, gate).sum(), explained, create_graph=True)
    torch.testing.assert_close(got.attribution, x * g)
    results = (r.sin().sum() for r in (got.attribution, x * g))
    torch.testing.assert_close(*(torch.autograd.grad(r, gate)[0] for r in results))


def test_the_slow_engine_takes_any_network_at_its_word(backend):
    model, inputs = graphs.build("residual")
    cotangent = weights_for(model, inputs)

    def slow(model: nn.Module, inputs: Inputs, cotangent: Any) -> tuple[Any, Inputs]:
        return xa.attribute(model, inputs, cotangent=cotangent, engine="autograd")

    assert_same_step(step(slow, model, inputs, cotangent), step(doubled, model, inputs, cotangent))
    branching = graphs.Graph(lambda m, x: m.head(x) if x.sum() > 0 else m.head(2 * x), head=graphs.linear(6, 1))
    x = torch.randn(3, 6)
    with pytest.raises(xa.UnsupportedLayerError, match='engine="autograd"'):
        xa.attribute(branching, x)
    output, attribution = xa.attribute(branching, x, engine="autograd")
    torch.testing.assert_close(attribution.sum(1, keepdim=True), output)
    loss, output, attribution = xa.attribute_loss(branching, x, lambda y: y.square().sum(), engine="autograd")
    torch.testing.assert_close(attribution.sum(1, keepdim=True), 2 * output**2)
    assert loss.requires_grad
    with pytest.raises(ValueError, match="'sweep' or 'autograd'"):
        xa.attribute(branching, x, engine="magic")
