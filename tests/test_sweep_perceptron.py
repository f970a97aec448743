"""Perceptrons as one native call a sweep: which networks are ones, and steps at sizes that run by tiles."""

import pytest
import torch
from helpers import eager_attribute, eager_attribute_loss, run_step
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import xattr_cuda as xa
from xattr_cuda import ops
from xattr_cuda.sweep import perceptron_function
from xattr_cuda.sweep.perceptron import Perceptron
from xattr_cuda.sweep.run import Run

native = pytest.mark.skipif(bool(ops.unavailable("cpu")), reason=ops.unavailable("cpu") or "the extension is there")


def linear(n: int, k: int) -> nn.Linear:
    return nn.Linear(k, n, bias=False)


def sequence(*between: nn.Module) -> nn.Module:
    return nn.Sequential(linear(24, 20), *between, linear(3, 24))


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear(20, 20), linear(3, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + torch.relu(self.first(x)))


PERCEPTRONS = {
    "ReLU": sequence(nn.ReLU()),
    "LeakyReLU": sequence(nn.LeakyReLU(0.2)),
    "Identity and dropout in evaluation": sequence(nn.Identity(), nn.ReLU(), nn.Dropout(0.5)).eval(),
    "no hidden layer": linear(3, 20),
    "weights beyond the cache": xa.models.xmlp([20, 1024, 1024, 3]),
}
OTHERS = {
    "learned slope": sequence(nn.PReLU()),
    "dropout in training": sequence(nn.ReLU(), nn.Dropout(0.5)).train(),
    "two activations": sequence(nn.ReLU(), nn.LeakyReLU()),
    "no activation": sequence(),
    "activation at the end": nn.Sequential(sequence(nn.ReLU()), nn.ReLU()),
    "a slope of zero, which is not ReLU at infinity": sequence(nn.LeakyReLU(0.0)),
    "skip": Skip(),
}


def perceptron(model: nn.Module, *xs: Tensor):
    return Run.start(model, xs, ()).perceptron


@native
@pytest.mark.parametrize("name", PERCEPTRONS)
def test_a_perceptron_is_found(name):
    found = perceptron(PERCEPTRONS[name], torch.randn(5, 20))
    assert found is not None
    assert len(found.slopes) + 1 == len(found.weights)
    with xa.use_backend("reference"):
        assert perceptron(PERCEPTRONS[name], torch.randn(5, 20)) is None


@pytest.mark.parametrize("name", OTHERS)
def test_another_network_is_left_to_the_engine(name):
    assert perceptron(OTHERS[name], torch.randn(5, 20)) is None


def test_inputs_that_the_native_calls_do_not_take_are_left_to_the_engine():
    model = PERCEPTRONS["ReLU"]
    for x in (torch.randn(5, 4, 20), torch.randn(5, 20).double(), torch.randn(5, 19)):
        assert perceptron(model, x) is None


