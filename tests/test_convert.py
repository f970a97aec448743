"""Converting torch networks: what becomes an X-DNN, what stays exactly as it was, and what is refused."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from zoo import NETWORKS, NORMS, BasicBlock, LayerNormMixer, Perceptron, ResNet, TwoInputs, gelu_perceptron, trained

from xattr_cuda.check import check
from xattr_cuda.convert import ChannelScale, ConversionError, convert
from xattr_cuda.nn import BatchScale1d, BatchScale2d
from xattr_cuda.sweep import offenders


def fingerprint(model: nn.Module) -> dict[str, Any]:
    modules = {name: (id(m), type(m), m.training, m.extra_repr()) for name, m in model.named_modules()}
    return {
        "modules": modules,
        "state": copy.deepcopy(model.state_dict()),
        "grads": [p.grad for p in model.parameters()],
    }


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    now = fingerprint(model)
    assert now["modules"] == before["modules"]
    assert list(now["state"]) == list(before["state"])
    assert all(torch.equal(t, before["state"][name]) for name, t in now["state"].items())
    assert now["grads"] == before["grads"]


@pytest.mark.parametrize("batch_norm", ["fold", "scale", "remove"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_zoo_becomes_an_x_dnn_and_stays_untouched(name: str, batch_norm: Any) -> None:
    build, sample = NETWORKS[name]
    model = trained(build())
    x, before = torch.randn(3, *sample), fingerprint(model)
    converted, report = convert(model, example_input=x, batch_norm=batch_norm)
    assert_untouched(model, before)
    assert offenders(converted) == []
    for training in (True, False):
        found = check(converted.train(training), x)
        assert found.ok, str(found)
    assert not any(isinstance(m, NORMS) for m in converted.modules())
    assert report.output is not None
    assert report.output.relative_l2 > 0
    changed = {n for n, m in model.named_modules() if isinstance(m, NORMS) or getattr(m, "bias", None) is not None}
    assert {change.layer for change in report.changes} == changed
    shared = {id(p) for p in model.parameters()} & {id(p) for p in converted.parameters()}
    assert not shared


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_is_exact_where_nothing_is_shifted(name: str) -> None:
    build, sample = NETWORKS[name]
    model = trained(build().double(), centred=True)
    x = torch.randn(3, *sample, dtype=torch.float64)
    converted, report = convert(model, example_input=x)
    with torch.no_grad():
        torch.testing.assert_close(converted.eval()(x), model.eval()(x), rtol=1e-10, atol=1e-10)
    assert report.output is not None
    assert report.output.relative_l2 < 1e-10
    assert report.output.same_argmax in (None, 1.0)


PRODUCTS = {
    "linear": (lambda: nn.Linear(6, 8), nn.BatchNorm1d, (6,)),
    "conv1d": (lambda: nn.Conv1d(4, 8, 3, groups=2), nn.BatchNorm1d, (4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d, (4, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 8, 2), nn.BatchNorm3d, (2, 3, 4, 3)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 8, 3), nn.BatchNorm1d, (4, 5)),
    "transposed 2d, grouped": (lambda: nn.ConvTranspose2d(6, 8, 2, 2, groups=2), nn.BatchNorm2d, (6, 3, 4)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 8, 2), nn.BatchNorm3d, (2, 3, 2, 3)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", PRODUCTS)
def test_batch_norm_folds_into_the_weight_before_it_in_either_mode(name: str, training: bool) -> None:
    product, norm, sample = PRODUCTS[name]
    model = trained(nn.Sequential(product(), norm(8, eps=0.01)).double(), centred=True).train(training)
    x = torch.randn(3, *sample, dtype=torch.float64)
    converted, report = convert(model)
    assert isinstance(converted[1], nn.Identity)
    assert converted[1].training is training
    assert converted[0].bias is None
    assert "folded into 0" in {change.layer: change.after for change in report.changes}["1"]
    with torch.no_grad():
        torch.testing.assert_close(converted(x), model.eval()(x), rtol=1e-10, atol=1e-10)


def test_a_dropped_shift_is_all_that_folding_changes() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()).eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    gap = model(x) - convert(model).model(x)
    torch.testing.assert_close(gap, gap[:1, :, :1, :1].expand_as(gap), rtol=1e-9, atol=1e-10)


class Apart(nn.Module):
    """BatchNorms that no weight can take: its output is used twice, it is shared, tied, read, or not a product."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.norm_twice = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.shared, self.norm_shared = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.tied, self.other, self.norm_tied = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.tied.weight = self.other.weight
        self.read, self.norm_read = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.normed, self.norm_normed = weight_norm(nn.Linear(6, 6)), nn.BatchNorm1d(6)
        self.phase, self.norm_phase = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.norm_sequence = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.twice(x)
        x = self.norm_twice(h) + h
        x = F.relu(self.shared(self.norm_shared(self.shared(x))))
        x = self.other(self.norm_tied(self.tied(x)))
        x = F.linear(self.norm_read(self.read(x)), self.read.weight)
        x = self.norm_normed(self.normed(x))
        x = self.phase(x)
        x = x if self.training else self.norm_phase(x)
        return self.norm_sequence(x.reshape(-1, 3, 2)).flatten(1)


