"""The program of a model: always that of its modules as they are now, cached, and never in the way of the model."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from helpers import assert_same_step, eager_attribute, run_step
from networks import Chain, build, linear
from torch import nn
from torch.nn.utils import parametrizations

import xattr_cuda as xa
from xattr_cuda.sweep import program, trace


def assert_sweeps_as_it_is(model, x):
    cotangent = torch.randn_like(model(x).detach())
    want = run_step(eager_attribute, model, x, cotangent=cotangent)
    assert_same_step(run_step(xa.attribute, model, x, cotangent=cotangent), want)


class Configured(nn.Module):
    """Reads what it was given in forward: a function, a list, a dictionary, a flag."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(linear(6, 6) for _ in range(3))
        self.act, self.order, self.options, self.skip = torch.relu, [0, 1, 2], {"slope": 0.1}, False

    def forward(self, x):
        for i in self.order:
            y = nn.functional.leaky_relu(self.act(self.layers[i](x)), self.options["slope"])
            x = x + y if self.skip else y
        return x


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "act", torch.abs),
        lambda m: m.order.reverse(),
        lambda m: m.order.pop(),
        lambda m: m.options.update(slope=0.7),
        lambda m: setattr(m, "skip", True),
    ],
)
def test_a_change_of_what_a_forward_reads_is_seen(change):
    model, x = Configured().double(), torch.randn(5, 6, dtype=torch.float64)
    assert_sweeps_as_it_is(model, x)
    change(model)
    assert_sweeps_as_it_is(model, x)