class Calls(TorchDispatchMode):
    """The operators of the package that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "xattr":
            self.names.append(func._schema.name.removeprefix("xattr::"))
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["C++", "Python"])
def node(request, monkeypatch):
    """Who makes the node of autograd."""
    if request.param == "Python":
        monkeypatch.setattr(Perceptron, "_node", perceptron_function)
    return request.param


@native
def test_a_step_is_one_call_forward_and_one_backward(node):
    with Calls() as calls:
        output, attribution = xa.attribute(xa.models.xmlp([20, 24, 16, 1]), torch.randn(40, 20))
        assert output.grad_fn is attribution.grad_fn
        (output.sum() + attribution.square().sum()).backward()
    assert calls.names == ["mlp_attribute", "mlp_attribute_backward"]


@pytest.mark.parametrize("outputs", [1, 10])
@pytest.mark.parametrize("rows", [32, 100, 601])
@pytest.mark.parametrize("activation", [nn.ReLU, lambda: nn.LeakyReLU(0.5)], ids=["ReLU", "LeakyReLU"])
def test_a_step_by_tiles_is_exact_where_float32_is(outputs, rows, activation, node, backend):
    """Small whole numbers and few of them: no sum is rounded, and no rounding moves a pre-activation across zero."""
    model = xa.models.xmlp([118, 512, 128, 32, outputs], activation=activation)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randint(-1, 2, weight.shape) * (torch.rand(weight.shape) < 4 / weight.shape[1]))
    x, u = torch.randint(-2, 3, (rows, 118)).float(), torch.randint(-1, 2, (rows, outputs)).float()
    c, d = torch.randint(-2, 3, (rows, outputs)), torch.randint(-2, 3, (rows, 118))

    def loss(output: Tensor, attribution: Tensor) -> Tensor:
        return (output * c).sum() + (attribution * d).sum()

    got = run_step(xa.attribute, model, x, cotangent=u, loss=loss)
    want = run_step(eager_attribute, model.double(), x.double(), cotangent=u.double(), loss=loss)
    for name, value in got.items():
        assert value.dtype == torch.float32
        assert torch.equal(value.double(), want[name]), name


@pytest.mark.parametrize("trained", [(), (0,), (3,), (1, 2)], ids=str)
@pytest.mark.parametrize("outputs", [1, 10])
def test_frozen_layers_have_no_gradient_and_the_others_have_theirs(trained, outputs, node, backend):
    model = xa.models.xmlp([20, 40, 30, 24, outputs]).double()
    for i, weight in enumerate(model.parameters()):
        weight.requires_grad_(i in trained)
    x, u = torch.randn(40, 20).double(), torch.randn(40, outputs).double()
    got = run_step(xa.attribute, model, x, cotangent=u)
    want = run_step(eager_attribute, model, x, cotangent=u)
    assert got.keys() == want.keys()
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], rtol=1e-10, atol=1e-10)


def test_the_attributed_loss_of_one_output_takes_gradients_into_all_results(node, backend):
    model = xa.models.xmlp([20, 40, 24, 1]).double()
    x, y = torch.randn(40, 20, dtype=torch.float64), torch.rand(40, 1, dtype=torch.float64)

    def gradients(attribute_loss):
        leaf = x.clone().requires_grad_()
        loss, output, attribution = attribute_loss(model, leaf, nn.functional.binary_cross_entropy_with_logits, y)
        total = 2 * loss + output.square().sum() + attribution.sin().sum()
        return torch.autograd.grad(total, [leaf, *model.parameters()])

    for got, want in zip(gradients(xa.attribute_loss), gradients(eager_attribute_loss), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.fixture(params=[1, 10], ids=["one output", "ten outputs"])
def step(request):
    """(leaves, loss) of a step that runs by tiles, whose last hidden cotangents are swept again."""
    model, x = xa.models.xmlp([20, 40, 24, request.param]), torch.randn(600, 20, requires_grad=True)
    u = torch.randn(600, request.param, requires_grad=True)
    output, attribution = xa.attribute(model, x, cotangent=u)
    return [x, u, *model.parameters()], output.sin().sum() + attribution.square().sum()


def test_a_graph_that_is_retained_can_be_used_again_and_another_not(node, step):
    leaves, loss = step
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves)


def test_gradients_that_nobody_asks_for_change_no_other(node, step):
    leaves, loss = step
    everything = torch.autograd.grad(loss, leaves, retain_graph=True)
    for k, leaf in enumerate(leaves):
        (alone,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        torch.testing.assert_close(alone, everything[k])


def test_a_weight_that_was_changed_in_place_is_noticed(node, step):
    leaves, loss = step
    with torch.no_grad():
        leaves[-1].mul_(2)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


def test_what_is_saved_passes_through_the_hooks_of_saved_tensors(node):
    """As checkpoints and offloading need it: every tensor is packed once and comes back by way of the hook."""
    model, x, packed = xa.models.xmlp([20, 40, 24, 1]), torch.randn(100, 20), []

    def gradients():
        output, attribution = xa.attribute(model, x)
        return lambda: torch.autograd.grad(output.sum() + attribution.square().sum(), list(model.parameters()))

    def pack(t):
        packed.append(t.clone())
        return len(packed) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda k: packed[k]):
        backward = gradients()
    want = gradients()()
    assert len(packed) >= 1 + 3 + 2 + 2  # input, weights, masks, cotangents
    for got, expected in zip(backward(), want, strict=True):
        assert torch.equal(got, expected)


@native
def test_gradients_of_gradients_are_refused_even_where_they_would_be_zero(step):
    leaves, loss = step
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(loss, leaves[-1], create_graph=True)


def test_transforms_of_functions_are_left_to_the_engine():
    model, x = PERCEPTRONS["ReLU"], torch.randn(5, 20)
    seen = []

    def of(x):
        seen.append(perceptron(model, x))
        return x.sum()

    torch.func.grad(of)(x)
    assert seen == [None]
