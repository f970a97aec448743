"""Rules of a user's own: a module, a module with parameters, a function. The example of CONTRIBUTING.md runs as is."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_same_step, eager_attribute, run_step
from layers import Traced, assert_rule, of_call, of_module
from networks import linear
from torch import Tensor, nn

import xattr_cuda as xa
from xattr_cuda.sweep.rules import registry

CONTRIBUTING = Path(__file__).parent.parent / "CONTRIBUTING.md"


pytestmark = pytest.mark.usefixtures("restored_rules")


@pytest.fixture
def example() -> SimpleNamespace:
    """The names that the code under "A rule of your own" defines."""
    found = re.search(r"^### A rule of your own$.*?^```python\n(.*?)^```$", CONTRIBUTING.read_text(), re.M | re.S)
    assert found is not None, "CONTRIBUTING.md has lost its example"
    names: dict[str, object] = {}
    exec(found[1], names)
    return SimpleNamespace(**names)


class SwapHalves(nn.Module):
    """The two halves of the features exchanged, by a function without a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fftshift(x, dim=-1)


class SwapHalvesRule(xa.Layer):
    """The map of SwapHalves is its own transpose, for an even number of features."""

    recomputes = True

    def __init__(self, module: nn.Module) -> None:
        self.factor = 1.0

    def swap(self, t: Tensor) -> Tensor:
        left, right = t.chunk(2, -1)
        return self.factor * torch.cat([right, left], -1)

    def forward(self, params, h):
        return self.swap(h), ()

    def tangent(self, frame, v):
        return self.swap(v)

    def cotangent(self, frame, g):
        return self.swap(g)


class OppositeRule(SwapHalvesRule):
    """The same with the other sign, to tell it apart."""

    def __init__(self, module: nn.Module) -> None:
        self.factor = -1.0


class Rotated(nn.Module):
    """A network that rotates its feature maps in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, bias=False), nn.Conv2d(4, 3, (3, 2), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.rot90(self.first(x).relu(), dims=(2, 3))
        return self.second(x).relu().rot90(-1, [-2, -1]).mean((2, 3))


def swapped() -> nn.Module:
    return nn.Sequential(linear(6, 8), nn.ReLU(), SwapHalves(), linear(8, 3)).double()


def low_rank(example: SimpleNamespace) -> nn.Module:
    return nn.Sequential(
        example.LowRank(6, 2, 8), nn.ReLU(), linear(8, 5), nn.ReLU(), example.LowRank(5, 2, 3)
    ).double()


def assert_exact(model: nn.Module, x: Tensor) -> None:
    """Gradients are those of double backward, eagerly and in a compiled graph."""
    want = run_step(eager_attribute, model, x, 1)
    assert_same_step(run_step(xa.attribute, model, x, 1), want)
    torch.compiler.reset()
    compiled = torch.compile(xa.attribute, fullgraph=True, backend="aot_eager")
    assert_same_step(run_step(compiled, model, x, 1), want)


def test_a_module_without_parameters_is_taught():
    model, x = swapped(), torch.randn(5, 6, dtype=torch.float64)
    with pytest.raises(xa.UnsupportedLayerError, match=r"fft.*register_rule"):
        xa.attribute(model, x, 1)
    xa.register_rule(SwapHalves, SwapHalvesRule)
    assert_rule(of_module(SwapHalves(), torch.randn(5, 8, dtype=torch.float64)))
    assert_exact(model, x)


def test_the_module_of_the_example_has_the_gradients_of_double_backward(example):
    assert_rule(of_module(example.LowRank(6, 2, 4), torch.randn(5, 6, dtype=torch.float64)))
    assert_exact(low_rank(example), torch.randn(5, 6, dtype=torch.float64))


def test_the_rule_of_the_example_is_used_and_makes_one_layer(example, monkeypatch):
    calls = []
    for name in ("forward", "tangent", "cotangent", "parameter_gradients"):
        run = getattr(example.LowRankRule, name)
        monkeypatch.setattr(example.LowRankRule, name, lambda *a, run=run, name=name: calls.append(name) or run(*a))
    run_step(xa.attribute, low_rank(example), torch.randn(5, 6, dtype=torch.float64), 1)
    assert set(calls) == {"forward", "tangent", "cotangent", "parameter_gradients"}


def test_a_frozen_parameter_of_the_example_changes_no_other_gradient(example):
    model, x = low_rank(example), torch.randn(5, 6, dtype=torch.float64)
    model[0].a.requires_grad_(False)
    assert_same_step(*(run_step(attribute, model, x, 1) for attribute in (xa.attribute, eager_attribute)))


def test_the_function_of_the_example_has_the_gradients_of_double_backward(example):
    model, x = Rotated().double(), torch.randn(3, 2, 6, 7, dtype=torch.float64)
    for target in (torch.rot90, "rot90"):
        assert_rule(of_call(target, Traced(x), 3, (1, 3)))
    assert_exact(model, x)


def test_a_function_and_a_method_are_taught_apart(example):
    x = torch.randn(3, 2, 6, 7, dtype=torch.float64)
    del registry._FUNCTIONS["rot90"]
    with pytest.raises(xa.UnsupportedLayerError, match="rot90"):
        xa.attribute(Rotated().double(), x, 1)
    xa.register_rule("rot90", example.rotation)
    xa.attribute(Rotated().double(), x, 1)


def test_a_registration_replaces_the_rule_for_networks_traced_after_it():
    model, x = swapped(), torch.randn(5, 6, dtype=torch.float64)
    xa.register_rule(SwapHalves, SwapHalvesRule)
    output, attribution = xa.attribute(model, x, 1)
    xa.register_rule(SwapHalves, OppositeRule)
    torch.testing.assert_close(xa.attribute(model, x, 1).attribution, attribution)
    again = xa.attribute(copy.deepcopy(model), x, 1)
    torch.testing.assert_close(again.output, -output)
    torch.testing.assert_close(again.attribution, -attribution)


def test_a_subclass_with_a_forward_of_its_own_does_not_inherit_the_rule():
    class Same(SwapHalves):
        pass

    class Other(SwapHalves):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    xa.register_rule(SwapHalves, SwapHalvesRule)
    x = torch.randn(5, 8, requires_grad=True)
    model = nn.Sequential(Same(), linear(8, 1))
    torch.testing.assert_close(xa.attribute(model, x).attribution, eager_attribute(model, x)[1])
    with pytest.raises(xa.UnsupportedLayerError, match="fft"):
        xa.attribute(nn.Sequential(Other(), linear(8, 1)), x)


@pytest.mark.parametrize("refusal", [xa.not_homogeneous, xa.unsupported])
def test_what_a_rule_refuses_is_raised_with_the_name_of_the_layer(refusal):
    def build(module: nn.Module) -> xa.Layer:
        raise refusal("it is odd", "Make it even")

    xa.register_rule(SwapHalves, build)
    with pytest.raises(xa.LayerError, match=r"'2' \(SwapHalves\).*it is odd.*Make it even") as caught:
        xa.attribute(swapped(), torch.randn(5, 6, dtype=torch.float64), 1)
    assert type(caught.value) is type(refusal("", ""))


def test_arguments_that_the_rule_of_a_function_does_not_take_are_refused(example):
    xa.register_rule(torch.tril, lambda x: xa.Call(example.Rotation(1, (1, 2)), (x,)))

    class Lower(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tril(x, diagonal=1)

    with pytest.raises(xa.UnsupportedLayerError, match=r"tril.*does not take these arguments"):
        xa.attribute(Lower(), torch.randn(2, 3, 3), (0, 0))


@pytest.mark.parametrize("target", [torch.rot90, "rot90"])
def test_tensors_are_refused_with_a_function(target):
    before = dict(registry._FUNCTIONS)
    with pytest.raises(ValueError, match=r"`tensors`.*Call"):
        xa.register_rule(target, SwapHalvesRule, tensors=("weight",))
    assert before == registry._FUNCTIONS


@pytest.mark.parametrize("target", [3, None, torch.ones(2)], ids=["int", "None", "tensor"])
def test_a_target_that_is_neither_a_module_type_nor_a_function_is_refused(target):
    with pytest.raises(TypeError, match=r"`target` is .*wanted a module type, a function"):
        xa.register_rule(target, SwapHalvesRule)


class Gain(nn.Module):
    """x * w, a leaf whose rule is at fault."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w


