"""attribute and attribute_loss against eager double backward in float64, over networks drawn at random."""

from itertools import pairwise

import torch
from helpers import (
    assert_same_step,
    attribution_loss,
    curved_loss,
    eager_attribute,
    eager_attribute_loss,
    output_loss,
    run_step,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import linear
from torch import nn

import xattr_cuda as xa

BACKENDS = [name for name in ("reference", "cpu") if not xa.ops.unavailable(name)]
LOSSES = [curved_loss, output_loss, attribution_loss]
widths = st.sampled_from([1, 2, 5, 31, 32, 33, 40])


@st.composite
def between(draw, width):
    """The layers after a linear one: an activation or none, dropout or none."""
    slope = draw(st.floats(-1, 2))
    activation = draw(
        st.sampled_from(
            [
                [],
                [nn.ReLU(inplace=draw(st.booleans()))],
                [nn.LeakyReLU(slope, inplace=False)],
                [nn.PReLU(init=slope)],
                [nn.PReLU(width, init=slope)],
                [nn.Identity(), nn.ReLU()],
            ]
        )
    )
    rate = draw(st.sampled_from([0.0, 0.0, 0.3, 1.0]))
    return activation + ([nn.Dropout(rate)] if rate else [])


@st.composite
def networks(draw):
    sizes = [draw(widths) for _ in range(draw(st.integers(2, 5)))]
    layers = draw(between(sizes[0])) if draw(st.booleans()) else []
    layers = [layer for layer in layers if not getattr(layer, "inplace", False)]  # x is a leaf
    for fan_in, fan_out in pairwise(sizes):
        layers += [linear(fan_in, fan_out), *draw(between(fan_out))]
    model = nn.Sequential(*layers).double().train(draw(st.booleans()))
    for parameter in model.parameters():
        parameter.requires_grad_(draw(st.sampled_from([True, True, False])))
    return model, sizes[0], sizes[-1]


@st.composite
def steps(draw):
    """(model, x, target, cotangent): a network, a batch of any stride, and what to explain."""
    model, fan_in, fan_out = draw(networks())
    torch.manual_seed(draw(st.integers(0, 2**31)))
    batch = draw(st.sampled_from([0, 1, 2, 7, 33]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    x = torch.randn(batch, 2 * fan_in, dtype=torch.float64)
    x = draw(st.sampled_from([x[:, :fan_in], x[:, ::2], x[:, :fan_in].mT.contiguous().mT]))
    if not draw(st.integers(0, 4)):
        x = x[:1].expand(x.shape)
    if any(isinstance(layer, nn.Dropout) for layer in list(model)[:3]):
        x = x.contiguous()  # which element a random bit falls on depends on strides; strided dropout has its own test
    kind = draw(st.sampled_from(["cotangent", "int", "labels", "list", "none"]))
    if kind == "cotangent" or (kind == "none" and fan_out > 1):
        return model, x, None, torch.randn(batch, fan_out, dtype=torch.float64)
    target = {
        "none": None,
        "int": draw(st.integers(-fan_out, fan_out - 1)),
        "labels": torch.randint(fan_out, (batch,)),
        "list": torch.randint(fan_out, (batch,)).tolist() if batch else 0,
    }[kind]
    return model, x, target, None


@settings(max_examples=150)
@given(steps(), st.sampled_from(LOSSES), st.booleans(), st.sampled_from(BACKENDS))
def test_attribute_equals_double_backward(step, loss, input_grad, backend):
    model, x, target, cotangent = step
    want = run_step(eager_attribute, model, x, target, cotangent=cotangent, loss=loss)
    if not (input_grad or cotangent is not None or any(p.requires_grad for p in model.parameters())):
        input_grad = True
    with xa.use_backend(backend):
        got = run_step(xa.attribute, model, x, target, cotangent=cotangent, loss=loss, input_grad=input_grad)
    assert_same_step(got, want)


@settings(max_examples=80)
@given(steps(), st.sampled_from([output_loss, attribution_loss, curved_loss]), st.sampled_from(BACKENDS))
def test_attribute_loss_equals_double_backward(step, prior, backend):
    model, x, _, weight = step
    weight = torch.ones(()) if weight is None else weight

    def with_loss(attribute_loss):
        def attribute(model, x, target, *, cotangent):
            loss, output, attribution = attribute_loss(model, x, lambda output: (output * weight).sin().sum())
            return (
                output,
                attribution + 0 * loss if attribution.numel() == 0 else attribution + loss / attribution.numel(),
            )

        return attribute

    want = run_step(with_loss(eager_attribute_loss), model, x, loss=prior)
    with xa.use_backend(backend):
        got = run_step(with_loss(xa.attribute_loss), model, x, loss=prior)
    assert_same_step(got, want)
