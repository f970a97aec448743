"""attribute_loss against eager double backward in float64."""

import pytest
import torch
from helpers import assert_same_step, attribution_loss, collect, eager_attribute_loss, relative_error
from networks import CASES, build
from torch import nn

import xattr_cuda as xa


def squares(output, weight):
    return (output * weight).square().sum() + output.sin().mean() if output.numel() else output.sum()


def through_output(output):
    return output.cos().sum()


def nothing(output):
    return 0.0


def loss_step(attribute_loss, model, x, criterion, *args, scale=1.0, prior=attribution_loss, more=nothing, seed=0):
    """One step on scale * (loss + prior of the attribution + more of the output)."""
    torch.manual_seed(seed)
    x = x.detach().requires_grad_()
    loss, output, attribution = attribute_loss(model, x, criterion, *args)
    leaves = {**dict(model.named_parameters()), "the input": x}
    if isinstance(criterion, nn.Module):
        leaves |= {f"criterion.{name}": p for name, p in criterion.named_parameters()}
    leaves |= {f"argument {i}": t for i, t in enumerate(args) if t.requires_grad}
    total = scale * (loss + prior(output, attribution) + more(output))
    return collect(total, {"loss": loss, "output": output, "attribution": attribution}, leaves)


def assert_equals_double_backward(model, x, criterion, *args, **kwargs):
    want = loss_step(eager_attribute_loss, model, x, criterion, *args, **kwargs)
    assert_same_step(loss_step(xa.attribute_loss, model, x, criterion, *args, **kwargs), want)


@pytest.mark.parametrize("network", CASES)
@pytest.mark.parametrize("batch", [7, 1, 0])
@pytest.mark.parametrize("more", [nothing, through_output], ids=["loss alone", "gradient into the output too"])
def test_a_step_equals_double_backward(network, batch, more, backend, seed):
    model, x = build(network, batch)
    weight = torch.randn_like(model(x).detach())
    assert_equals_double_backward(model, x, squares, weight, more=more, seed=seed)


@pytest.mark.parametrize("network", ["many outputs", "one output"])
@pytest.mark.parametrize("scale", [2.0**16, 1e-3])
def test_a_scaled_loss_scales_every_gradient(network, scale, backend):
    model, x = build(network)
    assert_equals_double_backward(model, x, squares, torch.ones(()), scale=scale)


def test_cross_entropy_with_labels(backend):
    model, x = build("many outputs")
    assert_equals_double_backward(model, x, nn.CrossEntropyLoss(), torch.randint(3, (7,)))


class Tempered(nn.Module):
    """A criterion with a parameter of its own, which the attribution holds constant."""

    def __init__(self):
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, output, labels):
        return nn.functional.cross_entropy(output * self.log_temperature.exp(), labels) + self.log_temperature.square()


@pytest.mark.parametrize("more", [nothing, through_output], ids=["loss alone", "gradient into the output too"])
def test_a_criterion_with_parameters_gets_their_gradients(more, backend):
    model, x = build("many outputs")
    criterion, labels = Tempered(), torch.randint(3, (7,))
    assert_equals_double_backward(model, x, criterion, labels, more=more)


def test_an_argument_that_requires_a_gradient_gets_it(backend):
    model, x = build("many outputs")
    soft = torch.rand(7, 3, dtype=torch.float64, requires_grad=True)
    assert_equals_double_backward(model, x, lambda output, soft: (output - soft).square().mean(), soft)


@pytest.mark.parametrize("network", ["many outputs", "one output", "shared layers"])
def test_frozen_parameters_leave_the_other_gradients(network, backend):
    model, x = build(network)
    weight = torch.randn_like(model(x).detach())
    want = loss_step(eager_attribute_loss, model, x, squares, weight, more=through_output)
    for parameter in list(model.parameters()):
        parameter.requires_grad_(False)
        got = loss_step(xa.attribute_loss, model, x, squares, weight, more=through_output)
        assert_same_step(got, want)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_results_without_gradients_equal_those_with(mode, backend):
    model, x = build("many outputs")
    labels = torch.randint(3, (7,))
    want = xa.attribute_loss(model, x, nn.functional.cross_entropy, labels)
    with mode():
        got = xa.attribute_loss(model, x, nn.functional.cross_entropy, labels)
    for name in ("loss", "output", "attribution"):
        assert not getattr(got, name).requires_grad
        assert relative_error(getattr(got, name), getattr(want, name)) <= 1e-12


@pytest.mark.parametrize("network", ["many outputs", "one output"])
def test_inputs_and_labels_made_in_inference_mode_are_served(network, backend):
    model, x = build(network)
    weight = torch.randn_like(model(x).detach())
    want = xa.attribute_loss(model, x, squares, weight)
    with torch.inference_mode():
        got = xa.attribute_loss(model, x.clone(), squares, weight.clone())
    assert relative_error(got.attribution, want.attribution) <= 1e-12
    assert relative_error(got.loss, want.loss) <= 1e-12


def test_the_loss_is_what_the_criterion_returns_and_the_attribution_sums_to_its_slope(backend):
    model, x = build("many outputs")
    loss, output, attribution = xa.attribute_loss(model, x, lambda output: output.square().sum() / 2)
    assert relative_error(output, model(x)) <= 1e-12
    assert relative_error(loss, output.square().sum() / 2) <= 1e-12
    assert relative_error(attribution.sum(1), output.square().sum(1)) <= 1e-12


@pytest.mark.parametrize(
    ("criterion", "given"),
    [
        (lambda output: output, r"shape \[7, 3\]"),
        (lambda output: output.sum().reshape(1), r"shape \[1\]"),
        (lambda output: 1.0, "float"),
        (lambda output: None, "NoneType"),
    ],
)
def test_a_criterion_that_is_not_a_scalar_is_refused(criterion, given):
    model, x = build("many outputs")
    with pytest.raises(ValueError, match=f"`criterion` returned.*{given}.*wanted a scalar"):
        xa.attribute_loss(model, x, criterion)


@pytest.mark.parametrize("kind", ["a constant", "a detached output", "only its parameter"])
def test_a_criterion_that_ignores_the_output_is_refused(kind):
    model, x = build("many outputs")
    parameter = nn.Parameter(torch.ones(()))
    criterion = {
        "a constant": lambda output: torch.zeros(()),
        "a detached output": lambda output: output.detach().sum(),
        "only its parameter": lambda output: parameter.exp(),
    }[kind]
    with pytest.raises(ValueError, match="`criterion` does not depend on the output"):
        xa.attribute_loss(model, x, criterion)


def test_an_error_of_the_criterion_reaches_the_caller():
    model, x = build("many outputs")
    with pytest.raises(IndexError):
        xa.attribute_loss(model, x, nn.functional.cross_entropy, torch.full((7,), 5))
