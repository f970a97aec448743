"""Interpolation in every mode and the shuffles: every map against PyTorch, formats, dtypes and refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers import Case, Traced, assert_close, assert_rule, of_call, of_module
from test_rules_conv import assert_same_without_data, converted, maps, randn
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from xattr_cuda.sweep.rules.upsample import ChannelShuffleRule, InterpolateRule, PixelShuffleRule

SHAPES = {1: (2, 3, 7), 2: (2, 3, 5, 6), 3: (2, 2, 4, 3, 5)}
MODES = {
    "nearest": (1, 2, 3),
    "nearest-exact": (1, 2, 3),
    "area": (1, 2, 3),
    "linear": (1,),
    "bilinear": (2,),
    "trilinear": (3,),
    "bicubic": (2,),
}
SIZES: dict[str, dict[str, Any]] = {
    "size": {"size": 4},
    "sizes": {"size": (9, 3, 6)},
    "one": {"size": 1},
    "factor": {"scale_factor": 2},
    "odd factor": {"scale_factor": 1.7},
    "factors": {"scale_factor": (0.6, 2.4, 1.5)},
    "recomputed factors": {"scale_factor": (0.6, 2.4, 1.5), "recompute_scale_factor": True},
}


def interpolations() -> dict[str, tuple[tuple[int, ...], dict[str, Any]]]:
    """The shape of an input and the arguments of F.interpolate, by name."""
    found = {}
    for mode, dims in MODES.items():
        for n in dims:
            for name, sizes in SIZES.items():
                cut = {k: v[:n] if isinstance(v, tuple) else v for k, v in sizes.items()}
                found[f"{mode} {n}d {name}"] = (SHAPES[n], {"mode": mode, **cut})
                if "linear" in mode or mode == "bicubic":
                    found[f"{mode} {n}d {name} aligned"] = (SHAPES[n], {"mode": mode, "align_corners": True, **cut})
    for mode in ("bilinear", "bicubic"):
        for name, sizes in ({"size": (3, 8)}, {"scale_factor": (0.6, 1.7)}), ({"size": 3}, {"scale_factor": 0.7}):
            for arguments in (name, sizes):
                found[f"{mode} antialiased {arguments}"] = (SHAPES[2], {"mode": mode, "antialias": True, **arguments})
    return found


INTERPOLATIONS = interpolations()
SHUFFLES: dict[str, tuple[Callable[..., Tensor], Callable[..., nn.Module], int, tuple[int, ...]]] = {
    "pixel": (F.pixel_shuffle, nn.PixelShuffle, 2, (2, 12, 3, 4)),
    "pixel by one": (F.pixel_shuffle, nn.PixelShuffle, 1, (2, 3, 3, 4)),
    "pixel, batches of batches": (F.pixel_shuffle, nn.PixelShuffle, 3, (2, 2, 9, 3, 4)),
    "unpixel": (F.pixel_unshuffle, nn.PixelUnshuffle, 2, (2, 3, 6, 4)),
    "channel": (F.channel_shuffle, nn.ChannelShuffle, 3, (2, 12, 3, 4)),
    "channel by one": (F.channel_shuffle, nn.ChannelShuffle, 1, (2, 12, 3, 4)),
    "channel, 1d": (F.channel_shuffle, nn.ChannelShuffle, 2, (2, 6, 5)),
    "channel, 3d": (F.channel_shuffle, nn.ChannelShuffle, 2, (2, 6, 2, 4, 3)),
}


def case_of(name: str) -> Case:
    if name in INTERPOLATIONS:
        shape, arguments = INTERPOLATIONS[name]
        return of_call(F.interpolate, Traced(randn(*shape)), **arguments)
    _, kind, setting, shape = SHUFFLES[name]
    return of_module(kind(setting), randn(*shape))


@pytest.mark.parametrize("name", [*INTERPOLATIONS, *SHUFFLES])
def test_every_map_of_resampling_is_what_pytorch_differentiates_to(name: str) -> None:
    assert_rule(case_of(name))


@pytest.mark.parametrize(
    "module",
    [
        nn.Upsample(size=(3, 9)),
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=(1.3, 2.6), mode="bilinear"),
        nn.Upsample(scale_factor=1.3, mode="bicubic", align_corners=True),
        nn.Upsample(scale_factor=1.3, mode="bilinear", recompute_scale_factor=True),
        nn.UpsamplingNearest2d(scale_factor=3),
        nn.UpsamplingBilinear2d(size=8),
    ],
    ids=str,
)
def test_every_map_of_an_upsampling_module_is_what_pytorch_differentiates_to(module: nn.Module) -> None:
    case = of_module(module, randn(2, 3, 5, 6))
    assert isinstance(case.layer, InterpolateRule)
    assert_rule(case)


@pytest.mark.filterwarnings("ignore:`nn.functional.upsample")
@pytest.mark.parametrize(
    ("target", "args"),
    [
        (F.upsample, (4,)),
        (F.upsample, (None, 1.7, "bilinear", True)),
        (F.upsample_nearest, (None, 2)),
        (F.upsample_bilinear, ((7, 3),)),
    ],
)
def test_every_map_of_the_older_functions_is_what_pytorch_differentiates_to(target: Any, args: tuple[Any, ...]) -> None:
    assert_rule(of_call(target, Traced(randn(2, 3, 5, 6)), *args))


@pytest.mark.parametrize("name", SHUFFLES)
def test_every_map_of_a_functional_shuffle_is_what_pytorch_differentiates_to(name: str) -> None:
    function, kind, setting, shape = SHUFFLES[name]
    rules = {nn.ChannelShuffle: ChannelShuffleRule}
    case = of_call(function, Traced(randn(*shape)), setting)
    assert isinstance(case.layer, rules.get(kind, PixelShuffleRule))
    assert_rule(case)


@pytest.mark.parametrize("name", ["bilinear 2d factors", "area 2d size", "bicubic 2d odd factor", "pixel", "channel"])
def test_maps_of_strided_inputs_are_exact(name: str) -> None:
    case = case_of(name)
    shape = case.inputs[0].shape
    assert_rule(case._replace(inputs=(randn(*reversed(shape)).permute(3, 2, 1, 0),)))
    assert_rule(case._replace(inputs=(randn(*shape[:-1], 1).expand(shape),)))


def test_shapes_and_strides_are_foreseen_without_data() -> None:
    for name in (*INTERPOLATIONS, *SHUFFLES):
        case = case_of(name)
        assert_same_without_data(case)
        if case.inputs[0].dim() == 4 and "2d one" not in name:  # one pixel has no format to foresee
            assert_same_without_data(converted(case, lambda t: t.float().to(memory_format=torch.channels_last)))


@pytest.mark.parametrize("name", [*INTERPOLATIONS, *SHUFFLES])
def test_an_empty_batch_passes_through_every_map(name: str) -> None:
    case = case_of(name)
    h = case.inputs[0][:0]
    empty = maps(case._replace(inputs=(h,)))
    assert empty["forward"].shape == empty["tangent"].shape == case.function((), *case.inputs)[:0].shape
    assert_close(empty["cotangent"], h, "cotangent")


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_interpolation_is_exact_under_deterministic_algorithms(name: str) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert_rule(case_of(name))
        assert_same_without_data(case_of(name))
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("name", ["nearest 3d factors", "bilinear 2d sizes", "bicubic 2d factor aligned", *SHUFFLES])
def test_one_trace_with_symbolic_sizes_serves_other_sizes(name: str) -> None:
    case = case_of(name)
    traced = make_fx(lambda h: tuple(maps(case._replace(inputs=(h,))).values()), tracing_mode="symbolic")(*case.inputs)
    h = torch.cat([case.inputs[0]] * 2)
    for got, (what, want) in zip(traced(h), maps(case._replace(inputs=(h,))).items(), strict=True):
        assert_close(got, want, what)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name",
    [
        *(f"{mode} {n}d {size}" for mode, dims in MODES.items() for n in dims for size in ("sizes", "factors")),
        *SHUFFLES,
    ],
)
def test_every_dtype_is_kept_and_near_float64(name: str, dtype: torch.dtype) -> None:
    case = converted(case_of(name), lambda t: t.to(dtype))
    want = maps(converted(case, lambda t: t.double()))
    for what, t in maps(case).items():
        assert t.dtype == dtype, what
        assert (t.double() - want[what]).norm() <= 8 * torch.finfo(dtype).eps * want[what].norm(), what


IMAGES = [name for name in (*INTERPOLATIONS, *SHUFFLES) if "1d" not in name and "batches" not in name]


@pytest.mark.parametrize("name", IMAGES)
def test_channels_last_is_kept_where_pytorch_keeps_it(name: str) -> None:
    case = converted(case_of(name), lambda t: t.float())
    (h,) = case.inputs
    layout = torch.channels_last if h.dim() == 4 else torch.channels_last_3d
    h = h.to(memory_format=layout)
    found = maps(case._replace(inputs=(h,)))
    leaf = h.clone().requires_grad_()
    out = case.function((), leaf)
    (gradient,) = torch.autograd.grad(out, leaf, out.detach())
    for what, like in (("forward", out), ("tangent", out), ("cotangent", gradient)):
        kept = like.is_contiguous(memory_format=layout)
        assert found[what].is_contiguous(memory_format=layout) or not kept, f"{what}: {found[what].stride()}"
    if h.dim() == 4:
        lost = [what for what, t in found.items() if not t.is_contiguous(memory_format=layout)]
        assert not lost, f"{lost} in another format"


def test_a_pixel_shuffle_that_would_take_the_batch_for_channels_is_refused() -> None:
    for module in (nn.PixelShuffle(2), nn.PixelUnshuffle(2)):
        case = of_module(module, randn(4, 6, 8))
        with pytest.raises(ValueError, match=r"^layer .* wants \[B, \.\.\., C, H, W\], got \[4, 6, 8\]"):
            case.layer.forward((), *case.inputs)


@pytest.mark.parametrize("shape", [(2, 12), (2, 5, 3, 3)])
def test_a_channel_shuffle_of_channels_that_do_not_divide_is_refused(shape: tuple[int, ...]) -> None:
    case = of_module(nn.ChannelShuffle(3), randn(*shape))
    with pytest.raises(ValueError, match=r"^layer .* wants \[B, C, \*\] with C a multiple of 3, got"):
        case.layer.forward((), *case.inputs)