def test_a_scale_that_no_weight_can_take_becomes_a_layer_of_its_own() -> None:
    model = trained(Apart().double(), centred=True)
    x = torch.randn(5, 6, dtype=torch.float64)
    before = fingerprint(model)
    converted, _ = convert(model)
    assert_untouched(model, before)
    norms = [name for name in before["modules"] if name.startswith("norm_")]
    assert len(norms) == 7
    assert all(isinstance(converted.get_submodule(name), ChannelScale) for name in norms)
    with torch.no_grad():
        torch.testing.assert_close(converted.eval()(x), model.eval()(x), rtol=1e-10, atol=1e-10)
    assert converted.tied.weight is converted.other.weight
    assert type(converted.normed) is type(model.normed)
    assert converted.normed.bias is None
    assert check(converted, x).ok


def test_a_shared_module_is_converted_once_wherever_it_is_registered() -> None:
    norm, linear = nn.BatchNorm1d(6), nn.Linear(6, 6)
    model = trained(nn.Sequential(linear, norm, nn.ReLU(), linear, norm))
    converted, report = convert(model)
    assert converted[0] is converted[3]
    assert converted[1] is converted[4]
    assert sorted(change.layer for change in report.changes) == ["0", "1"]


def test_batch_scale_takes_over_weight_second_moment_settings_and_mode() -> None:
    model = trained(ResNet(BasicBlock, [1, 1])).train()
    model.bn1.momentum, model.bn1.eps = None, 0.5
    model.layer1.eval()
    model.bn1.num_batches_tracked.fill_(7)
    converted, _ = convert(model, batch_norm="scale")
    scale, norm = converted.bn1, model.bn1
    assert isinstance(scale, BatchScale2d)
    assert (scale.eps, scale.momentum, scale.affine) == (0.5, None, True)
    assert torch.equal(scale.weight, norm.weight)
    assert isinstance(scale.weight, nn.Parameter)
    torch.testing.assert_close(scale.running_square, norm.running_var + norm.running_mean**2)
    assert scale.num_batches_tracked == 7
    assert scale.training
    assert not converted.layer1[0].bn1.training


def test_batch_scale_keeps_statistics_of_the_batch_and_the_dtype() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False, track_running_stats=False)).double()
    converted, _ = convert(model, batch_norm="scale")
    assert isinstance(converted[1], BatchScale1d)
    assert not converted[1].affine
    assert not converted[1].track_running_stats
    assert converted(torch.randn(4, 6, dtype=torch.float64)).dtype == torch.float64


