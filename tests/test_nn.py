"""Layers of xattr_cuda.nn: values, statistics, gradients, attributions and the rule of BatchScale."""

import copy
import io

import pytest
import torch
from helpers import assert_as_good_as, assert_same_step, eager_attribute, run_step
from layers import Case, assert_rule
from torch import nn

import xattr_cuda as xa
from xattr_cuda.nn import BatchScale1d, BatchScale2d, BatchScale3d
from xattr_cuda.nn.batch_scale import second_moment
from xattr_cuda.sweep.layer import Frame, Layer
from xattr_cuda.sweep.rules.registry import rule_of

SHAPES = {  # inputs with channels in dimension 1, and the layer that takes them
    "rows": (BatchScale1d, (9, 5)),
    "sequences": (BatchScale1d, (4, 5, 7)),
    "images": (BatchScale2d, (3, 5, 4, 6)),
    "volumes": (BatchScale3d, (2, 5, 3, 4, 2)),
}
each_shape = pytest.mark.parametrize(("kind", "shape"), SHAPES.values(), ids=SHAPES)
both_modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def draw(*shape, dtype=torch.float64, requires_grad=False):
    """Values whose channels differ in size."""
    x = torch.randn(shape, dtype=torch.float64)
    sizes = torch.arange(1, shape[1] + 1).view(-1, *[1] * (len(shape) - 2))
    return (x * sizes).to(dtype).requires_grad_(requires_grad)


def trained(kind, shape, training=True, dtype=torch.float64, **options):
    """A layer with a random weight that has seen two batches."""
    layer = kind(shape[1], dtype=dtype, **options)
    with torch.no_grad():
        if layer.affine:
            layer.weight.normal_()
        for _ in range(2):
            layer(draw(*shape, dtype=dtype))
    return layer.train(training)


def by_channel(t, like):
    return t.view(-1, *[1] * (like.dim() - 2))


@each_shape
def test_a_batch_is_scaled_as_batch_norm_scales_it_together_with_its_negative(kind, shape):
    x, layer = draw(*shape), trained(kind, shape)
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[x.dim()](shape[1]).double()
    with torch.no_grad():
        norm.weight.copy_(layer.weight)
    torch.testing.assert_close(layer(x), norm(torch.cat([x, -x]))[: len(x)])


@each_shape
def test_evaluation_scales_by_the_running_moment_and_changes_nothing(kind, shape):
    x, layer = draw(*shape), trained(kind, shape, training=False)
    before = copy.deepcopy(layer.state_dict())
    want = x * by_channel(layer.weight / (layer.running_square + layer.eps).sqrt(), x)
    torch.testing.assert_close(layer(x), want)
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


@each_shape
@pytest.mark.parametrize("momentum", [0.1, 0.3, 1.0, 0.0, None])
def test_the_running_moment_follows_the_batches(kind, shape, momentum):
    layer = kind(shape[1], momentum=momentum, dtype=torch.float64)
    batches = [draw(*shape) for _ in range(4)]
    moments = [x.transpose(0, 1).flatten(1).square().mean(1) for x in batches]
    want = torch.ones(shape[1], dtype=torch.float64)
    for x, moment in zip(batches, moments, strict=True):
        layer(x)
        want = want + (momentum or 0) * (moment - want)
    if momentum is None:
        want = torch.stack(moments).mean(0)
    torch.testing.assert_close(layer.running_square, want)
    assert layer.num_batches_tracked == 4
    layer.reset_running_stats()
    assert torch.equal(layer.running_square, torch.ones_like(want))
    assert layer.num_batches_tracked == 0


@each_shape
def test_without_tracking_the_batch_counts_in_both_modes_and_nothing_is_recorded(kind, shape):
    x, layer = draw(*shape), trained(kind, shape, track_running_stats=False)
    want = layer(x)
    assert torch.equal(layer.eval()(x), want)
    assert list(layer.state_dict()) == ["weight"]
    assert layer.num_batches_tracked == 0


@each_shape
@both_modes
def test_the_statistics_are_constant_to_gradients(kind, shape, training):
    x, layer = draw(*shape, requires_grad=True), trained(kind, shape, training)
    if not training:
        factor = (layer.running_square + layer.eps).rsqrt()
    else:
        factor = (second_moment(x.detach()) + layer.eps).rsqrt()
    y = layer(x)
    g = torch.randn_like(y)
    dx, dw = torch.autograd.grad(y, [x, layer.weight], g)
    torch.testing.assert_close(dx, g * by_channel(layer.weight.detach() * factor, x))
    torch.testing.assert_close(dw, factor * (g * x.detach()).transpose(0, 1).flatten(1).sum(1))


