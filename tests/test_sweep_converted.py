"""Converted networks through the sweeps, in float64: against eager double backward, and complete."""

import copy
from typing import Any

import pytest
import torch
from helpers import Step, assert_same_step, eager_attribute, run_step
from torch import Tensor, nn
from zoo import NETWORKS, trained

import xattr_cuda as xa

TOLERANCE = 1e-9

by_name = pytest.mark.parametrize("name", NETWORKS)
by_kind = pytest.mark.parametrize("batch_norm", ["fold", "scale"])
by_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def build(name: str, batch_norm: Any, training: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """The converted network, a batch of four and a weighting of the outputs."""
    make, sample = NETWORKS[name]
    model = xa.convert(trained(make()).double(), batch_norm=batch_norm).model
    x = torch.randn(4, *sample, dtype=torch.float64)
    with torch.no_grad():
        cotangent = torch.randn_like(model.eval()(x))
    return model.train(training), x, cotangent


def step(attribute: Any, model: nn.Module, x: Tensor, cotangent: Tensor) -> Step:
    """One step of a copy of the model, and the buffers that it leaves."""
    model = copy.deepcopy(model)
    found = run_step(attribute, model, x, cotangent=cotangent)
    return {**found, **{f"buffer {name}": t for name, t in model.named_buffers()}}


@by_name
@by_kind
@by_mode
def test_every_gradient_is_that_of_double_backward(name, batch_norm, training, backend):
    given = build(name, batch_norm, training)
    got, want = step(xa.attribute, *given), step(eager_attribute, *given)
    assert got.keys() == want.keys()
    assert_same_step(got, want, TOLERANCE)
    gradients = [g for key, g in got.items() if key.startswith("gradient")]
    served = sum(g is not None and bool(g.any()) for g in gradients)
    assert served > len(gradients) // 2  # narrow branches may be dead, the network is not


@by_name
@by_kind
@by_mode
def test_attributions_are_complete(name, batch_norm, training, backend):
    model, x, cotangent = build(name, batch_norm, training)
    with torch.no_grad():
        output, attribution = xa.attribute(model, x, cotangent=cotangent)
    explained = (output * cotangent).flatten(1).sum(1)
    torch.testing.assert_close(attribution.flatten(1).sum(1), explained, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["resnet", "densenet", "unet transposed", "perceptron"])
@by_kind
def test_a_compiled_step_has_every_gradient(name, batch_norm):
    model, x, cotangent = build(name, batch_norm, training=True)
    for module in model.modules():  # random masks are drawn in another order in a graph
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_rate"):
            module.drop_rate = 0.0
    torch.compiler.reset()
    compiled = torch.compile(xa.attribute, fullgraph=True, backend="aot_eager")
    assert_same_step(step(compiled, model, x, cotangent), step(eager_attribute, model, x, cotangent), TOLERANCE)
