"""What `check` says of networks that are X-DNNs, that are not, and that are only while they are evaluated."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from zoo import NETWORKS, LayerNormMixer, TwoInputs

from xattr_cuda.check import Report, check
from xattr_cuda.convert import convert
from xattr_cuda.nn import BatchScale1d


def perceptron(bias: bool) -> nn.Module:
    hidden = [nn.Linear(6, 8, bias=bias), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8, bias=bias), nn.LeakyReLU(0.2)]
    return nn.Sequential(nn.Sequential(*hidden), nn.Linear(8, 3, bias=bias))


def images(bias: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=bias), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2, bias=bias)
    )


TWINS = {
    "perceptron": (perceptron, (6,), {"0.0", "0.3", "1"}),
    "images": (images, (3, 8, 8), {"0", "4"}),
}


def named(report: Report) -> set[str]:
    return {error.layer for error in report.offenders}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TWINS)
def test_a_network_without_biases_is_an_x_dnn(name: str, training: bool) -> None:
    build, sample, _ = TWINS[name]
    report = check(build(False).train(training), torch.randn(5, *sample))
    assert report.ok, str(report)
    assert report.measured is not None
    assert report.measured.training is training
    assert max(report.measured.homogeneity.values()) < 1e-12
    assert report.measured.completeness < 1e-12
    assert not report.notes


@pytest.mark.parametrize("name", TWINS)
def test_every_biased_layer_is_named_and_the_violation_measured(name: str) -> None:
    build, sample, biased = TWINS[name]
    report = check(build(True), torch.randn(5, *sample))
    assert not report.ok
    assert named(report) == biased
    assert all("bias" in error.reason and error.remedy and error.kind for error in report.offenders)
    assert report.measured is not None
    assert not report.measured.complete
    assert not report.measured.homogeneous
    assert all(layer in str(report) for layer in biased)


def test_offenders_of_every_kind_are_named_not_only_the_first() -> None:
    report = check(LayerNormMixer(), torch.randn(2, 3, 32, 32))
    assert {"stem", "norm", "norm1", "fc1", "fc2", "norm2", "head"} <= named(report)
    assert "gelu" in {error.kind for error in report.offenders}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_biased_layer_and_batch_norm_of_a_torchvision_network_is_named(name: str) -> None:
    build, sample = NETWORKS[name]
    model = build()
    breaks = {
        n
        for n, m in model.named_modules()
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) or getattr(m, "bias", None) is not None
    }
    assert breaks
    report = check(model, torch.randn(2, *sample))
    assert named(report) == breaks
    assert all(layer in str(report).replace("\n", "") for layer in breaks)


def test_batch_scale_in_training_is_complete_and_homogeneous_in_evaluation() -> None:
    model = nn.Sequential(nn.Linear(6, 8, bias=False), BatchScale1d(8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    report = check(model, torch.randn(9, 6))
    m = report.measured
    assert m is not None
    assert m.complete
    assert not m.homogeneous
    assert m.homogeneous_in_evaluation
    assert report.ok, str(report)
    assert any("In evaluation mode the network is homogeneous" in note for note in report.notes)
    evaluated = check(model.eval(), torch.randn(9, 6))
    assert evaluated.ok
    assert not evaluated.notes


class Stateful(nn.Module):
    """Writes to buffers and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.drop(self.norm(x)) * self.calls


