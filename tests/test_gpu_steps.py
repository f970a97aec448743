"""Training steps on a GPU: gradients against double backward in float64, CUDA graphs, torch.compile, streams."""

import functools

import pytest
import torch
from helpers import relative_error
from steps import DTYPES, assert_within_twice_pytorch, attributed, attributed_loss, convnet, drawn, perceptron
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

import xattr_cuda as xa

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that PyTorch can use")
DEVICE = "cuda"
NETWORKS = {
    "perceptron, one output": (perceptron(118, 128, 64, 33, 1), (118,)),
    "perceptron": (perceptron(118, 128, 64, 33, 10), (118,)),
    "wide perceptron": (perceptron(300, 1024, 700, 10), (300,)),
    "PReLU": (perceptron(37, 65, 33, 3, activation=nn.PReLU), (37,)),
    "convnet": (lambda: convnet(16, 40, 10), (3, 16, 16)),
    "convnet, one output": (lambda: convnet(16, 40, 1), (3, 16, 16)),
}
BATCH = 100

by_network = pytest.mark.parametrize("network", NETWORKS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
by_precision = pytest.mark.parametrize("precision", ["highest", "high"])


@pytest.fixture(autouse=True)
def _precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def draw(network: str, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format):
    build, sample = NETWORKS[network]
    return drawn(build, torch.randn(BATCH, *sample, device=DEVICE), dtype, memory_format)


def target_of(network: str) -> Tensor | None:
    return None if "one output" in network else torch.randint(3, (BATCH,), device=DEVICE)


@by_network
@by_dtype
def test_an_attribution_and_its_gradients_are_within_twice_the_error_of_double_backward(network, dtype):
    assert_within_twice_pytorch(attributed(target_of(network)), functools.partial(draw, network, dtype))


@by_precision
@by_network
def test_products_of_float32_have_the_precision_that_pytorch_is_set_to(network, precision):
    torch.set_float32_matmul_precision(precision)
    assert_within_twice_pytorch(attributed(target_of(network)), functools.partial(draw, network, torch.float32))


@pytest.mark.parametrize("network", [name for name in NETWORKS if "one output" not in name])
@by_dtype
def test_an_attributed_loss_is_within_twice_the_error_of_double_backward(network, dtype):
    assert_within_twice_pytorch(
        attributed_loss(torch.randint(3, (BATCH,), device=DEVICE)), functools.partial(draw, network, dtype)
    )


@by_dtype
def test_channels_last_is_within_twice_the_error_of_double_backward(dtype):
    assert_within_twice_pytorch(
        attributed(target_of("convnet")), functools.partial(draw, "convnet", dtype, torch.channels_last)
    )


def training_step(network: str):
    """(model, x, a function of x that takes one step with a prior and leaves the gradients in the model)."""
    model, _, x = draw(network, torch.float32)
    target = target_of(network)

    def step(x: Tensor) -> Tensor:
        model.zero_grad(set_to_none=True)
        output, attribution = xa.attribute(model, x, target)
        loss = output.square().mean() + xa.priors.l1(attribution)
        loss.backward()
        return loss

    return model, x, step


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]


@by_network
def test_a_step_is_captured_as_a_cuda_graph_and_replayed_on_other_inputs(network):
    model, x, step = training_step(network)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(x)
    held = [p.grad for p in model.parameters()]
    for _ in range(2):
        x.copy_(torch.randn_like(x))
        graph.replay()
        got = [g.clone() for g in held]
        step(x)
        for a, b in zip(got, gradients(model), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@by_network
def test_a_step_on_another_stream_needs_no_synchronisation(network):
    model, x, step = training_step(network)
    step(x)
    want = gradients(model)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)
        late = torch.zeros_like(x)
        late.copy_(x)  # only what follows on this stream sees it
        step(late)
    side.synchronize()
    for a, b in zip(gradients(model), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", ["perceptron", "perceptron, one output", "convnet"])
def test_a_compiled_step_gives_every_parameter_its_gradient(network):
    model, _, x = draw(network, torch.float32)
    target = target_of(network)

    def loss(x: Tensor) -> Tensor:
        output, attribution = xa.attribute(model, x, target)
        return output.square().mean() + xa.priors.l1(attribution)

    def taken(function) -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        function(x).backward()
        return gradients(model)

    want = taken(loss)
    torch.compiler.reset()
    compiled = torch.compile(loss)
    got, codes = run_and_get_code(taken, compiled)
    for found in (got, taken(compiled)):
        for a, b in zip(found, want, strict=True):
            assert relative_error(a, b) <= 1e-4
    assert network != "convnet" or any("def max_pool_kernel" in code for code in codes), "kernels are not seen"


def test_a_step_does_not_wait_for_the_device():
    _, x, step = training_step("perceptron, one output")
    step(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_gives_the_same_bits_every_time():
    for network in NETWORKS:
        if "convnet" in network:  # cuDNN's own weight gradients may be summed in another order
            continue
        model, x, step = training_step(network)
        step(x)
        want = gradients(model)
        step(x)
        assert all(torch.equal(a, b) for a, b in zip(gradients(model), want, strict=True)), network