@each_shape
@both_modes
def test_input_times_gradient_is_complete(kind, shape, training):
    model = nn.Sequential(trained(kind, shape, training), nn.ReLU(), trained(kind, shape, training))
    x = draw(*shape, requires_grad=True)
    y = model(x)
    u = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, u)
    torch.testing.assert_close((x * dx).sum(), (u * y).sum())


def test_evaluation_is_homogeneous_and_training_forgets_the_scale():
    x = draw(6, 5, 4, 4)
    evaluation, training = (trained(BatchScale2d, x.shape, mode, eps=1e-12) for mode in (False, True))
    torch.testing.assert_close(evaluation(3 * x), 3 * evaluation(x))
    torch.testing.assert_close(training(3 * x), training(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@both_modes
def test_low_precision_is_as_good_as_pytorch(dtype, training):
    x = draw(16, 5, 8, 8, dtype=dtype)
    layer = trained(BatchScale2d, x.shape, training, dtype=dtype)
    running = None if training else layer.running_square

    def definition(x, weight, running):
        moment = x.square().mean((0, 2, 3)) if running is None else running
        return x * by_channel(weight / (moment + layer.eps).sqrt(), x)

    weight = layer.weight.detach()
    with torch.no_grad():
        assert_as_good_as(layer(x), definition, (x, weight, running), "BatchScale2d")


def test_squares_beyond_half_precision_are_summed():
    x = (1000 * torch.rand(64, 3) + 300).half()
    y = BatchScale1d(3, dtype=torch.float32)(x)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float().square().mean(0), torch.ones(3), rtol=1e-2, atol=0)


@each_shape
def test_an_empty_batch_leaves_the_statistics_alone(kind, shape):
    layer = trained(kind, shape)
    before = copy.deepcopy(layer.state_dict())
    x = torch.empty(0, *shape[1:], dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


def test_a_single_value_for_each_channel_is_scaled_to_one():
    x, layer = draw(1, 5), BatchScale1d(5, eps=1e-12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x.sign())


def test_a_channel_of_zeros_stays_zero():
    x = draw(4, 5)
    x[:, 2] = 0
    assert torch.equal(trained(BatchScale1d, x.shape)(x)[:, 2], x[:, 2])


def test_nan_reaches_only_its_channel():
    x = draw(4, 5)
    x[1, 3] = torch.nan
    found = trained(BatchScale1d, x.shape)(x).isnan().any(0)
    assert found.tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_state_is_saved_copied_and_restored(affine, track):
    shape, options = (4, 5), {"affine": affine, "track_running_stats": track}
    layer = trained(BatchScale1d, shape, **options)
    names = ["weight"] * affine + ["running_square", "num_batches_tracked"] * track
    assert list(layer.state_dict()) == names
    assert [name for name, _ in layer.named_parameters()] == ["weight"] * affine
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = BatchScale1d(5, dtype=torch.float64, **options)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x = draw(*shape)
    copied = copy.deepcopy(layer)
    for mode in (False, True):
        want = layer.train(mode)(x)
        assert torch.equal(copied.train(mode)(x), want)
        assert torch.equal(fresh.train(mode)(x), want)
    layer.reset_parameters()
    assert torch.equal(layer.weight, torch.ones_like(layer.weight))


def test_it_is_no_batch_norm_that_would_be_synchronised():
    model = nn.Sequential(BatchScale1d(5), nn.BatchNorm1d(5))
    kinds = [type(layer) for layer in nn.SyncBatchNorm.convert_sync_batchnorm(model)]
    assert kinds == [BatchScale1d, nn.SyncBatchNorm]


@both_modes
def test_it_compiles_into_one_graph(training):
    x = draw(6, 5, 4, 4, requires_grad=True)
    layer = trained(BatchScale2d, x.shape, training)
    other = copy.deepcopy(layer)
    torch.compiler.reset()
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    got, want = compiled(x), layer(x)
    torch.testing.assert_close(got, want)
    g = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad(got, [x, other.weight], g), torch.autograd.grad(want, [x, layer.weight], g), strict=True
    ):
        torch.testing.assert_close(a, b)
    for name, t in layer.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], t)


@pytest.mark.parametrize(
    ("kind", "x"),
    [
        (BatchScale1d, torch.ones(4)),
        (BatchScale1d, torch.ones(2, 5, 3, 3)),
        (BatchScale1d, torch.ones(2, 4)),
        (BatchScale2d, torch.ones(5, 3, 3)),
        (BatchScale2d, torch.ones(2, 5, 3, 3, 3)),
        (BatchScale3d, torch.ones(2, 5, 3, 3)),
        (BatchScale2d, torch.ones(2, 5, 3, 3, dtype=torch.long)),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else f"{list(value.shape)}",
)
def test_inputs_of_another_shape_or_of_integers_are_refused(kind, x):
    layer = kind(5)
    with pytest.raises(ValueError, match=rf"{kind.__name__} wants .*\[B, 5.*, got \[{x.shape[0]}"):
        layer(x)
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("num_features", {"num_features": 0}),
        ("eps", {"num_features": 3, "eps": 0.0}),
        ("eps", {"num_features": 3, "eps": float("nan")}),
        ("momentum", {"num_features": 3, "momentum": 1.5}),
    ],
    ids=str,
)
def test_impossible_options_are_refused(name, options):
    with pytest.raises(ValueError, match=f"`{name}` is .*wanted"):
        BatchScale2d(**options)


