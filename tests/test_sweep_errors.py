"""Models and inputs that have no sweep: refused with the layer's qualified name, what was met and what to do."""

from collections import OrderedDict

import pytest
import torch
from helpers import curved_loss
from networks import Chain, linear
from torch import nn

import xattr_cuda as xa


def within(layer):
    """The layer as features.1 of a network for inputs [B, 6]."""
    features = nn.Sequential(linear(6, 6), layer, nn.ReLU())
    return nn.Sequential(OrderedDict(features=features, head=linear(6, 3)))


NOT_HOMOGENEOUS = [
    nn.Linear(6, 6),
    *[kind() for kind in (nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus)],
    *[kind() for kind in (nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink)],
    *[kind() for kind in (nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink)],
    *[nn.Threshold(0.1, 20), nn.Softmax(1), nn.LogSoftmax(1), nn.Softmin(1)],
    *[nn.BatchNorm1d(6), nn.BatchNorm2d(6), nn.BatchNorm3d(6), nn.InstanceNorm1d(6), nn.InstanceNorm2d(6)],
    *[nn.InstanceNorm3d(6), nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.RMSNorm(6)],
    *[nn.AlphaDropout(), nn.FeatureAlphaDropout()],
]
UNSUPPORTED = [
    nn.LPPool1d(2, 2),
    nn.FractionalMaxPool2d(2, output_size=2),
    nn.RReLU(),
    nn.GLU(),
    nn.LSTM(6, 6),
]


def by_kind(module):
    return type(module).__name__


@pytest.mark.parametrize("layer", NOT_HOMOGENEOUS, ids=by_kind)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_layer_that_is_not_homogeneous_is_named(layer, training):
    model = within(layer).train(training)
    for call in (
        lambda: xa.attribute(model, torch.randn(5, 6), 0),
        lambda: xa.attribute_loss(model, torch.randn(5, 6), sum),
    ):
        with pytest.raises(xa.NotHomogeneousError) as error:
            call()
        assert error.value.layer == "features.1"
        assert error.value.kind == by_kind(layer)
        assert f"'features.1' ({by_kind(layer)})" in str(error.value)
        assert error.value.reason in str(error.value)
        assert error.value.remedy in str(error.value)


@pytest.mark.parametrize("layer", UNSUPPORTED, ids=by_kind)
def test_a_layer_without_a_rule_is_named(layer):
    with pytest.raises(xa.UnsupportedLayerError) as error:
        xa.attribute(within(layer), torch.randn(5, 6), 0)
    assert error.value.layer == "features.1"
    assert error.value.kind == by_kind(layer)
    assert "register_rule" in error.value.remedy


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)], ids=by_kind)
def test_a_model_that_is_one_layer_that_is_not_homogeneous_is_named(layer):
    with pytest.raises(xa.NotHomogeneousError, match=by_kind(layer)):
        xa.attribute(layer, torch.randn(5, 6), 0)


def test_errors_of_layers_are_value_errors_of_one_family():
    assert issubclass(xa.NotHomogeneousError, xa.LayerError)
    assert issubclass(xa.UnsupportedLayerError, xa.LayerError)
    assert issubclass(xa.LayerError, ValueError)
    assert not issubclass(xa.UnsupportedLayerError, xa.NotHomogeneousError)


def test_a_subclass_that_computes_something_else_is_not_taken_for_its_base():
    class Squared(nn.ReLU):
        def forward(self, x):
            return super().forward(x).square()

    with pytest.raises(xa.LayerError):
        xa.attribute(within(Squared()), torch.randn(5, 6), 0)


def _functional(self, x):
    return torch.tanh(self.features(x))


def _product(self, x):
    return self.features(x) * self.act(self.features(x))


def _bias(self, x):
    return self.features(x) + self.head.weight.sum()


def _normalised(self, x):
    return nn.functional.layer_norm(self.features(x), (5,))


def _branch(self, x):
    return self.head(self.features(x)) if x.sum() > 0 else x


def _two_results(self, x):
    return self.head(self.features(x)), 3


def _constant(self, x):
    return self.head(torch.ones(5, 5))


def _view(self, x):
    x = self.features(x)
    first = x[:, :2]
    x.relu_()
    return x + first.sum(1, keepdim=True)


def _assigned(self, x):
    x = self.features(x)
    x[:, 0] = 0
    return self.head(x)


def _pieces(self, x):
    return torch.stack(self.features(x).chunk(5, 1)[::2])


def _sorted(self, x):
    return torch.sort(self.features(x)).values


