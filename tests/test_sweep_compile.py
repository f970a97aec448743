"""A training step under torch.compile: every parameter gets the gradient that it gets without."""

import pytest
import torch
from torch import nn

import xattr_cuda as xa


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("loss", [False, True], ids=["attribute", "attribute_loss"])
def test_a_compiled_step_gives_every_parameter_its_gradient(outputs, loss):
    model = xa.models.xmlp([20, 32, 16, outputs], activation=nn.PReLU)
    x = torch.randn(12, 20)
    y = torch.rand(12, 1) if outputs == 1 else torch.randint(outputs, (12,))
    criterion = nn.BCEWithLogitsLoss() if outputs == 1 else nn.CrossEntropyLoss()
    sweep = xa.Sweep(model, criterion if loss else None)

    def step(x, y):
        if loss:
            value, _, attribution = sweep(x, y)
        else:
            output, attribution = sweep(x, None if outputs == 1 else y)
            value = criterion(output, y)
        return value + xa.priors.l1(attribution)

    def gradients(step):
        model.zero_grad(set_to_none=True)
        step(x, y).backward()
        return [p.grad.clone() for p in model.parameters()]

    want = gradients(step)
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        for got, wanted in zip(gradients(compiled), want, strict=True):
            torch.testing.assert_close(got, wanted)
