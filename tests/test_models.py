"""Models of the package: names and shapes of parameters, initialisation, homogeneity, sizes and errors."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from cases import NETWORKS
from torch import nn

import xattr_cuda as xa


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_of_the_benchmarks_are_x_dnns(name):
    widths = NETWORKS[name].widths
    model = xa.models.xmlp(widths)
    x = torch.randn(3, widths[0])
    assert [list(p.shape) for p in model.parameters()] == [[n, k] for k, n in pairwise(widths)]
    torch.testing.assert_close(model(4 * x), 4 * model(x), rtol=0, atol=0)
    output, attribution = xa.attribute(model, x, None if widths[-1] == 1 else 0)
    torch.testing.assert_close(attribution.sum(1), output[:, 0], rtol=1e-4, atol=1e-5)


def test_nothing_follows_the_output():
    for dropout in (0.0, 0.3):
        model = xa.models.xmlp([4, 8, 8, 2], activation=nn.PReLU, dropout=dropout)
        assert isinstance(model[-1], nn.Linear)
        assert sum(isinstance(layer, nn.PReLU) for layer in model) == 2
        assert sum(isinstance(layer, nn.Dropout) for layer in model) == 2 * bool(dropout)


def test_one_linear_layer_is_the_smallest_perceptron():
    assert [type(layer) for layer in xa.models.xmlp([4, 2])] == [nn.Linear]


def test_dtype_and_device_reach_every_parameter():
    model = xa.models.xmlp([4, 8, 2], activation=nn.PReLU, dtype=torch.bfloat16, device="meta")
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.bfloat16, "meta")}


@pytest.mark.parametrize("widths", [[], [4], [4, 0, 1], [4, -1]], ids=str)
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ValueError, match="`widths` is"):
        xa.models.xmlp(widths)


def table(text):
    """Lines of a name and its shape, as {name of the weight: shape}."""
    rows = [line.split() for line in text.strip().splitlines()]
    return {f"{name}.weight": [int(n) for n in shape.split("x")] for name, shape in rows}


ALEXNET = table("""
    features.0 64x3x11x11
    features.3 192x64x5x5
    features.6 384x192x3x3
    features.8 256x384x3x3
    features.10 256x256x3x3
    classifier.1 4096x9216
    classifier.4 4096x4096
    classifier.6 1000x4096
""")

VGG16 = table("""
    features.0 64x3x3x3
    features.2 64x64x3x3
    features.5 128x64x3x3
    features.7 128x128x3x3
    features.10 256x128x3x3
    features.12 256x256x3x3
    features.14 256x256x3x3
    features.17 512x256x3x3
    features.19 512x512x3x3
    features.21 512x512x3x3
    features.24 512x512x3x3
    features.26 512x512x3x3
    features.28 512x512x3x3
    classifier.0 4096x25088
    classifier.3 4096x4096
    classifier.6 1000x4096
""")

RESNET18 = table("""
    conv1 64x3x7x7
    layer1.0.conv1 64x64x3x3
    layer1.0.conv2 64x64x3x3
    layer1.1.conv1 64x64x3x3
    layer1.1.conv2 64x64x3x3
    layer2.0.conv1 128x64x3x3
    layer2.0.conv2 128x128x3x3
    layer2.0.downsample 128x64x1x1
    layer2.1.conv1 128x128x3x3
    layer2.1.conv2 128x128x3x3
    layer3.0.conv1 256x128x3x3
    layer3.0.conv2 256x256x3x3
    layer3.0.downsample 256x128x1x1
    layer3.1.conv1 256x256x3x3
    layer3.1.conv2 256x256x3x3
    layer4.0.conv1 512x256x3x3
    layer4.0.conv2 512x512x3x3
    layer4.0.downsample 512x256x1x1
    layer4.1.conv1 512x512x3x3
    layer4.1.conv2 512x512x3x3
    fc 1000x512
