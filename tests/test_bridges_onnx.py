"""An X-DNN with its attribution as a plain graph: in PyTorch, in torch.export, and in onnxruntime."""

import sys

import graphs
import pytest
import torch
from layers import Param, Traced, assert_close, of_call, of_module
from test_examples import EXAMPLES, run
from torch import nn
from torch.nn import functional as F
from zoo import NETWORKS, trained

import xattr_cuda as xa
from xattr_cuda.bridges.onnx import ExportError
from xattr_cuda.bridges.plain_layers import plain
from xattr_cuda.extras import MissingPackageError
from xattr_cuda.sweep.arguments import leaves

TOLERANCE = 1e-5  # of onnxruntime against PyTorch in fp32, over the largest value
SINGLE = [name for name in graphs.CASES if name not in ("several outputs", "one value returned twice")]


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def target_of(output):
    """An index of the outputs of a sample, or None where there is one."""
    return None if output[0].numel() == 1 else tuple(int(torch.randint(n, ())) for n in output.shape[1:])


def assert_near(got, want, what, tolerance=TOLERANCE):
    for g, w in zip(leaves(tuple(got)), leaves(tuple(want)), strict=True):
        g, size = torch.as_tensor(g), w.abs().max()
        assert g.shape == w.shape
        assert float(size) > 0, f"{what}: nothing to compare"
        assert float((g - w).abs().max() / size) <= tolerance, what


LAYERS = {
    "convolution with a rest": lambda: of_module(nn.Conv2d(4, 6, 3, 3, 1, 2, 2, bias=False), normal(2, 4, 9, 12)),
    "convolution, same": lambda: of_module(nn.Conv1d(2, 3, 4, padding="same", bias=False), normal(2, 2, 7)),
    "convolution, replicate": lambda: of_module(
        nn.Conv2d(2, 3, 3, 2, (1, 2), padding_mode="replicate", bias=False), normal(2, 2, 6, 5)
    ),
    "convolution, volumes": lambda: of_module(nn.Conv3d(2, 2, 2, (1, 2, 2), bias=False), normal(2, 2, 3, 5, 4)),
    "transposed convolution": lambda: of_module(
        nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, bias=False), normal(2, 4, 3, 5)
    ),
    "transposed convolution, dilated": lambda: of_module(
        nn.ConvTranspose1d(2, 3, 3, 1, output_padding=1, dilation=2, bias=False), normal(2, 2, 5)
    ),
    "max pooling with ties": lambda: of_module(nn.MaxPool2d(3, 2, 1, ceil_mode=True), normal(2, 2, 6, 7).round()),
    "max pooling, dilated": lambda: of_module(nn.MaxPool1d(2, 1, dilation=3), normal(2, 2, 9)),
    "max pooling, volumes": lambda: of_module(nn.MaxPool3d(2), normal(2, 2, 4, 5, 6)),
    "adaptive maxima": lambda: of_module(nn.AdaptiveMaxPool2d((2, None)), normal(2, 2, 6, 3)),
    "average pooling": lambda: of_module(nn.AvgPool2d((3, 2), 2, 1), normal(2, 2, 7, 6)),
    "average pooling, ceil": lambda: of_module(nn.AvgPool2d(3, 2, 1, ceil_mode=True), normal(2, 2, 6, 8)),
    "average pooling, inside only": lambda: of_module(
        nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False), normal(2, 2, 8)
    ),
    "average pooling, divisor": lambda: of_module(
        nn.AvgPool3d(2, 2, 1, ceil_mode=True, divisor_override=3), normal(2, 2, 3, 4, 5)
    ),
    "adaptive average": lambda: of_module(nn.AdaptiveAvgPool2d((3, None)), normal(2, 2, 7, 4)),
    "global average": lambda: of_module(nn.AdaptiveAvgPool3d(1), normal(2, 2, 3, 4, 2)),
    "maxima over dimensions": lambda: of_call("amax", Traced(normal(2, 3, 4, 5).round()), (2, -1)),
    "area": lambda: of_call(F.interpolate, Traced(normal(2, 2, 7, 5)), size=(3, 8), mode="area"),
    "bicubic": lambda: of_call(F.interpolate, Traced(normal(2, 2, 4, 5)), scale_factor=(2.0, 0.7), mode="bicubic"),
    "nearest": lambda: of_call(F.interpolate, Traced(normal(2, 2, 5)), size=8),
    "leaky": lambda: of_module(nn.LeakyReLU(0.3), normal(3, 4, 2).round()),
    "one slope": lambda: of_module(nn.PReLU(), normal(3, 4)),
    "a slope a channel": lambda: of_module(nn.PReLU(4, 0.1), normal(3, 4, 2, 3)),
    "relu at zero": lambda: of_call(torch.relu, Traced(normal(3, 40).round())),
    "abs at zero": lambda: of_call(torch.abs, Traced(normal(3, 40).round())),
    "clamp from below": lambda: of_call("clamp", Traced(normal(3, 40).round()), min=0),
    "clamp from above": lambda: of_call("clamp", Traced(normal(3, 40).round()), max=0.0),
    "minimum": lambda: of_call(torch.minimum, Traced(normal(3, 4, 5).round()), Traced(normal(3, 1, 5).round())),
    "maximum": lambda: of_call(torch.maximum, Traced(normal(3, 4, 5).round()), Traced(normal(3, 4, 5).round())),
    "linear": lambda: of_call(F.linear, Traced(normal(3, 2, 5)), Param(normal(4, 5))),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # by PyTorch