class GainWithoutGradient(xa.Layer):
    """Forgets its parameter's gradient."""

    def forward(self, params, *inputs):
        return inputs[0] * params[0], ()

    def tangent(self, frame, *tangents):
        return tangents[0] * frame.params[0]

    def cotangent(self, frame, g):
        return g * frame.params[0]


def test_a_rule_that_forgets_a_gradient_is_refused():
    xa.register_rule(Gain, lambda m: GainWithoutGradient(), tensors=("w",))
    output, attribution = xa.attribute(Gain(), torch.randn(3, 6, dtype=torch.float64), 0)
    with pytest.raises(RuntimeError, match=r"0 gradients for 1 parameters"):
        (output.sum() + attribution.sum()).backward()


@pytest.mark.parametrize(
    ("build", "tensors", "error", "message"),
    [
        (lambda m: GainWithoutGradient(), (), xa.UnsupportedLayerError, "does not name its parameter 'w'"),
        (lambda m: GainWithoutGradient(), ("v", "w"), xa.UnsupportedLayerError, "'v', which it does not have"),
        (lambda m: None, ("w",), TypeError, "built a NoneType; wanted a Layer"),
    ],
)
def test_a_rule_that_does_not_fit_its_module_is_refused(build, tensors, error, message):
    xa.register_rule(Gain, build, tensors=tensors)
    with pytest.raises(error, match=message):
        xa.attribute(Gain(), torch.randn(3, 6, dtype=torch.float64), 0)


def test_a_module_is_not_a_module_type_and_a_string_is_not_a_tuple():
    with pytest.raises(TypeError, match="wanted a module type"):
        xa.register_rule(Gain(), lambda m: GainWithoutGradient())
    with pytest.raises(TypeError, match="wanted a tuple of names"):
        xa.register_rule(Gain, lambda m: GainWithoutGradient(), tensors="w")
