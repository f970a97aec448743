"""Models of the package: structure, initialisation and errors."""

from itertools import pairwise

import pytest
import torch
from cases import NETWORKS
from torch import nn

import xattr_cuda as xa


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_of_the_benchmarks_are_x_dnns(name):
    widths = NETWORKS[name].widths
    model = xa.models.xmlp(widths)
    x = torch.randn(3, widths[0])
    assert [list(p.shape) for p in model.parameters()] == [[n, k] for k, n in pairwise(widths)]
    torch.testing.assert_close(model(4 * x), 4 * model(x), rtol=0, atol=0)
    output, attribution = xa.attribute(model, x, None if widths[-1] == 1 else 0)
    torch.testing.assert_close(attribution.sum(1), output[:, 0], rtol=1e-4, atol=1e-5)


def test_nothing_follows_the_output():
    for dropout in (0.0, 0.3):
        model = xa.models.xmlp([4, 8, 8, 2], activation=nn.PReLU, dropout=dropout)
        assert isinstance(model[-1], nn.Linear)
        assert sum(isinstance(layer, nn.PReLU) for layer in model) == 2
        assert sum(isinstance(layer, nn.Dropout) for layer in model) == 2 * bool(dropout)


def test_one_linear_layer_is_the_smallest_perceptron():
    assert [type(layer) for layer in xa.models.xmlp([4, 2])] == [nn.Linear]


def test_dtype_and_device_reach_every_parameter():
    model = xa.models.xmlp([4, 8, 2], activation=nn.PReLU, dtype=torch.bfloat16, device="meta")
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.bfloat16, "meta")}


@pytest.mark.parametrize("widths", [[], [4], [4, 0, 1], [4, -1]], ids=str)
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ValueError, match="`widths` is"):
        xa.models.xmlp(widths)
