"""X-Gradient as a class: against Captum, Integrated Gradients and double backward; and what all classes share."""

from contextlib import nullcontext

import captum.attr
import pytest
import torch
from attr_cases import DENSE, TARGETS, assert_equal, rows, smooth
from helpers import assert_same_step, eager_attribute, run_step
from networks import build, linear
from torch import Tensor, nn

import xattr_cuda as xa
from xattr_cuda.attr import ExpectedGradients, IntegratedGradients, XGradient

EXACT = ("gausslegendre", "riemann_middle", "riemann_right")  # on a function that is linear but for a kink at zero


@pytest.mark.parametrize("n_steps", [1, 2, 7, 50])
@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("network", ["one output", "many outputs", "PReLU", "a sequence"])
def test_integrated_gradients_of_an_x_dnn_are_its_x_gradient(network, method, n_steps):
    model, x = build(network, batch=5)
    target = {"one output": None, "a sequence": (1, 2)}.get(network, 1)
    got = IntegratedGradients(model, n_steps, method).attribute(x, target=target)
    assert_equal(XGradient(model).attribute(x, target), got)


@pytest.mark.parametrize("kind", [*TARGETS, *(f"dense {kind}" for kind in DENSE)])
def test_the_x_gradient_of_every_target_is_captum_s_input_x_gradient_and_complete(kind):
    dense_outputs = kind.startswith("dense ")
    target = DENSE[kind.removeprefix("dense ")] if dense_outputs else TARGETS[kind]
    model, x = build("a sequence" if dense_outputs else "many outputs", batch=5)
    want = captum.attr.InputXGradient(model).attribute(x.clone().requires_grad_(), target=target)
    got, delta = XGradient(model).attribute(x, target, return_convergence_delta=True)
    assert_equal(got.detach(), want.detach())
    assert_equal(delta, torch.zeros(5, dtype=torch.float64))


def test_the_delta_of_the_x_gradient_is_measured_not_assumed(monkeypatch):
    model, x = build("many outputs", batch=5)
    module = __import__("xattr_cuda.attr.xgradient", fromlist=["attribute"])
    monkeypatch.setattr(module, "attribute", lambda model, inputs, target, constants: (model(inputs), inputs))
    _, delta = XGradient(model).attribute(x, 1, return_convergence_delta=True)
    assert_equal(delta, (x.sum(1) - model(x)[:, 1]).detach())


def test_the_x_gradient_mirrors_a_tuple_and_has_the_gradients_of_double_backward():
    model, x = build("many outputs", batch=5)

    def by_class(model, x, target, *, cotangent=None):
        (attribution,) = XGradient(model).attribute((x,), target)
        return model(x), attribution

    labels = torch.randint(3, (5,))
    assert_same_step(run_step(by_class, model, x, labels), run_step(eager_attribute, model, x, labels))


class Gated(nn.Module):
    """An X-DNN in x for any gate [B, 8], which is not attributed; the number is not a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.act, self.head = linear(6, 8), nn.ReLU(), linear(8, 3)

    def forward(self, x: Tensor, gate: Tensor, times: float = 1) -> Tensor:
        return self.head(self.act(self.body(x)) * gate) * times


@pytest.mark.parametrize("more", [(), (2.5,)], ids=["a tensor", "a tuple"])
def test_additional_arguments_of_the_x_gradient_are_held_constant(more):
    model, x, gate = Gated().double(), rows(5, 6), rows(5, 8)
    given = (gate, *more) if more else gate
    want = captum.attr.InputXGradient(model).attribute(x.clone().requires_grad_(), 1, given)
    got, delta = XGradient(model).attribute(x, 1, None, given, return_convergence_delta=True)
    assert_equal(got.detach(), want.detach())
    assert_equal(delta, torch.zeros(5, dtype=torch.float64))


def test_x_gradient_of_a_network_without_a_closed_form_is_refused():
    with pytest.raises(xa.NotHomogeneousError):
        XGradient(smooth()).attribute(rows(5, 6), 1)


@pytest.mark.parametrize("baselines", [0.5, (0, 1), torch.zeros(5, 6), "mean"], ids=repr)
def test_x_gradient_from_another_baseline_is_refused(baselines):
    model, x = build("many outputs", batch=5)
    with pytest.raises(ValueError, match=r"`baselines`.*zero.*IntegratedGradients"):
        XGradient(model).attribute(x, 1, baselines=baselines)


@pytest.mark.parametrize("baselines", [None, 0, 0.0, (0,)], ids=repr)
def test_x_gradient_from_zero_is_taken(baselines):
    model, x = build("many outputs", batch=5)
    assert_equal(XGradient(model).attribute(x, 1, baselines), XGradient(model).attribute(x, 1))


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("kind", ["x", "ig", "eg"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_batches_of_none_and_one(kind, batch, grad):
    model, x = build("many outputs", batch=batch)
    make = {"x": XGradient, "ig": IntegratedGradients, "eg": lambda model: ExpectedGradients(model, rows(4, 6), 3)}
    for target in (1, torch.zeros(batch, dtype=torch.long), [1] * batch, [(2,)] * batch):
        with nullcontext() if grad else torch.no_grad():
            got, delta = make[kind](model).attribute(x, target=target, return_convergence_delta=True)
        assert got.shape == (batch, 6)
        assert delta.shape == (batch,)
        if grad:
            got.square().sum().backward()