class Attributes(nn.Module):
    """Activations as modules, shared, and as plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.act = nn.SiLU(inplace=True)
        self.again = self.act
        self.function = F.gelu
        self.drop = nn.AlphaDropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.function(self.fc3(self.again(self.fc2(self.act(self.fc1(x)))))))


def test_activations_are_replaced_when_asked_in_modules_and_in_attributes() -> None:
    model = Attributes()
    converted, report = convert(model, activations="relu")
    assert isinstance(converted.act, nn.ReLU)
    assert converted.act.inplace
    assert converted.again is converted.act
    assert converted.function is F.relu
    assert isinstance(converted.drop, nn.Dropout)
    assert converted.drop.p == 0.25
    assert model.function is F.gelu
    assert isinstance(model.act, nn.SiLU)
    assert {"act", "function", "drop"} <= {change.layer for change in report.changes}
    assert check(converted, torch.randn(3, 6)).ok


def test_activations_are_kept_and_refused_otherwise_with_the_option_as_remedy() -> None:
    with pytest.raises(ConversionError) as caught:
        convert(gelu_perceptron())
    assert {e.layer for e in caught.value.layers} == {"1", "3"}
    assert all('activations="relu"' in e.remedy for e in caught.value.layers)
    assert check(convert(gelu_perceptron(), activations="relu").model, torch.randn(2, 12)).ok


def test_every_layer_that_cannot_be_converted_is_listed() -> None:
    model = LayerNormMixer()
    before = fingerprint(model)
    for activations in (None, "relu"):
        with pytest.raises(ConversionError) as caught:
            convert(model, activations=activations)
        layers = caught.value.layers
        assert {"norm", "norm1", "norm2"} <= {e.layer for e in layers}
        assert "gelu" in {e.kind for e in layers}
        assert not {"stem", "fc1", "fc2", "head"} & {e.layer for e in layers}
        message = str(caught.value)
        assert all(e.layer in message and e.reason and e.remedy for e in layers)
        assert max(map(len, message.splitlines())) <= 100
        assert len(json.loads(json.dumps(caught.value.as_dict()))["layers"]) == len(layers)
    assert_untouched(model, before)


def hooked() -> nn.Module:
    norm = nn.BatchNorm1d(8)
    norm.register_forward_hook(lambda *_: None)
    return nn.Sequential(nn.Linear(6, 8), norm, nn.Linear(8, 3))


def with_parametrised_bias() -> nn.Module:
    linear = nn.Linear(6, 8)
    nn.utils.parametrize.register_parametrization(linear, "bias", nn.Identity())
    return nn.Sequential(nn.Linear(6, 6), linear)


REFUSED = {
    "without statistics": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False)),
        {},
        "1",
        'batch_norm="scale"',
    ),
    "hooks": (hooked, {}, "1", "Remove the hooks"),
    "a parametrised bias": (with_parametrised_bias, {}, "1", "remove_parametrizations"),
    "SyncBatchNorm": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.SyncBatchNorm(8)), {"batch_norm": "scale"}, "1", 'batch_norm="fold"',
    ),
    "a lazy layer": (lambda: nn.Sequential(nn.LazyLinear(3)), {}, "0", "Run one batch"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_out_of_reach_is_named_once_with_the_remedy(name: str) -> None:
    build, options, layer, remedy = REFUSED[name]
    model = build()
    with pytest.raises(ConversionError) as caught:
        convert(model, **options)
    (error,) = caught.value.layers
    assert error.layer == layer
    assert remedy in error.remedy


def test_a_parametrised_bias_of_the_argument_survives_the_refusal() -> None:
    model = with_parametrised_bias()
    with pytest.raises(ConversionError):
        convert(model)
    assert model(torch.randn(2, 6)).shape == (2, 8)
    assert nn.utils.parametrize.is_parametrized(model[1], "bias")


def test_sync_batch_norm_is_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.ReLU(), nn.SyncBatchNorm(4))
    converted, _ = convert(model)
    assert isinstance(converted[1], nn.Identity)
    assert isinstance(converted[3], ChannelScale)
    assert check(converted, torch.randn(2, 3, 6, 6)).ok


def test_layers_are_removed_by_name_and_by_type() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3), nn.Softmax(1))
    converted, _ = convert(model, remove=["1", nn.Softmax])
    assert isinstance(converted[1], nn.Identity)
    assert isinstance(converted[3], nn.Identity)
    assert isinstance(model[1], nn.LayerNorm)
    assert check(converted, torch.randn(2, 6)).ok


def test_a_single_layer_is_converted_in_its_own_place() -> None:
    assert isinstance(convert(trained(nn.BatchNorm2d(3))).model, ChannelScale)
    assert convert(nn.Linear(3, 2)).model.bias is None
    assert isinstance(convert(nn.GELU(), activations="relu").model, nn.ReLU)


def test_an_x_dnn_is_copied_without_a_change() -> None:
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU())
    x = torch.randn(3, 6)
    converted, report = convert(model, example_input=x)
    assert converted is not model
    assert not report.changes
    assert not report.notes
    assert report.output is not None
    assert report.output.relative_l2 == 0
    assert report.output.same_argmax == 1


def test_several_inputs_are_counted_with_and_without_an_example() -> None:
    inputs = (torch.randn(3, 4), torch.randn(3, 5))
    for example in (None, inputs):
        assert check(convert(TwoInputs(bias=True), example_input=example).model, inputs).ok


def test_the_change_of_the_output_is_measured_in_evaluation_mode() -> None:
    model = trained(Perceptron().double()).train()
    x = torch.randn(20, 12, dtype=torch.float64)
    converted, report = convert(model, example_input=x)
    with torch.no_grad():
        want, got = model.eval()(x), converted.eval()(x)
    assert report.output is not None
    assert report.output.relative_l2 == pytest.approx(float((got - want).norm() / want.norm()))
    assert report.output.largest == pytest.approx(float((got - want).abs().max()))
    assert report.output.same_argmax is None


@pytest.mark.parametrize("batch_norm", ["fold", "scale"])
@pytest.mark.parametrize("name", NETWORKS)
def test_reports_fit_a_terminal_and_json(name: str, batch_norm: Any) -> None:
    build, sample = NETWORKS[name]
    _, report = convert(build(), example_input=torch.randn(2, *sample), batch_norm=batch_norm)
    assert max(map(len, str(report).splitlines())) <= 100
    assert all(change.layer in str(report) for change in report.changes)
    assert "fine-tune" in str(report)
    again = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert len(again["changes"]) == len(report.changes)
    assert again["output"]["relative_l2"] == report.output.relative_l2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_norm": "merge"}, "`batch_norm` is 'merge'"),
        ({"activations": "gelu"}, "`activations` is 'gelu'"),
        ({"remove": ["nowhere"]}, "`remove` names"),
        ({"example_input": ()}, "`example_input`"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        convert(nn.Linear(3, 2), **options)


class Counting(nn.Module):
    """Writes to a buffer whenever its forward runs, traced or not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.fc, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.norm(self.fc(x))


def test_a_forward_that_writes_to_a_buffer_is_refused_and_the_buffer_keeps_its_value() -> None:
    model = Counting()
    with pytest.raises(ConversionError, match="changes its attribute"):
        convert(model, example_input=torch.randn(2, 4))
    assert model.calls == 0