@pytest.mark.parametrize("name", LAYERS)
def test_the_plain_form_of_a_layer_and_its_transpose_are_pytorchs(name):
    layer, function, params, inputs = LAYERS[name]()
    copies = [t.clone().requires_grad_() for t in inputs]
    want = function(params, *copies)
    with torch.no_grad():
        out, transpose = plain(layer, params, *inputs)
        assert_close(out, want.detach(), "output")
        g = torch.randn_like(out)
        found = transpose(g)
    gradients = torch.autograd.grad(want, copies, g)
    for got, gradient in zip((found,) if isinstance(found, torch.Tensor) else found, gradients, strict=True):
        assert_close(got, gradient, "cotangent")


@pytest.mark.parametrize("name", [*SINGLE, *NETWORKS])
def test_the_plain_network_has_the_output_and_the_attribution_of_the_sweeps(name):
    if name in NETWORKS:
        make, sample = NETWORKS[name]
        model, inputs = xa.convert(trained(make()).double()).model.eval(), (normal(3, *sample),)
    else:
        model, inputs = graphs.build(name)
        model.eval()
    given = inputs if len(inputs) > 1 else inputs[0]
    target = target_of(model(*inputs))
    module = xa.bridges.with_attribution(model, target, inputs=len(inputs))
    with torch.no_grad():
        got, want = module(given), xa.attribute(model, given, target)
    for g, w in zip(leaves(got), leaves(tuple(want)), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)


def test_a_target_is_an_index_the_prediction_or_given_by_sample():
    model, x = xa.models.xmlp([6, 8, 4]).double(), normal(5, 6)
    labels = torch.randint(4, (5,))
    by_sample, predicted = xa.bridges.with_attribution(model), xa.bridges.with_attribution(model, "predicted")
    torch.testing.assert_close(by_sample(x, labels), tuple(xa.attribute(model, x, labels)))
    torch.testing.assert_close(predicted(x), tuple(xa.attribute(model, x, model(x).argmax(1))))
    single = xa.models.xmlp([6, 8, 1]).double()
    torch.testing.assert_close(xa.bridges.with_attribution(single, "predicted")(x), tuple(xa.attribute(single, x)))
    with pytest.raises(ValueError, match="say which one to attribute"):
        by_sample(x)
    with pytest.raises(ValueError, match="was fixed"):
        predicted(x, labels)
    with pytest.raises(ValueError, match="wanted None, an index or 'predicted'"):
        xa.bridges.with_attribution(model, "largest")


def test_what_has_no_attribution_is_refused_when_it_is_wrapped():
    with pytest.raises(xa.NotHomogeneousError, match="layer '1'"):
        xa.bridges.with_attribution(nn.Sequential(nn.Linear(3, 3, bias=False), nn.GELU()))
    with pytest.raises(ValueError, match="returns 3 tensors; wanted one"):
        xa.bridges.with_attribution(graphs.build("several outputs")[0])


def test_torch_export_takes_the_network_with_an_open_batch_and_plain_operators():
    make, sample = NETWORKS["unet upsampled"]
    model = xa.convert(trained(make())).model.eval()
    module = xa.bridges.with_attribution(model, (1, 3, 4))
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(module, (torch.randn(3, *sample),), dynamic_shapes=(batch,))
    assert {name.removeprefix("model.") for name in program.state_dict} == set(model.state_dict())
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.convolution.default" in called
    assert not [name for name in called if "xattr" in name or "backward" in name]
    for size in (1, 5):
        x = torch.randn(size, *sample)
        with torch.no_grad():
            assert_near(program.module()(x), xa.attribute(model, x, (1, 3, 4)), f"batch of {size}")


def in_onnxruntime(report, *tensors):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    assert tuple(i.name for i in session.get_inputs()) == report.inputs
    return session.run(None, {name: t.numpy() for name, t in zip(report.inputs, tensors, strict=True)})


