"""Rules of pooling against PyTorch: every map, layout and dtype, and what is refused."""

import pytest
import torch
from cases import DTYPES
from layers import Traced, assert_close, assert_rule, of_call, of_module
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from xattr_cuda.sweep.errors import UnsupportedLayerError
from xattr_cuda.sweep.layer import Frame
from xattr_cuda.sweep.rules import pooling
from xattr_cuda.sweep.rules.registry import Value, function_rule_of, rule_of

SPACE = {1: (13,), 2: (9, 11), 3: (6, 7, 5)}

MODULES = {
    "max, windows that meet": lambda n: getattr(nn, f"MaxPool{n}d")(2),
    "max, windows that overlap": lambda n: getattr(nn, f"MaxPool{n}d")(3, stride=2, padding=1),
    "max, ceil": lambda n: getattr(nn, f"MaxPool{n}d")(2, stride=3, ceil_mode=True),
    "max, dilated": lambda n: getattr(nn, f"MaxPool{n}d")(2, stride=1, padding=1, dilation=2),
    "max, gaps": lambda n: getattr(nn, f"MaxPool{n}d")((2,) * n, stride=(3,) * n),
    "average": lambda n: getattr(nn, f"AvgPool{n}d")(2),
    "average, overlapping": lambda n: getattr(nn, f"AvgPool{n}d")(3, stride=2, padding=1),
    "average, ceil": lambda n: getattr(nn, f"AvgPool{n}d")(3, stride=2, padding=1, ceil_mode=True),
    "average, without padding": lambda n: getattr(nn, f"AvgPool{n}d")(3, 2, 1, count_include_pad=False),
    "adaptive max": lambda n: getattr(nn, f"AdaptiveMaxPool{n}d")(4),
    "adaptive max, one": lambda n: getattr(nn, f"AdaptiveMaxPool{n}d")(1),
    "adaptive average": lambda n: getattr(nn, f"AdaptiveAvgPool{n}d")(4),
    "adaptive average, one": lambda n: getattr(nn, f"AdaptiveAvgPool{n}d")(1),
}
DIMS = pytest.mark.parametrize("dims", SPACE)


def tied(*shape, dtype=torch.float64):
    """Values with many ties, and some NaN-free windows of equal values."""
    return torch.randn(shape, dtype=torch.float64).round().to(dtype)


def channels_last(t):
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def layouts(t):
    """The tensor contiguous, with channels last, and with gaps in memory."""
    return {"contiguous": t, "channels last": channels_last(t), "sliced": torch.stack([t, -t], -1)[..., 0]}


@DIMS
@pytest.mark.parametrize("name", MODULES)
def test_maps_of_pooling_modules_are_those_of_pytorch(name, dims):
    for h in layouts(tied(2, 3, *SPACE[dims])).values():
        assert_rule(of_module(MODULES[name](dims), h))


@DIMS
@pytest.mark.parametrize("name", MODULES)
def test_an_empty_batch_is_pooled(name, dims):
    assert_rule(of_module(MODULES[name](dims), torch.randn(0, 3, *SPACE[dims], dtype=torch.float64)))