""")

RESNET50 = table("""
    conv1 64x3x7x7
    layer1.0.conv1 64x64x1x1
    layer1.0.conv2 64x64x3x3
    layer1.0.conv3 256x64x1x1
    layer1.0.downsample 256x64x1x1
    layer1.1.conv1 64x256x1x1
    layer1.1.conv2 64x64x3x3
    layer1.1.conv3 256x64x1x1
    layer1.2.conv1 64x256x1x1
    layer1.2.conv2 64x64x3x3
    layer1.2.conv3 256x64x1x1
    layer2.0.conv1 128x256x1x1
    layer2.0.conv2 128x128x3x3
    layer2.0.conv3 512x128x1x1
    layer2.0.downsample 512x256x1x1
    layer2.1.conv1 128x512x1x1
    layer2.1.conv2 128x128x3x3
    layer2.1.conv3 512x128x1x1
    layer2.2.conv1 128x512x1x1
    layer2.2.conv2 128x128x3x3
    layer2.2.conv3 512x128x1x1
    layer2.3.conv1 128x512x1x1
    layer2.3.conv2 128x128x3x3
    layer2.3.conv3 512x128x1x1
    layer3.0.conv1 256x512x1x1
    layer3.0.conv2 256x256x3x3
    layer3.0.conv3 1024x256x1x1
    layer3.0.downsample 1024x512x1x1
    layer3.1.conv1 256x1024x1x1
    layer3.1.conv2 256x256x3x3
    layer3.1.conv3 1024x256x1x1
    layer3.2.conv1 256x1024x1x1
    layer3.2.conv2 256x256x3x3
    layer3.2.conv3 1024x256x1x1
    layer3.3.conv1 256x1024x1x1
    layer3.3.conv2 256x256x3x3
    layer3.3.conv3 1024x256x1x1
    layer3.4.conv1 256x1024x1x1
    layer3.4.conv2 256x256x3x3
    layer3.4.conv3 1024x256x1x1
    layer3.5.conv1 256x1024x1x1
    layer3.5.conv2 256x256x3x3
    layer3.5.conv3 1024x256x1x1
    layer4.0.conv1 512x1024x1x1
    layer4.0.conv2 512x512x3x3
    layer4.0.conv3 2048x512x1x1
    layer4.0.downsample 2048x1024x1x1
    layer4.1.conv1 512x2048x1x1
    layer4.1.conv2 512x512x3x3
    layer4.1.conv3 2048x512x1x1
    layer4.2.conv1 512x2048x1x1
    layer4.2.conv2 512x512x3x3
    layer4.2.conv3 2048x512x1x1
    fc 1000x2048