def test_a_converted_network_in_onnxruntime_explains_its_predictions_as_pytorch_does(tmp_path):
    make, sample = NETWORKS["resnet"]
    model = xa.convert(trained(make())).model
    example = torch.randn(1, *sample).mul(4).round()  # few values, so that windows hold equal ones
    report = xa.bridges.export_onnx(model, example, tmp_path / "resnet.onnx", "predicted", tolerance=TOLERANCE)
    assert [path.name for path in tmp_path.iterdir()] == ["resnet.onnx"]
    assert model.training  # as it was
    assert max(report.output_error, report.attribution_error) <= TOLERANCE
    model.eval()
    for size in (1, 4, 7):
        x = torch.randn(size, *sample).mul(4).round()
        output, attribution = in_onnxruntime(report, x)
        with torch.no_grad():
            want = xa.attribute(model, x, model(x).argmax(1))
        assert_near((output, attribution), want, f"batch of {size}")
        explained = torch.from_numpy(attribution).flatten(1).sum(1)  # completeness, by onnxruntime's own numbers
        torch.testing.assert_close(explained, torch.from_numpy(output).amax(1), rtol=1e-4, atol=1e-4)


def test_layers_of_every_family_in_onnxruntime_with_targets_by_sample(tmp_path):
    model, (x,) = graphs.build("images", 3, torch.float32)
    labels = torch.randint(4, (3,))
    report = xa.bridges.export_onnx(model, x, tmp_path / "images.onnx", labels, tolerance=TOLERANCE)
    assert report.inputs == ("input", "target")
    x, labels = torch.randn(6, *x.shape[1:]), torch.randint(4, (6,))
    with torch.no_grad():
        assert_near(in_onnxruntime(report, x, labels), xa.attribute(model.eval(), x, labels), "six samples")


def test_every_input_of_several_gets_its_attribution_in_onnxruntime(tmp_path):
    model, xs = graphs.build("several inputs and one output", 3, torch.float32)
    report = xa.bridges.export_onnx(model, xs, tmp_path / "two.onnx", tolerance=TOLERANCE)
    assert report.inputs == ("input_0", "input_1")
    xs = tuple(torch.randn(5, *x.shape[1:]) for x in xs)
    with torch.no_grad():
        assert_near(in_onnxruntime(report, *xs), xa.attribute(model, xs), "five samples")


class Scaled(nn.Module):
    """A layer of the user's, with one parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 3))

    def forward(self, x):
        return x @ torch.linalg.pinv(self.weight)


class ScaledRule(xa.Layer):
    foreign = False

    def forward(self, params, h):
        return h @ torch.linalg.pinv(params[0]), ()

    def tangent(self, frame, v):
        return self.forward(frame.params, v)[0]

    def cotangent(self, frame, g):
        g = g @ torch.linalg.pinv(frame.params[0]).T
        return xa.ops.mask_mul(g, torch.full((len(g), 1), -1, dtype=torch.int32)) if self.foreign else g


def test_what_onnx_cannot_hold_is_refused_by_name(tmp_path, restored_rules, monkeypatch):
    xa.register_rule(Scaled, lambda module: ScaledRule(), tensors=("weight",))
    model, path = nn.Sequential(nn.ReLU(), Scaled()), tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=r"cannot write Sequential: .*linalg"):
        xa.bridges.export_onnx(model, torch.randn(2, 3), path, 0)
    monkeypatch.setattr(ScaledRule, "foreign", True)
    with pytest.raises(xa.UnsupportedLayerError, match=r"layer '1' \(Scaled\): its rule calls xattr::mask_mul"):
        xa.bridges.export_onnx(model, torch.randn(2, 3), path, 0)
    bins = nn.Sequential(nn.AdaptiveMaxPool1d(3), nn.Flatten())
    with pytest.raises(xa.UnsupportedLayerError, match=r"layer '0' \(AdaptiveMaxPool1d\): it divides \[8\]"):
        xa.bridges.export_onnx(bins, torch.randn(2, 4, 8), path, 0)
    assert not path.exists()


def test_a_file_that_is_too_far_from_pytorch_is_an_error(tmp_path):
    model = xa.models.xmlp([32, 64, 64, 1])
    with pytest.raises(ExportError, match="from PyTorch in the output"):
        xa.bridges.export_onnx(model, torch.randn(64, 32), tmp_path / "model.onnx", tolerance=0)


def test_a_missing_library_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"needs onnxruntime.*pip install xattr_cuda\[onnx\]"):
        xa.bridges.export_onnx(xa.models.xmlp([3, 1]), torch.randn(2, 3), tmp_path / "model.onnx")


def test_the_example_runs(tmp_path):
    process = run(EXAMPLES / "onnx_attribution.py", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert not process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["digits.onnx"]
    assert "of the predictions are right" in process.stdout