CALLS = {
    "F.max_pool1d": lambda: (F.max_pool1d, (2, 3, 13), (3, 2, 1), {"ceil_mode": True}),
    "torch.max_pool1d": lambda: (torch.max_pool1d, (2, 3, 13), (3,), {}),
    "F.max_pool2d": lambda: (F.max_pool2d, (2, 3, 8, 9), ((3, 2),), {"stride": (2, 1), "dilation": 2}),
    "torch.max_pool2d": lambda: (torch.max_pool2d, (2, 3, 8, 9), ([2, 2],), {}),
    "F.max_pool3d": lambda: (F.max_pool3d, (2, 3, 6, 5, 4), (2, 1), {}),
    "torch.max_pool3d": lambda: (torch.max_pool3d, (2, 3, 6, 5, 4), (2,), {"padding": 1}),
    "F.avg_pool1d": lambda: (F.avg_pool1d, (2, 3, 13), (3, 2, 1, True, False), {}),
    "F.avg_pool2d": lambda: (F.avg_pool2d, (2, 3, 8, 9), ((3, 2),), {"divisor_override": 5}),
    "F.avg_pool3d": lambda: (F.avg_pool3d, (2, 3, 6, 5, 4), (2,), {"padding": (1, 0, 1), "divisor_override": 3}),
    "F.adaptive_avg_pool1d": lambda: (torch.adaptive_avg_pool1d, (2, 3, 13), (5,), {}),
    "F.adaptive_avg_pool2d": lambda: (F.adaptive_avg_pool2d, (2, 3, 8, 9), ((None, 4),), {}),
    "F.adaptive_avg_pool3d": lambda: (F.adaptive_avg_pool3d, (2, 3, 6, 5, 4), ((2, None, 3),), {}),
    "F.adaptive_max_pool1d": lambda: (F.adaptive_max_pool1d, (2, 3, 13), (5,), {}),
    "F.adaptive_max_pool2d": lambda: (F.adaptive_max_pool2d, (2, 3, 8, 9), ((3, None),), {}),
    "F.adaptive_max_pool3d": lambda: (F.adaptive_max_pool3d, (2, 3, 6, 5, 4), (2,), {}),
    "windows of more than 256 elements, 1d": lambda: (F.max_pool1d, (2, 1, 400), (257, 30, 5), {}),
    "windows of more than 256 elements, 2d": lambda: (F.max_pool2d, (2, 2, 20, 24), (17, 2, 3), {"ceil_mode": True}),
    "windows of more than 256 elements, 3d": lambda: (F.max_pool3d, (2, 2, 9, 8, 9), (7,), {"padding": 1}),
    "windows of 256 elements": lambda: (F.max_pool2d, (2, 2, 20, 24), (16, 1), {}),
    "torch.amax": lambda: (torch.amax, (2, 3, 8, 9), ((2, 3),), {}),
    "amax of one dimension": lambda: ("amax", (2, 3, 8), (-1, True), {}),
    "amax over channels": lambda: ("amax", (2, 5, 4), (), {"dim": 1}),
}


def case_of(name, arranged=lambda t: t):
    target, shape, args, kwargs = CALLS[name]()
    return of_call(target, Traced(arranged(tied(*shape))), *args, **kwargs)


@pytest.mark.parametrize("name", CALLS)
def test_maps_of_pooling_functions_are_those_of_pytorch(name):
    for arranged in (lambda t: t, channels_last):
        assert_rule(case_of(name, arranged))


def module_case(name, dims, arranged=lambda t: t):
    return of_module(MODULES[name](dims), arranged(tied(2, 3, *SPACE[dims])))


def all_cases(arranged=lambda t: t):
    return [module_case(name, dims, arranged) for name in MODULES for dims in SPACE] + [
        case_of(name, arranged) for name in CALLS
    ]


def maps(case, h, g):
    """Every tensor that the maps of a case make of an input and a cotangent."""
    out, residual = case.layer.forward((), h)
    frame = Frame((), (h.shape,), out.shape, residual)
    return out, *residual, case.layer.tangent(frame, torch.ones_like(h)), case.layer.cotangent(frame, g)


@pytest.mark.parametrize("arranged", [lambda t: t, channels_last], ids=["contiguous", "channels last"])
def test_fake_maps_have_the_shapes_and_strides_of_real_ones(arranged):
    for case in all_cases(arranged):
        (h,) = case.inputs
        g = torch.randn_like(case.function((), h))
        with FakeTensorMode() as mode:
            fakes = maps(case, mode.from_tensor(h), mode.from_tensor(g))
        for real, fake in zip(maps(case, h, g), fakes, strict=True):
            what = f"{type(case.layer).__name__} of {list(h.shape)}"
            assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype), what


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", MODULES)
def test_channels_last_is_kept(name, dims):
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    case = module_case(name, dims, channels_last)
    out, *_, tangent, cotangent = maps(case, case.inputs[0], torch.randn_like(case.function((), *case.inputs)))
    for t in (out, tangent, cotangent):
        assert t.is_contiguous(memory_format=layout)


@DIMS
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_are_those_of_pytorch_at_every_dtype(name, dims, dtype):
    h = tied(2, 3, *SPACE[dims], dtype=dtype)
    module = MODULES[name](dims)
    try:
        want = module(h)
    except NotImplementedError:
        pytest.skip("PyTorch has no kernel for this dtype")
    layer = rule_of(type(module)).build(module)
    out, residual = layer.forward((), h)
    assert_close(out, want, name)
    frame = Frame((), (h.shape,), out.shape, residual)
    assert layer.tangent(frame, h).dtype == layer.cotangent(frame, out).dtype == dtype


