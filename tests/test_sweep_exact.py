"""attribute against eager double backward in float64: results and every gradient, for every structure of network."""

import pytest
import torch
from helpers import (
    assert_same_step,
    attribution_loss,
    curved_loss,
    eager_attribute,
    output_loss,
    relative_error,
    run_step,
)
from networks import CASES, build
from torch import nn

import xattr_cuda as xa

by_network = pytest.mark.parametrize("network", CASES)


@by_network
@pytest.mark.parametrize("batch", [7, 1, 0])
def test_a_step_equals_double_backward(network, batch, backend, seed):
    model, x = build(network, batch)
    cotangent = torch.randn_like(model(x).detach())
    want = run_step(eager_attribute, model, x, cotangent=cotangent, seed=seed)
    assert_same_step(run_step(xa.attribute, model, x, cotangent=cotangent, seed=seed), want)


@by_network
@pytest.mark.parametrize("loss", [output_loss, attribution_loss], ids=["only the output", "only the attribution"])
def test_a_loss_of_one_result_equals_double_backward(network, loss, backend, seed):
    model, x = build(network)
    cotangent = torch.randn_like(model(x).detach())
    want = run_step(eager_attribute, model, x, cotangent=cotangent, loss=loss, seed=seed)
    assert_same_step(run_step(xa.attribute, model, x, cotangent=cotangent, loss=loss, seed=seed), want)


@by_network
def test_attribution_sums_to_the_output_weighted_by_the_cotangent(network, backend):
    model, x = build(network)
    cotangent = torch.randn_like(model(x).detach())
    output, attribution = xa.attribute(model, x, cotangent=cotangent)
    assert relative_error(attribution.flatten(1).sum(1), (cotangent * output).flatten(1).sum(1)) <= 1e-12


@by_network
def test_results_without_gradients_equal_those_with(network, backend, seed):
    model, x = build(network)
    cotangent = torch.randn_like(model(x).detach())
    want = run_step(xa.attribute, model, x, cotangent=cotangent, seed=seed)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.manual_seed(seed)
            output, attribution = xa.attribute(model, x, cotangent=cotangent)
        assert not output.requires_grad
        assert not attribution.requires_grad
        assert relative_error(output, want["output"]) <= 1e-12
        assert relative_error(attribution, want["attribution"]) <= 1e-12


@pytest.mark.parametrize("network", ["many outputs", "one output", "PReLU by channel", "shared layers", "dropout"])
@pytest.mark.parametrize("input_grad", [False, True])
def test_frozen_parameters_leave_the_other_gradients(network, input_grad, backend, seed):
    model, x = build(network)
    cotangent = torch.randn_like(model(x).detach())
    want = run_step(eager_attribute, model, x, cotangent=cotangent, seed=seed)
    parameters = list(model.parameters())
    everything = 2 ** len(parameters) - 1
    single = [1 << i for i in range(len(parameters))]
    for subset in [
        0,
        everything,
        *single,
        *(everything - one for one in single),
        *torch.randint(everything, (4,)).tolist(),
    ]:
        for i, parameter in enumerate(parameters):
            parameter.requires_grad_(bool(subset >> i & 1))
        got = run_step(xa.attribute, model, x, cotangent=cotangent, input_grad=input_grad, seed=seed)
        assert sum(name.startswith("gradient") for name in got) == subset.bit_count() + input_grad + 1
        assert_same_step(got, want)


def rearranged(x, layout):
    return {
        "transposed": lambda: x.mT.contiguous().mT,
        "sliced": lambda: torch.stack([x, x + 1], -1)[..., 0],
        "expanded": lambda: x[:1].expand(x.shape),
        "padded rows": lambda: torch.cat([x, x], -1)[..., : x.shape[-1]],
        "channels last": lambda: x.movedim(1, -1).contiguous().movedim(-1, 1),
    }[layout]()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "padded rows", "channels last"])
@pytest.mark.parametrize(
    "network",
    [
        "many outputs",
        "one output",
        "activation at both ends",
        "PReLU before a linear layer",
        "a sequence with PReLU by channel",
        "an image",
        "an image with PReLU by channel",
        "dropout of the input",
    ],
)
def test_strided_inputs_and_cotangents_give_what_double_backward_gives(network, layout, backend, seed):
    model, x = build(network)
    x = rearranged(x, layout)
    cotangent = rearranged(torch.randn_like(model(x).detach()), layout)
    want = run_step(eager_attribute, model, x, cotangent=cotangent, seed=seed)
    assert_same_step(run_step(xa.attribute, model, x, cotangent=cotangent, seed=seed), want)


@pytest.mark.parametrize("network", ["many outputs", "one output"])
def test_a_tuple_of_one_input_is_mirrored(network, backend):
    model, x = build(network)
    cotangent = torch.randn_like(model(x))
    alone = xa.attribute(model, x, cotangent=cotangent)
    result = xa.attribute(model, (x,), cotangent=cotangent)
    assert isinstance(result, xa.Attribution)
    assert isinstance(result.attribution, tuple)
    assert torch.equal(result.attribution[0], alone.attribution)
    loss = xa.attribute_loss(model, (x,), lambda output: output.sum())
    assert isinstance(loss.attribution, tuple)
    with torch.no_grad():
        assert isinstance(xa.attribute(model, (x,), cotangent=cotangent).attribution, tuple)


@pytest.mark.parametrize("network", ["many outputs", "one output", "PReLU by channel"])
def test_gradients_accumulate_over_calls(network, backend):
    model, x = build(network)
    cotangent = torch.randn_like(model(x).detach())
    whole = run_step(eager_attribute, model, x, cotangent=cotangent)
    parts = [slice(0, 3), slice(3, None)]
    total = sum(curved_loss(*xa.attribute(model, x[part], cotangent=cotangent[part])) for part in parts)
    total.backward()
    for name, parameter in model.named_parameters():
        assert relative_error(parameter.grad, whole[f"gradient of {name}"]) <= 1e-10
    model.zero_grad()
    for part in parts:
        curved_loss(*xa.attribute(model, x[part], cotangent=cotangent[part])).backward()
    for name, parameter in model.named_parameters():
        assert relative_error(parameter.grad, whole[f"gradient of {name}"]) <= 1e-10


def test_a_graph_can_be_swept_backward_twice_if_retained(backend):
    model, x = build("many outputs")
    loss = curved_loss(*xa.attribute(model, x, target=1))
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_cotangent_may_come_from_the_network_that_it_weights(backend):
    model, x = build("many outputs")
    gate = nn.Linear(6, 3).double()

    def gated(attribute):
        output, attribution = attribute(model, x.detach().requires_grad_(), cotangent=gate(x).softmax(1))
        leaves = [*model.parameters(), *gate.parameters()]
        return torch.autograd.grad(curved_loss(output, attribution), leaves)

    for got, want in zip(gated(xa.attribute), gated(eager_attribute), strict=True):
        assert relative_error(got, want) <= 1e-10