def test_the_model_its_buffers_and_the_generator_stay_as_they_were() -> None:
    model, x = Stateful(), torch.randn(4, 6)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    copy, drawn = x.clone(), torch.get_rng_state()
    check(model, x)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(x, copy)
    assert model.training
    assert all(torch.equal(before[name], t) and t.dtype == before[name].dtype for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_cannot_be_copied_is_checked_by_rule_alone() -> None:
    model = perceptron(True)
    model.cache = model[1].weight * 2  # no leaf, so it has no deep copy
    report = check(model, torch.randn(5, 6))
    assert named(report) == TWINS["perceptron"][2]
    assert report.measured is None
    assert any("cannot be copied" in note for note in report.notes)


def test_inference_mode_does_not_keep_it_from_measuring() -> None:
    model = perceptron(False)
    with torch.inference_mode():
        assert check(model, torch.randn(5, 6)).ok


def test_a_wrong_input_shape_raises_as_torch_does() -> None:
    model = perceptron(False)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        check(model, torch.randn(5, 7))


class OnlySingle(torch.autograd.Function):
    """An operator that has no float64."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise NotImplementedError("no float64")
        return 2 * x

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return 2 * g


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return OnlySingle.apply(x)


def test_an_operator_without_float64_is_measured_in_the_dtype_of_the_model() -> None:
    report = check(nn.Sequential(nn.Linear(4, 4, bias=False), Custom()), torch.randn(3, 4))
    assert report.measured is not None
    assert report.measured.dtype == torch.float32
    assert report.measured.tolerance == 1e-3
    assert report.measured.complete
    assert report.measured.homogeneous


class Outputs(nn.Module):
    """Returns what `wrap` makes of two outputs."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], object], bias: bool = False) -> None:
        super().__init__()
        self.wrap = wrap
        self.fc1, self.fc2 = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=bias)

    def forward(self, x: Tensor) -> object:
        h = self.fc1(x)
        return self.wrap(h, self.fc2(h))


@pytest.mark.parametrize("bias", [True, False])
def test_several_outputs_are_measured_together(bias: bool) -> None:
    report = check(Outputs(lambda a, b: (a, {"more": [b]}), bias), torch.randn(3, 4))
    assert report.measured is not None
    assert report.measured.complete is not bias
    assert report.measured.homogeneous is not bias
    assert named(report) == ({"fc2"} if bias else set())


def test_a_forward_that_returns_anything_but_tensors_is_reported() -> None:
    report = check(Outputs(lambda a, b: (b, "a name")), torch.randn(3, 4))
    assert not report.ok
    assert report.offenders
    assert report.measured is None
    assert "Nothing was measured" in str(report)


def test_a_network_with_two_inputs_is_checked_in_both() -> None:
    inputs = (torch.randn(3, 4), torch.randn(3, 5))
    assert check(TwoInputs(bias=False), inputs).ok
    assert named(check(TwoInputs(bias=True), inputs)) == {"right"}


def test_an_output_of_zeros_is_said_to_prove_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU())
    nn.init.ones_(model[0].weight)
    report = check(model, -torch.rand(3, 4))
    assert any("the residuals say nothing" in note for note in report.notes)


def test_a_violation_that_no_rule_sees_is_measured() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    assert check(model, torch.randn(3, 4)).ok
    model[1].__dict__["forward"] = lambda x: x.relu() + 1  # a method patched on the instance
    report = check(model, torch.randn(3, 4))
    assert not report.ok
    assert report.measured is not None
    assert not report.measured.complete


def test_weights_that_are_not_finite_are_a_violation_and_null_in_json() -> None:
    model = perceptron(False).eval()
    nn.init.constant_(model[1].weight, float("nan"))
    report = check(model, torch.randn(3, 6))
    assert not report.ok
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["measured"]["completeness"] is None


@pytest.mark.parametrize("name", NETWORKS)
def test_reports_fit_a_terminal_and_json(name: str) -> None:
    build, sample = NETWORKS[name]
    x = torch.randn(2, *sample)
    for model in (build(), convert(build(), batch_norm="scale").model):
        report = check(model, x)
        assert max(map(len, str(report).splitlines())) <= 100
        again = json.loads(json.dumps(report.as_dict(), allow_nan=False))
        assert again["ok"] is report.ok
        assert [e["layer"] for e in again["offenders"]] == [e.layer for e in report.offenders]
        assert set(again["measured"]["homogeneity"]) == {"0.1", "0.5", "2.0", "10.0"}


@pytest.mark.parametrize(
    ("example", "error"), [(torch.zeros(2, 6, dtype=torch.long), TypeError), ([1.0], TypeError), ((), ValueError)]
)
def test_an_example_that_is_not_floating_tensors_is_refused(example: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="`example_input`"):
        check(perceptron(False), example)


def test_what_is_not_a_module_is_refused() -> None:
    with pytest.raises(TypeError, match="`model`"):
        check(torch.relu, torch.randn(2, 3))