def test_nan_and_infinity_are_pooled_as_in_pytorch():
    h = torch.tensor([[1, float("nan"), 2, float("nan"), -float("inf"), -float("inf"), 3, float("inf")]]).double()
    h = h.view(1, 1, 8).requires_grad_()
    cases = [of_module(module, h) for module in (nn.MaxPool1d(2), nn.MaxPool1d(4, 1), nn.MaxPool1d(3, 2, 1))]
    for case in (*cases, of_module(nn.AdaptiveMaxPool1d(2), h), of_call("amax", Traced(h), 2)):
        want = case.function((), h)
        g = torch.randn_like(want)
        out, *_, cotangent = maps(case, h.detach(), g)
        assert_close(out, want.detach(), "forward")
        assert_close(cotangent, torch.autograd.grad(want, h, g)[0], "cotangent")


def test_the_residual_of_max_pooling_is_a_byte_for_each_output():
    layer = rule_of(nn.MaxPool2d).build(nn.MaxPool2d(3, 2))
    out, residual = layer.forward((), torch.randn(2, 3, 9, 9))
    assert [(t.dtype, t.shape) for t in residual] == [(torch.uint8, out.shape)]


def test_the_residual_of_an_average_takes_no_memory():
    for module in (nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)):
        _, residual = rule_of(type(module)).build(module).forward((), torch.randn(2, 3, 8, 8))
        assert sum(t.numel() for t in residual) == 0


def test_max_pooling_commutes_with_relu():
    assert pooling.MaxPoolRule.rectifies
    for dims, space in SPACE.items():
        h = torch.randn(2, 3, *space)
        layer = pooling.MaxPoolRule(dims, 3, 2, 1)
        assert torch.equal(layer.forward((), h.relu())[0], layer.forward((), h)[0].relu())


@DIMS
@pytest.mark.parametrize("name", MODULES)
def test_an_unbatched_input_is_refused_by_name(name, dims):
    layer = rule_of(type(MODULES[name](dims))).build(MODULES[name](dims))
    layer.name, layer.kind = "features.3", "Pool"
    with pytest.raises(ValueError, match=r"^layer 'features.3' \(Pool\) wants a batch \[B, C"):
        layer.forward((), torch.randn(3, *SPACE[dims]))


def test_windows_that_do_not_fit_are_refused_by_name():
    layer = pooling.MaxPoolRule(2, 4)
    layer.name, layer.kind = "features.3", "MaxPool2d"
    with pytest.raises(ValueError, match=r"^layer 'features.3' \(MaxPool2d\).*room for a window of \[4, 4\]"):
        layer.forward((), torch.randn(2, 3, 8, 3))


def test_maxima_over_the_batch_are_refused_by_name():
    for dim in ((), 0, -3, (1, -3)):
        layer = pooling.AmaxRule(dim, False)
        layer.name, layer.kind = "amax", "amax"
        with pytest.raises(ValueError, match=r"^layer 'amax' \(amax\).*the batch"):
            layer.forward((), torch.randn(2, 3, 4))


@pytest.mark.parametrize("kind", [nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d])
def test_modules_that_return_indices_are_refused(kind):
    with pytest.raises(UnsupportedLayerError, match="return_indices=False"):
        rule_of(kind).build(kind(2, return_indices=True))


@DIMS
def test_functions_that_return_indices_are_refused(dims):
    pools = [(getattr(F, f"max_pool{dims}d"), 2), (getattr(F, f"adaptive_max_pool{dims}d"), 2)]
    for function, setting in pools:
        with pytest.raises(UnsupportedLayerError, match="return_indices=False"):
            function_rule_of(function)(Value(0), setting, return_indices=True)
    for name in (f"max_pool{dims}d_with_indices", f"adaptive_max_pool{dims}d_with_indices"):
        with pytest.raises(UnsupportedLayerError, match="return_indices=False"):
            function_rule_of(getattr(F, name))(Value(0), 2)


def test_pooling_by_norms_or_at_random_has_no_rule():
    assert not any(rule_of(kind) for kind in (nn.LPPool1d, nn.LPPool2d, nn.FractionalMaxPool2d, nn.MaxUnpool2d))