@pytest.mark.parametrize(
    ("forward", "error", "mentions"),
    [
        (_functional, xa.NotHomogeneousError, "tanh"),
        (_product, xa.NotHomogeneousError, "'mul'"),
        (_bias, xa.NotHomogeneousError, "'add'"),
        (_normalised, xa.NotHomogeneousError, "'layer_norm'"),
        (_branch, xa.UnsupportedLayerError, "traced"),
        (_two_results, xa.UnsupportedLayerError, "something else than tensors"),
        (_constant, xa.UnsupportedLayerError, "Register it as a buffer"),
        (_view, xa.UnsupportedLayerError, "in place.*another view"),
        (_assigned, xa.UnsupportedLayerError, "item assignment"),
        (_pieces, xa.UnsupportedLayerError, "one by one"),
        (_sorted, xa.UnsupportedLayerError, "sort"),
    ],
)
def test_a_forward_that_has_no_sweep_is_refused_with_what_was_met(forward, error, mentions):
    model = type("Custom", (Chain,), {"forward": forward})()
    with pytest.raises(error, match=mentions):
        xa.attribute(model, torch.randn(5, 6), 0)


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
@pytest.mark.parametrize("where", ["features.0", "features", ""])
def test_hooks_are_refused_until_they_are_removed(register, where):
    model = within(nn.Identity())
    xa.attribute(model, torch.randn(5, 6), 0)
    handle = getattr(model.get_submodule(where), register)(lambda *args: None)
    with pytest.raises(xa.UnsupportedLayerError, match="hooks") as error:
        xa.attribute(model, torch.randn(5, 6), 0)
    assert error.value.layer == where
    handle.remove()
    xa.attribute(model, torch.randn(5, 6), 0)


def test_a_hook_on_sweep_itself_runs():
    sweep, seen = xa.Sweep(within(nn.Identity())), []
    sweep.register_forward_hook(lambda module, args, result: seen.append(result))
    result = sweep(torch.randn(5, 6), 0)
    assert len(seen) == 1
    assert seen[0] is result


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (torch.zeros(5, 6, dtype=torch.long), TypeError, "int64.*floating"),
        (torch.zeros(5, 6, dtype=torch.bool), TypeError, "bool.*floating"),
        (torch.zeros(5, 6, dtype=torch.complex64), TypeError, "complex64.*floating"),
        (torch.tensor(1.0), ValueError, "scalar.*batch"),
        ((torch.zeros(5, 6), torch.zeros(5, 6)), ValueError, "takes 1 argument.*2 inputs"),
        ((torch.zeros(5, 6), 3), TypeError, r"`inputs\[1\]` is a int"),
        ((), ValueError, "tuple of 0"),
        ([torch.zeros(5, 6)], TypeError, "list.*tensor"),
        (None, TypeError, "NoneType.*tensor"),
        (torch.zeros(5, 7), ValueError, r"'features.0' \(Linear\).*6.*\[5, 7\]"),
        (torch.zeros(6), ValueError, r"'features.0' \(Linear\).*\[6\]"),
        (torch.zeros(5, 6, dtype=torch.float64), ValueError, r"'features.0'.*float32.*float64.*convert"),
        (torch.zeros(5, 6, dtype=torch.bfloat16), ValueError, r"'features.0'.*float32.*bfloat16.*convert"),
        (torch.zeros(5, 6, device="meta"), ValueError, r"'features.0'.*cpu.*meta.*convert"),
    ],
)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_wrong_inputs_are_refused(inputs, error, message, grad, backend):
    if backend == "cpu" and getattr(inputs, "is_meta", False):
        error, message = RuntimeError, "'cpu' was forced.*meta"
    with pytest.raises(error, match=message), torch.set_grad_enabled(grad):
        xa.attribute(within(nn.Identity()), inputs, 0)


@pytest.mark.parametrize("shape", [(5, 6), (5, 4, 6)], ids=str)
def test_slopes_for_other_channels_are_refused(shape, backend):
    with pytest.raises(ValueError, match=r"'features.1' \(PReLU\).*5 slopes"):
        xa.attribute(within(nn.PReLU(5)), torch.randn(shape), cotangent=torch.ones(*shape[:-1], 3))


def test_flattening_the_batch_is_refused():
    model = nn.Sequential(nn.Flatten(0), linear(30, 3))
    with pytest.raises(xa.UnsupportedLayerError, match=r"'0' \(Flatten\).*start_dim=1"):
        xa.attribute(model, torch.randn(5, 6), 0)


def test_something_else_than_a_module_is_refused():
    with pytest.raises(TypeError, match=r"function.*Module"):
        xa.attribute(lambda x: x, torch.randn(5, 6), 0)


def test_a_batch_without_batch_features_may_be_one_dimensional(backend):
    """A chain of elementwise layers serves a vector: each element is a sample with one output."""
    x = torch.randn(9, requires_grad=True)
    scale = torch.randn(9, requires_grad=True)
    output, attribution = xa.attribute(nn.Sequential(nn.ReLU()), x, cotangent=scale)
    assert torch.equal(output, x.relu())
    assert torch.equal(attribution, scale * x.relu())
    gradients = torch.autograd.grad(curved_loss(output, attribution), (x, scale))
    want = torch.autograd.grad(curved_loss(x.relu(), scale * x.relu()), (x, scale))
    torch.testing.assert_close(gradients, want)