""")

PARAMETERS = {  # of the published architectures, without biases and batch normalisation
    "xalexnet": 61090496,
    "xvgg11": 132851392,
    "xvgg13": 133035712,
    "xvgg16": 138344128,
    "xvgg19": 143652544,
    "xfixup_resnet18": 11678912,
    "xfixup_resnet34": 21779648,
    "xfixup_resnet50": 25502912,
    "xfixup_resnet101": 44442816,
    "xfixup_resnet152": 60040384,
}
VGG_INDICES = {  # of the convolutions in `features`
    "xvgg11": [0, 3, 6, 8, 11, 13, 16, 18],
    "xvgg13": [0, 2, 5, 7, 10, 12, 15, 17, 20, 22],
    "xvgg19": [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34],
}
RESNET_DEPTHS = {
    "xfixup_resnet34": (2, [3, 4, 6, 3]),
    "xfixup_resnet101": (3, [3, 4, 23, 3]),
    "xfixup_resnet152": (3, [3, 8, 36, 3]),
}
SMALLEST = {name: 63 if name == "xalexnet" else 32 for name in PARAMETERS}
each_model = pytest.mark.parametrize("name", PARAMETERS)


def build(name, **options):
    return getattr(xa.models, name)(**options)


def shapes(model):
    return {name: list(t.shape) for name, t in model.state_dict().items()}


def test_every_image_model_is_public_and_tested():
    assert set(xa.models.__all__) == {*PARAMETERS, "xmlp", "load_checkpoint"}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("xalexnet", ALEXNET), ("xvgg16", VGG16), ("xfixup_resnet18", RESNET18), ("xfixup_resnet50", RESNET50)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parameters_have_the_names_and_shapes_of_the_published_checkpoints(name, wanted):
    assert shapes(build(name, device="meta")) == wanted


@pytest.mark.parametrize("name", VGG_INDICES)
def test_vgg_layers_are_numbered_as_in_torchvision(name):
    names = [f"features.{i}.weight" for i in VGG_INDICES[name]] + [f"classifier.{i}.weight" for i in (0, 3, 6)]
    assert list(build(name, device="meta").state_dict()) == names


@pytest.mark.parametrize("name", RESNET_DEPTHS)
def test_residual_blocks_are_numbered_from_zero_in_four_stages(name):
    convs, depths = RESNET_DEPTHS[name]
    names = {"conv1.weight", "fc.weight"}
    for stage, depth in enumerate(depths, 1):
        names |= {f"layer{stage}.{i}.conv{k}.weight" for i in range(depth) for k in range(1, convs + 1)}
        if stage > 1 or convs == 3:
            names.add(f"layer{stage}.0.downsample.weight")
    assert set(build(name, device="meta").state_dict()) == names


@each_model
def test_the_published_number_of_parameters_and_none_of_them_a_bias(name):
    model = build(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert all(getattr(module, "bias", None) is None for module in model.modules())
    assert not list(model.buffers())


@each_model
def test_images_of_every_size_give_a_logit_for_each_class(name):
    for size in (SMALLEST[name], 64, 96, 224, 299):
        model = build(name, num_classes=7, in_channels=2, image_size=size, device="meta", dtype=torch.bfloat16)
        for side in (size, size + 17):
            y = model(torch.empty(2, 2, side, side, device="meta", dtype=torch.bfloat16))
            assert (y.shape, y.dtype) == ((2, 7), torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [
        *[("xvgg11", 32, 512), ("xvgg11", 64, 512 * 4), ("xvgg16", 96, 512 * 9), ("xvgg16", 300, 512 * 49)],
        *[("xalexnet", 63, 256), ("xalexnet", 64, 256), ("xalexnet", 222, 256 * 25), ("xalexnet", 223, 256 * 36)],
    ],
)
def test_the_classifier_is_as_wide_as_the_features_of_its_image_size(name, size, width):
    model = build(name, image_size=size, device="meta")
    assert next(m for m in model.classifier if isinstance(m, nn.Linear)).in_features == width
    features = model.features(torch.empty(1, 3, size, size, device="meta"))
    full = {"xvgg11": 7, "xvgg16": 7, "xalexnet": 6}[name]
    assert features[:, :, :full, :full].numel() == width


@each_model
def test_too_small_images_and_impossible_options_are_refused(name):
    with pytest.raises(ValueError, match="`num_classes` is 0; wanted an integer of at least 1"):
        build(name, num_classes=0)
    with pytest.raises(ValueError, match="`in_channels` is -1; wanted an integer of at least 1"):
        build(name, in_channels=-1)
    smallest = 1 if "resnet" in name else SMALLEST[name]
    with pytest.raises(ValueError, match=f"`image_size` is {smallest - 1}; wanted an integer of at least {smallest}"):
        build(name, image_size=smallest - 1)
    with pytest.raises(TypeError, match="unknown"):
        build(name, unknown=1)


@pytest.mark.parametrize("name", ["xalexnet", "xvgg11"])
def test_dropout_has_the_given_rate(name):
    model = build(name, image_size=64, dropout=0.2, device="meta")
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.2, 0.2]


def small(name):
    """The model for its smallest images in float64, with no layer at zero, and a batch of images."""
    model = build(name, num_classes=3, image_size=SMALLEST[name], device="meta", dtype=torch.float64).eval()
    for weight in model.to_empty(device="cpu").parameters():
        nn.init.kaiming_uniform_(weight, nonlinearity="relu")
    return model, torch.randn(2, 3, SMALLEST[name], SMALLEST[name], dtype=torch.float64)


@pytest.mark.parametrize("name", ["xalexnet", "xvgg11", "xfixup_resnet18", "xfixup_resnet50"])
def test_the_image_models_are_homogeneous_and_attribution_is_complete(name):
    model, x = small(name)
    y = model(x.requires_grad_())
    assert (y != 0).all()
    (gradient,) = torch.autograd.grad(y[:, 1].sum(), x)
    torch.testing.assert_close((x * gradient).sum((1, 2, 3)), y[:, 1], rtol=1e-9, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(model(2 * x), 2 * y, rtol=1e-12, atol=0)
        torch.testing.assert_close(model(0.3 * x), 0.3 * y, rtol=1e-9, atol=0)


@each_model
def test_symbolic_tracing_and_copies_keep_every_layer(name):
    model = build(name, device="meta")
    graph = torch.fx.symbolic_trace(copy.deepcopy(model)).graph
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    layers = {path for path, module in model.named_modules() if not list(module.children())}
    assert called == layers


def assert_drawn(weight, std):
    """Enough values, of mean zero and this standard deviation."""
    assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(weight.numel()))
    assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel())


def fan_out_std(conv):
    return math.sqrt(2 / (conv.out_channels * conv.kernel_size[0] ** 2))


def test_vgg_is_initialised_by_fan_out_and_its_classifier_by_one_hundredth():
    for module in build("xvgg11", image_size=32).modules():
        if isinstance(module, nn.Conv2d):
            assert_drawn(module.weight, fan_out_std(module))
        if isinstance(module, nn.Linear):
            assert_drawn(module.weight, 0.01)


@pytest.mark.parametrize(
    ("name", "last", "blocks", "exponent"),
    [("xfixup_resnet18", "conv2", 8, -1 / 2), ("xfixup_resnet50", "conv3", 16, -1 / 4)],
)
def test_fixup_scales_residual_branches_and_starts_their_ends_and_the_classifier_at_zero(name, last, blocks, exponent):
    model = build(name, image_size=32)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) or path.endswith(last):
            assert not module.weight.any()
        elif isinstance(module, nn.Conv2d):
            inside = path.startswith("layer") and not path.endswith("downsample")
            assert_drawn(module.weight, fan_out_std(module) * (blocks**exponent if inside else 1))
    x = torch.randn(2, 3, 32, 32)
    y = model(x)
    assert not y.any()
    y.square().sum().add(y.sum()).backward()
    assert model.fc.weight.grad.any()


@pytest.mark.parametrize("name", ["xfixup_resnet18", "xfixup_resnet50"])
def test_strides_sit_where_the_published_networks_have_them(name):
    strided = "conv1" if name.endswith("18") else "conv2"
    model = build(name, device="meta")
    found = {path for path, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)}
    assert found == {"conv1", *(f"layer{n}.0.{conv}" for n in (2, 3, 4) for conv in (strided, "downsample"))}
