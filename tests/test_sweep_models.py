"""Every image model of the package through the sweeps, in float64: against eager double backward, and complete."""

import copy
import zlib
from typing import NamedTuple

import pytest
import torch
from helpers import Step, assert_same_step, collect, curved_loss, eager_attribute, eager_attribute_loss, run_step
from torch import Tensor, nn

import xattr_cuda as xa

NAMES = [
    *("xvgg11", "xfixup_resnet18", "xalexnet", "xvgg16", "xfixup_resnet50"),
    *("xvgg13", "xvgg19", "xfixup_resnet34", "xfixup_resnet101", "xfixup_resnet152"),
]
TOLERANCE = 1e-9
LABELS = torch.tensor([2, 0])


def on(names: list[str]) -> pytest.MarkDecorator:
    """Run with these models. The lists are all heads of NAMES, so that tests in a row share a model and its truth."""
    return pytest.mark.parametrize("case", names, indirect=True, scope="module")


class Case(NamedTuple):
    """A network in evaluation, a batch of two, a weighting of the outputs, and the step by double backward."""

    model: nn.Module
    x: Tensor
    cotangent: Tensor
    want: Step


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model without a zero among its parameters, and images on which its output has norm one."""
    size = 64 if name == "xalexnet" else 32
    model = getattr(xa.models, name)(num_classes=3, image_size=size, device="meta", dtype=torch.float64)
    model = model.to_empty(device="cpu").eval()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    *hidden, last = model.parameters()
    with torch.no_grad():
        for weight in (*hidden, last):
            nn.init.kaiming_uniform_(weight)
        last /= model(x).norm()
    return model, x


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed((request.config.option.seed + zlib.crc32(request.param.encode())) % 2**31)
    model, x = build(request.param)
    cotangent = torch.randn(2, 3, dtype=torch.float64)
    return Case(model, x, cotangent, run_step(eager_attribute, model, x, cotangent=cotangent))


@on(NAMES)
def test_every_gradient_is_that_of_double_backward(case):
    got = run_step(xa.attribute, case.model, case.x, cotangent=case.cotangent)
    assert_same_step(got, case.want, TOLERANCE)
    assert all(t is not None and t.any() for t in got.values())  # nothing is right by being zero


@on(NAMES)
def test_attributions_are_complete(case):
    with torch.no_grad():
        output, attribution = xa.attribute(case.model, case.x, cotangent=case.cotangent)
    explained = (output * case.cotangent).sum(1)
    torch.testing.assert_close(attribution.flatten(1).sum(1), explained, rtol=1e-10, atol=1e-10)


@on(NAMES)
def test_a_compiled_step_has_every_gradient(case):
    torch.compiler.reset()
    compiled = torch.compile(xa.attribute, fullgraph=True, backend="aot_eager")
    got = run_step(compiled, case.model, case.x, cotangent=case.cotangent)
    assert_same_step(got, case.want, TOLERANCE)


@on(NAMES[:2])
def test_channels_last_changes_no_gradient_and_stays(case):
    model = copy.deepcopy(case.model).to(memory_format=torch.channels_last)
    x = case.x.contiguous(memory_format=torch.channels_last)
    got = run_step(xa.attribute, model, x, cotangent=case.cotangent)
    assert_same_step(got, case.want, TOLERANCE)
    for name in ("attribution", "gradient of the input"):
        assert got[name].is_contiguous(memory_format=torch.channels_last)


@on(NAMES[:3])
def test_attribute_loss_in_training_has_the_gradients_of_double_backward(case):
    model = copy.deepcopy(case.model).train()

    def step(attribute_loss) -> Step:
        torch.manual_seed(0)  # of dropout
        x = case.x.detach().requires_grad_()
        loss, output, attribution = attribute_loss(model, x, nn.functional.cross_entropy, LABELS)
        results = {"loss": loss, "output": output, "attribution": attribution}
        leaves = {**dict(model.named_parameters()), "the input": x}
        return collect(loss + curved_loss(output, attribution), results, leaves)

    assert_same_step(step(xa.attribute_loss), step(eager_attribute_loss), TOLERANCE)