class Weighing(nn.Module):
    """Weighs its input by a tensor that is an attribute, and no buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.weights = linear(6, 3), torch.tensor([1.0, -2, 0, 3, 1, 1], dtype=torch.float64)

    def forward(self, x):
        return self.layer(x * self.weights)


def test_a_trace_leaves_nothing_in_a_model_and_happens_once():
    model, x = Weighing().double(), torch.randn(5, 6, dtype=torch.float64)
    before = set(vars(model))
    for _ in range(3):
        xa.attribute(model, x, 0)
    assert set(vars(model)) == before
    assert len(program._programs[model]) == 1
    assert_sweeps_as_it_is(model, x)
    want = xa.attribute(model, x, 0)
    torch.compiler.reset()
    got = torch.compile(lambda x: xa.attribute(model, x, 0), fullgraph=True, backend="aot_eager")(x)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.fixture
def swept():
    """A custom module that has been swept once, and an input."""
    model, x = build("a custom module")
    assert_sweeps_as_it_is(model, x)
    return model, x


CHANGES = {
    "a layer of the same type": lambda m: m.features.__setitem__(0, linear(6, 8).double()),
    "a layer of another width": lambda m: (
        m.features.__setitem__(0, linear(6, 9).double()),
        m.features.__setitem__(2, linear(9, 5).double()),
    ),
    "an activation of another type": lambda m: m.features.__setitem__(1, nn.PReLU().double()),
    "a longer chain": lambda m: m.features.append(nn.LeakyReLU(0.4)),
    "a shorter chain": lambda m: m.features.__delitem__(1),
    "a nested module": lambda m: setattr(m, "act", nn.Sequential(nn.ReLU(), linear(5, 5).double())),
    "a layer that is now shared": lambda m: setattr(m, "act", m.features[1]),
    "a new parameter": lambda m: setattr(m.head, "weight", nn.Parameter(torch.randn(3, 5).double())),
    "a parameter's data": lambda m: m.head.weight.data.copy_(torch.randn(3, 5)),
    "a slope": lambda m: setattr(m.act, "negative_slope", 0.7),
    "dropout": lambda m: setattr(m, "act", nn.Dropout(0.5)),
    "weight norm": lambda m: parametrizations.weight_norm(m.head),
    "frozen": lambda m: m.features.requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model_is_seen(change, swept):
    model, x = swept
    CHANGES[change](model)
    assert_sweeps_as_it_is(model, x)


def test_a_layer_that_is_replaced_in_a_sequence_is_seen():
    model, x = build("many outputs")
    assert_sweeps_as_it_is(model, x)
    model[0] = linear(6, 8).double()
    assert_sweeps_as_it_is(model, x)


def test_modules_that_change_places_are_seen(swept):
    model, x = build("a custom module")
    model.features = nn.Sequential(linear(6, 5), nn.ReLU(), linear(5, 5), nn.LeakyReLU(0.3)).double()
    assert_sweeps_as_it_is(model, x)
    model.features[1], model.features[3] = model.features[3], model.features[1]
    assert_sweeps_as_it_is(model, x)


def test_layers_that_are_shared_and_then_not_are_seen():
    model, x = build("shared layers")
    assert_sweeps_as_it_is(model, x)
    model[2], shared = linear(8, 8).double(), model[2]
    assert_sweeps_as_it_is(model, x)
    model[2] = shared
    assert_sweeps_as_it_is(model, x)


def test_dropout_follows_the_mode_and_the_rate():
    model, x = build("dropout")
    for training in (True, False, True):
        model.train(training)
        assert_sweeps_as_it_is(model, x)
    for p in (0.1, 0.9, 0.0, 1.0):
        model[2].p = p
        assert_sweeps_as_it_is(model, x)


def test_a_model_is_traced_once(swept, monkeypatch):
    model, x = swept

    def refuse(*args, **kwargs):
        raise AssertionError("traced again")

    monkeypatch.setattr(trace.Tracer, "trace", refuse)
    assert_sweeps_as_it_is(model, x)
    with pytest.raises(xa.UnsupportedLayerError):
        xa.attribute(Chain().double(), x, 0)


@pytest.mark.parametrize("network", ["a custom module", "many outputs", "PReLU", "weight norm", "shared layers"])
def test_a_copy_of_a_swept_model_sweeps_by_itself(network):
    model, x = build(network)
    assert_sweeps_as_it_is(model, x)
    before = xa.attribute(model, x, 0).attribution.detach()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert_sweeps_as_it_is(twin, x)
    assert torch.equal(xa.attribute(model, x, 0).attribution, before)


@pytest.mark.parametrize("wrap", [lambda model: model, xa.Sweep], ids=["model", "Sweep"])
def test_a_swept_model_can_be_pickled_and_saved(wrap, swept):
    model, x = swept
    wrapped = wrap(model)
    file = io.BytesIO()
    torch.save(wrapped, file)
    file.seek(0)
    for twin in (pickle.loads(pickle.dumps(wrapped)), torch.load(file, weights_only=False)):
        restored = twin.model if isinstance(twin, xa.Sweep) else twin
        assert torch.equal(xa.attribute(restored, x, 0).attribution, xa.attribute(model, x, 0).attribution)


@pytest.mark.parametrize("network", ["a custom module", "many outputs", "weight norm", "shared layers"])
def test_a_swept_model_is_freed(network):
    model, x = build(network)
    for _ in range(2):
        assert_sweeps_as_it_is(model, x)
        model.eval()
    alive = weakref.ref(model)
    programs = len(program._programs)
    del model
    gc.collect()
    assert alive() is None
    assert len(program._programs) < programs


def test_a_sweep_leaves_no_trace_in_the_model(swept):
    model, x = swept
    attributes = {name: set(vars(module)) for name, module in Chain().double().named_modules()}
    xa.attribute(model, x, 0)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(p.grad is None for p in model.parameters())


def test_sweep_is_a_module_with_the_model_s_parameters(swept):
    model, x = swept
    sweep = xa.Sweep(model)
    assert sweep.model is model
    assert list(sweep.parameters()) == list(model.parameters())
    got, want = sweep(x, 1), xa.attribute(model, x, 1)
    assert torch.equal(got.output, want.output)
    assert torch.equal(got.attribution, want.attribution)
    u = torch.rand(7, 3, dtype=torch.float64)
    assert torch.equal(sweep(x, cotangent=u).attribution, xa.attribute(model, x, cotangent=u).attribution)
    labels = torch.randint(3, (7,))
    with_loss = xa.Sweep(model, nn.CrossEntropyLoss())(x, labels)
    assert isinstance(with_loss, xa.LossAttribution)
    want = xa.attribute_loss(model, x, nn.CrossEntropyLoss(), labels)
    assert all(torch.equal(a, b) for a, b in zip(with_loss, want, strict=True))