class OfWeight(Layer):
    """The rule as one of the weight alone: each forward starts from the same statistics."""

    def __init__(self, rule, statistics):
        self.rule, self.statistics = rule, statistics

    def forward(self, params, *inputs):
        return self.rule.forward((*params, *(t.clone() for t in self.statistics)), *inputs)

    def tangent(self, frame, *tangents):
        return self.rule.tangent(frame, *tangents)

    def cotangent(self, frame, g):
        return self.rule.cotangent(frame, g)

    def parameter_gradients(self, frame, pairs):
        gradient, *others = self.rule.parameter_gradients(frame, pairs)
        assert others == [None, None]
        return (gradient,)


def rule_case(module, x):
    rule = rule_of(type(module))
    weight, *statistics = (getattr(module, name).detach() for name in rule.tensors)

    def function(params, h):
        state = dict(zip(rule.tensors, (*params, *(t.clone() for t in statistics)), strict=True))
        return torch.func.functional_call(module, state, (h,))

    return Case(OfWeight(rule.build(module), statistics), function, (weight,), (x,))


@each_shape
@both_modes
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}], ids=str)
def test_the_rule_is_what_pytorch_differentiates(kind, shape, training, options):
    module = trained(kind, shape, training, **options)
    assert_rule(rule_case(module, draw(*shape)))
    assert_rule(rule_case(module, draw(0, *shape[1:])))
    dense = draw(*shape).transpose(0, -1).contiguous().transpose(0, -1)
    assert_rule(rule_case(module, dense))


@each_shape
@both_modes
def test_the_forward_map_of_the_rule_updates_the_statistics_once_and_no_other_map_does(kind, shape, training):
    module, x = trained(kind, shape, training), draw(*shape)
    want = copy.deepcopy(module)
    want(x)
    rule = rule_of(kind)
    layer = rule.build(module)
    with torch.no_grad():
        params = tuple(getattr(module, name) for name in rule.tensors)
        out, residual = layer.forward(params, x)
        frame = Frame(params[: layer.keeps], (x.shape,), out.shape, residual)
        layer.tangent(frame, x)
        layer.cotangent(frame, x)
        layer.parameter_gradients(frame, [(x, x)])
    for name, t in want.state_dict().items():
        assert torch.equal(module.state_dict()[name], t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_of_the_weight_is_as_good_as_pytorch(dtype):
    x, g = draw(64, 5, 8, 8, dtype=dtype), draw(64, 5, 8, 8, dtype=dtype)
    module = trained(BatchScale2d, x.shape, dtype=dtype)
    layer = rule_of(BatchScale2d).build(module)
    with torch.no_grad():
        params = (module.weight, module.running_square, module.num_batches_tracked)
        out, residual = layer.forward(params, x)
        frame = Frame(params[:1], (x.shape,), out.shape, residual)
        gradient, *_ = layer.parameter_gradients(frame, [(g, x), (x, g)])

    def definition(x, g):
        factor = (x.square().mean((0, 2, 3)) + module.eps).rsqrt()
        return 2 * factor * (g * x).sum((0, 2, 3))

    assert_as_good_as(gradient, definition, (x, g), "gradient of the weight")


def test_the_rule_names_its_layer_when_it_refuses_an_input():
    module = BatchScale2d(5)
    layer = rule_of(BatchScale2d).build(module)
    layer.name, layer.kind = "features.1", "BatchScale2d"
    with pytest.raises(ValueError, match=r"layer 'features.1' \(BatchScale2d\) wants .*got \[2, 4, 3, 3\]"):
        layer.forward((module.weight, module.running_square, module.num_batches_tracked), torch.ones(2, 4, 3, 3))


@both_modes
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_step_through_the_sweeps_equals_double_backward_and_records_one_batch(training, outputs):
    model = nn.Sequential(
        *(nn.Conv2d(2, 5, 3, bias=False), BatchScale2d(5), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(80, 6, bias=False), BatchScale1d(6, affine=False), nn.ReLU(), nn.Linear(6, outputs, bias=False)),
    )
    model.double().train(training)
    other, x = copy.deepcopy(model), draw(7, 2, 6, 6)
    target = None if outputs == 1 else torch.randint(outputs, (7,))
    got, want = run_step(xa.attribute, model, x, target), run_step(eager_attribute, other, x, target)
    assert_same_step(got, want)
    assert model[1].num_batches_tracked == training
    for name, t in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], t)
