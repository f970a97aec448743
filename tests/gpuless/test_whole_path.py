"""Whole training steps through the Triton kernels, compiled and executed on the CPU."""

import functools

import pytest
import torch
from steps import DTYPES, assert_within_twice_pytorch, attributed, attributed_loss, convnet, drawn, perceptron
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed")

import xattr_cuda as xa

BATCH = 21
NETWORKS = {
    "perceptron, one output": (perceptron(20, 40, 33, 1), (20,)),
    "perceptron": (perceptron(20, 40, 33, 3), (20,)),
    "wide perceptron": (perceptron(20, 300, 40, 3), (20,)),
    "LeakyReLU": (perceptron(20, 40, 33, 3, activation=lambda: nn.LeakyReLU(0.2)), (20,)),
    "PReLU": (perceptron(20, 40, 33, 3, activation=nn.PReLU), (20,)),
    "convnet": (lambda: convnet(4, 40, 3), (3, 16, 16)),
}
pytestmark = pytest.mark.usefixtures("on_triton", "poisoned")
by_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
by_network = pytest.mark.parametrize("network", NETWORKS)


@pytest.fixture
def on_triton(emulated):
    with xa.use_backend("triton"):
        yield emulated


def draw(network, dtype, memory_format=torch.contiguous_format):
    build, sample = NETWORKS[network]
    return drawn(build, torch.randn(BATCH, *sample), dtype, memory_format)


def target_of(network):
    return None if "one output" in network else torch.randint(3, (BATCH,))


@by_network
@by_dtype
def test_an_attribution_and_its_gradients_are_within_twice_the_error_of_double_backward(network, dtype, emulated):
    assert_within_twice_pytorch(attributed(target_of(network)), functools.partial(draw, network, dtype))
    assert emulated.launches


@pytest.mark.parametrize("network", ["perceptron", "convnet"])
@by_dtype
def test_an_attributed_loss_is_within_twice_the_error_of_double_backward(network, dtype, emulated):
    labels = torch.randint(3, (BATCH,))
    assert_within_twice_pytorch(attributed_loss(labels), functools.partial(draw, network, dtype))
    assert emulated.launches


def test_channels_last_is_within_twice_the_error_of_double_backward(emulated):
    step = attributed(target_of("convnet"))
    assert_within_twice_pytorch(step, functools.partial(draw, "convnet", torch.float32, torch.channels_last))
    assert {"max_pool_kernel", "pool_pull_kernel", "pool_push_kernel"} <= {one.name for one in emulated.launches}


@by_network
def test_a_step_gives_the_same_bits_every_time(network):
    model, _, x = draw(network, torch.float32)
    step = attributed(target_of(network))
    first, second = step(True, model, x), step(True, model, x)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("network", ["perceptron", "convnet"])
def test_an_empty_batch_has_gradients_of_zero(network):
    model, _, x = draw(network, torch.float32)
    output, attribution = xa.attribute(model, x[:0], torch.zeros(0, dtype=torch.int64))
    (output.sum() + attribution.sum()).backward()
    assert output.shape == (0, 3)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
