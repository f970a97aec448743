"""attribute as a first-order autograd function: what it refuses, what it leaves alone, which back end it runs on."""

import copy

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients
from helpers import curved_loss, relative_error
from networks import build
from torch import nn
from torch.autograd import forward_ad

import xattr_cuda as xa
from xattr_cuda import ops
from xattr_cuda.ops import backend as choice


def test_a_second_derivative_is_refused_with_a_clear_error(backend):
    model, x = build("many outputs")
    x.requires_grad_()
    output, attribution = xa.attribute(model, x, 1)
    for loss in (curved_loss(output, attribution), output.sum() + attribution.sum()):  # the second sends constants
        with pytest.raises(RuntimeError, match="differentiable once"):
            torch.autograd.grad(loss, x, create_graph=True, retain_graph=True)
        torch.autograd.grad(loss, x, retain_graph=True)


def test_a_second_derivative_of_a_loss_is_refused(backend):
    model, x = build("many outputs")
    loss = xa.attribute_loss(model, x, lambda output: output.sum()).loss
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # PyTorch's, as it enters the level
@pytest.mark.parametrize("network", ["many outputs", "one output", "PReLU by channel"])
def test_forward_mode_is_refused(network, backend):
    model, x = build(network)
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode"):
            xa.attribute(model, forward_ad.make_dual(x, x), 0)


@pytest.mark.parametrize("network", ["many outputs", "one output", "PReLU by channel"])
def test_frozen_parameters_and_inputs_get_no_gradient(network, backend):
    model, x = build(network)
    frozen = model[2].requires_grad_(False)
    calls = []
    model[0].weight.register_hook(calls.append)
    curved_loss(*xa.attribute(model, x, 0)).backward()
    assert len(calls) == 1
    assert x.grad is None
    assert all(p.grad is None for p in frozen.parameters())
    assert all(p.grad is not None for layer in model if layer is not frozen for p in layer.parameters())


def test_a_result_that_the_loss_ignores_costs_no_gradient_of_zeros(backend):
    model, x = build("many outputs")
    model.requires_grad_(False)
    cotangent = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    output, _ = xa.attribute(model, x, cotangent=cotangent)
    assert torch.autograd.grad(output.sum(), cotangent, allow_unused=True) == (None,)


@pytest.mark.parametrize("layer", [0, 2, 6])
@pytest.mark.parametrize("network", ["many outputs", "one output"])
def test_a_weight_changed_between_forward_and_backward_is_refused(network, layer, backend):
    model, x = build(network)
    loss = curved_loss(*xa.attribute(model, x, 0))
    with torch.no_grad():
        model[layer].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_input_changed_between_forward_and_backward_is_refused(backend):
    model, x = build("many outputs")
    loss = curved_loss(*xa.attribute(model, x, 0))
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("network", ["many outputs", "no weight", "nothing", "an image", "flattened halfway"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_results_do_not_alias_the_input(network, grad, backend):
    model, x = build(network)
    with torch.set_grad_enabled(grad):
        output, attribution = xa.attribute(model, x, cotangent=torch.ones_like(model(x)))
    before = output.clone(), attribution.clone()
    x.add_(1)
    assert torch.equal(output, before[0])
    assert torch.equal(attribution, before[1])


def test_inputs_are_left_as_they_were(backend):
    for network in ("in-place ReLU", "in-place LeakyReLU", "dropout", "an image"):
        model, x = build(network)
        before, parameters = x.clone(), [p.clone() for p in model.parameters()]
        curved_loss(*xa.attribute(model, x, cotangent=torch.ones_like(model(x)))).backward()
        assert torch.equal(x, before)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), parameters, strict=True))


@pytest.mark.parametrize("name", ["relu_mask", "linear_relu_mask", "matmul_mask", "dual_weight_grad"])
def test_a_backward_pass_runs_on_the_back_end_of_its_forward_pass(name, monkeypatch):
    model, x = build("activation at both ends")  # which the engine takes layer by layer on every back end
    used = []

    def spy(table, label):
        original = getattr(choice, table)[name]

        def call(*args, **kwargs):
            used.append(label)
            return original(*args, **kwargs)

        monkeypatch.setitem(getattr(choice, table), name, call)

    spy("_reference", "reference")
    spy("_dispatched", "dispatched")
    with xa.use_backend("reference"):
        results = xa.attribute(model, x, 0)
    curved_loss(*results).backward()
    assert used
    assert set(used) == {"reference"}
    used.clear()
    results = xa.attribute(model, x, 0)
    with xa.use_backend("reference"):
        curved_loss(*results).backward()
    assert used
    assert set(used) == {"dispatched"}


@pytest.mark.skipif(bool(ops.unavailable("cpu")), reason=ops.unavailable("cpu") or "the extension is there")
def test_a_forced_back_end_refuses_tensors_of_another_device():
    model, x = build("many outputs")
    with pytest.raises(RuntimeError, match="'cpu' was forced, but the tensors are on meta"), xa.use_backend("cpu"):
        xa.attribute(model.to("meta"), x.to("meta"), 0)


def test_back_ends_agree():
    model, x = build("PReLU by channel")
    names = [name for name in ("reference", "cpu", "auto") if name == "auto" or not ops.unavailable(name)]
    results = []
    for name in names:
        with xa.use_backend(name):
            results.append(xa.attribute(model, x, 1))
    for output, attribution in results[1:]:
        assert relative_error(output, results[0].output) <= 1e-12
        assert relative_error(attribution, results[0].attribution) <= 1e-12


@pytest.mark.parametrize("network", ["many outputs", "PReLU by channel", "an image", "a custom module"])
def test_the_attribution_is_captum_s_input_x_gradient(network, backend):
    model, x = build(network)
    labels = torch.randint(3, (7,))
    want = InputXGradient(model).attribute(x.clone().requires_grad_(), target=labels)
    assert relative_error(xa.attribute(model, x, labels).attribution, want) <= 1e-13


@pytest.mark.parametrize("network", ["many outputs", "PReLU by channel", "an image", "a custom module"])
def test_the_attribution_is_captum_s_integrated_gradients_from_zero(network, backend):
    model, x = build(network)
    labels = torch.randint(3, (7,))
    # An X-DNN is linear along the ray from zero, so every quadrature is exact; captum's weights are single precision.
    want = IntegratedGradients(model).attribute(x, baselines=0.0, target=labels, n_steps=5, method="riemann_middle")
    assert relative_error(xa.attribute(model, x, labels).attribution, want) <= 1e-6


def trained(model, x, labels, prior, strength):
    """(task loss, penalty) after Adam on the loss plus strength * prior."""
    criterion, optimiser = nn.BCEWithLogitsLoss(), torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        output, attribution = xa.attribute(model, x)
        optimiser.zero_grad()
        (criterion(output, labels) + strength * prior(attribution)).backward()
        optimiser.step()
    output, attribution = xa.attribute(model, x)
    return criterion(output, labels).item(), prior(attribution).item()


def test_training_with_a_prior_makes_a_network_ignore_a_forbidden_feature(backend):
    model = xa.models.xmlp([6, 32, 16, 1])
    x = torch.randn(256, 6)
    labels = (x[:, 0] + x[:, 1] > 0).float().unsqueeze(1)
    prior = xa.priors.right_reasons(torch.arange(6) == 1)
    plain_loss, plain_penalty = trained(copy.deepcopy(model), x, labels, prior, strength=0)
    loss, penalty = trained(model, x, labels, prior, strength=10)
    assert penalty < 0.01 * plain_penalty
    assert plain_loss < loss < 0.67  # the forbidden feature helps, and the other one is still used
