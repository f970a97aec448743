"""Convolutions, transposed ones and their paddings: every map against PyTorch, formats, dtypes and refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers import Case, Param, Traced, assert_close, assert_rule, of_call, of_module
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from xattr_cuda.sweep.errors import NotHomogeneousError, UnsupportedLayerError
from xattr_cuda.sweep.layer import Frame
from xattr_cuda.sweep.rules.conv import ConvRule, stand_in
from xattr_cuda.sweep.rules.registry import Constant, Value, function_rule_of, reason_not_homogeneous, rule_of

CL, CL3 = torch.channels_last, torch.channels_last_3d
MODES = ("reflect", "replicate", "circular")


def randn(*shape: int, **kwargs: Any) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, **kwargs)


def maps(case: Case) -> dict[str, Tensor]:
    """What every map returns for tangents equal to the inputs and a cotangent equal to the output."""
    layer, _, params, inputs = case
    with torch.no_grad():
        out, residual = layer.forward(params, *inputs)
        frame = Frame(params, tuple(t.shape for t in inputs), out.shape, residual)
        results = {"forward": out, "tangent": layer.tangent(frame, *inputs), "cotangent": layer.cotangent(frame, out)}
        if params:
            (results["gradient"],) = layer.parameter_gradients(frame, [(out, inputs[0]), (out, inputs[0])])
    return results


def converted(case: Case, convert: Callable[[Tensor], Tensor]) -> Case:
    """The case with its tensors converted."""
    return case._replace(params=tuple(map(convert, case.params)), inputs=tuple(map(convert, case.inputs)))


def laid_out(t: Tensor) -> tuple[torch.Size, list[int], torch.dtype]:
    """Shape, the strides that matter, and dtype."""
    return t.shape, [step for size, step in zip(t.shape, t.stride(), strict=True) if size != 1], t.dtype


def assert_same_without_data(case: Case) -> None:
    """Every map runs on fake tensors and foresees shape, strides and dtype."""
    found = maps(case)
    with FakeTensorMode() as mode:
        foreseen = maps(converted(case, mode.from_tensor))
    for what, t in found.items():
        assert laid_out(foreseen[what]) == laid_out(t), what


def convolutions() -> dict[str, tuple[Callable[..., nn.Module], tuple[int, ...], dict[str, Any], tuple[int, ...]]]:
    """Module type, its positional arguments, its settings and the shape of an input, by name."""
    found: dict[str, tuple[Any, ...]] = {
        "1d": (nn.Conv1d, (4, 6, 3), {}, (3, 4, 11)),
        "1d strided": (nn.Conv1d, (4, 6, 3), {"stride": 2, "padding": 1, "dilation": 2}, (3, 4, 12)),
        "2d": (nn.Conv2d, (3, 5, 3), {"padding": 1}, (2, 3, 7, 6)),
        "2d strided": (nn.Conv2d, (3, 5, (3, 2)), {"stride": (2, 3), "padding": (2, 0)}, (2, 3, 9, 10)),
        "2d leaving a rest": (nn.Conv2d, (3, 5, 2), {"stride": 3}, (2, 3, 9, 10)),
        "2d dilated": (nn.Conv2d, (3, 5, 3), {"dilation": (2, 1), "padding": 1}, (2, 3, 9, 8)),
        "2d groups": (nn.Conv2d, (4, 6, 3), {"groups": 2}, (2, 4, 6, 6)),
        "2d depthwise": (nn.Conv2d, (4, 8, 3), {"groups": 4, "padding": 1, "stride": 2}, (2, 4, 7, 7)),
        "2d pointwise": (nn.Conv2d, (4, 8, 1), {"stride": 2}, (2, 4, 7, 7)),
        "2d to one pixel": (nn.Conv2d, (4, 8, (5, 4)), {}, (2, 4, 5, 4)),
        "2d one channel": (nn.Conv2d, (1, 1, 3), {}, (2, 1, 5, 4)),
        "2d same": (nn.Conv2d, (3, 5, 3), {"padding": "same"}, (2, 3, 6, 7)),
        "2d same, even": (nn.Conv2d, (3, 5, (2, 4)), {"padding": "same", "dilation": (1, 3)}, (2, 3, 8, 11)),
        "2d valid": (nn.Conv2d, (3, 5, 3), {"padding": "valid", "stride": 2}, (2, 3, 6, 7)),
        "3d": (nn.Conv3d, (2, 3, 2), {"stride": (1, 2, 1), "padding": 1}, (2, 2, 4, 5, 3)),
        "1d transposed": (nn.ConvTranspose1d, (4, 6, 3), {"stride": 2, "output_padding": 1}, (3, 4, 6)),
        "2d transposed": (
            nn.ConvTranspose2d,
            (4, 6, (3, 2)),
            {"stride": (2, 3), "padding": 1, "output_padding": (1, 0), "groups": 2, "dilation": (1, 2)},
            (2, 4, 5, 4),
        ),
        "3d transposed": (nn.ConvTranspose3d, (2, 3, 2), {"stride": 2, "padding": 1}, (2, 2, 3, 4, 3)),
    }
    for mode in MODES:
        found |= {
            f"1d {mode}": (nn.Conv1d, (2, 3, 4), {"padding": 3, "padding_mode": mode, "stride": 2}, (2, 2, 7)),
            f"2d {mode}": (nn.Conv2d, (2, 3, 3), {"padding": (2, 0), "padding_mode": mode}, (2, 2, 5, 6)),
            f"2d {mode}, same": (nn.Conv2d, (2, 3, (4, 2)), {"padding": "same", "padding_mode": mode}, (2, 2, 5, 6)),
            f"2d {mode}, none": (nn.Conv2d, (2, 3, 3), {"padding_mode": mode}, (2, 2, 5, 6)),
            f"3d {mode}": (nn.Conv3d, (2, 2, 3), {"padding": (1, 2, 1), "padding_mode": mode}, (2, 2, 3, 4, 3)),
        }
    return found


CONVOLUTIONS = convolutions()


def build(name: str, **factory: Any) -> nn.Module:
    kind, args, settings, _ = CONVOLUTIONS[name]
    return kind(*args, bias=False, **settings, **factory)


def case_of(name: str) -> Case:
    return of_module(build(name), randn(*CONVOLUTIONS[name][3]))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_map_of_a_convolution_is_what_pytorch_differentiates_to(name: str) -> None:
    assert_rule(case_of(name))


@pytest.mark.parametrize("name", ["2d strided", "2d same, even", "2d circular", "2d transposed", "3d reflect"])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_maps_of_strided_and_expanded_inputs_are_exact(name: str) -> None:
    case = case_of(name)
    shape = CONVOLUTIONS[name][3]
    assert_rule(case._replace(inputs=(randn(*reversed(shape)).permute(*reversed(range(len(shape)))),)))
    assert_rule(case._replace(inputs=(randn(*shape[:-1], 1).expand(shape),)))


def test_shapes_and_strides_are_foreseen_without_data() -> None:
    for name in CONVOLUTIONS:
        case = case_of(name)
        assert_same_without_data(case)
        assert_same_without_data(converted(case, lambda t: t.float()))
        if case.inputs[0].dim() == 4:
            assert_same_without_data(converted(case, lambda t: t.float().to(memory_format=CL)))


@pytest.mark.parametrize(
    ("target", "shape", "weight", "settings"),
    [
        (F.conv1d, (2, 4, 9), (6, 4, 3), {"stride": 2, "padding": (1,)}),
        (F.conv2d, (2, 4, 9, 8), (6, 2, 3, 2), {"stride": [2, 1], "padding": 1, "groups": 2}),
        (F.conv2d, (2, 4, 9, 8), (6, 4, 3, 2), {"bias": None, "padding": "valid", "dilation": (2,)}),
        (F.conv3d, (2, 2, 4, 5, 4), (3, 2, 2, 2, 2), {"padding": (0, 1, 0)}),
        (F.conv_transpose1d, (2, 4, 9), (4, 3, 3), {"stride": 2, "output_padding": (1,)}),
        (F.conv_transpose2d, (2, 4, 5, 4), (4, 3, 3, 2), {"stride": (2, 1), "groups": 2, "padding": [1, 0]}),
        (F.conv_transpose3d, (2, 2, 3, 3, 2), (2, 3, 2, 2, 2), {"dilation": (1, 2, 1)}),
    ],
)
def test_every_map_of_a_functional_convolution_is_what_pytorch_differentiates_to(
    target: Callable[..., Tensor], shape: tuple[int, ...], weight: tuple[int, ...], settings: dict[str, Any]
) -> None:
    case = of_call(target, Traced(randn(*shape)), Param(randn(*weight)), **settings)
    assert isinstance(case.layer, ConvRule)
    assert_rule(case)
    assert_rule(of_call(target, input=Traced(randn(*shape)), weight=Param(randn(*weight)), **settings))


def test_positional_settings_of_a_transposed_convolution_are_in_its_own_order() -> None:
    assert_rule(of_call(F.conv_transpose2d, Traced(randn(2, 4, 5, 4)), Param(randn(4, 3, 3, 2)), None, 3, 1, 2, 2, 1))


@pytest.mark.parametrize(("channels", "side"), [(24, 2), (2, 12)], ids=["large weight", "large image"])
@pytest.mark.parametrize("name", ["zeros", *MODES])
def test_the_gradient_of_two_chains_is_the_sum_over_both(channels: int, side: int, name: str) -> None:
    module = nn.Conv2d(channels, channels + 1, 3, padding=1, padding_mode=name, bias=False)
    layer, _, params, (h,) = of_module(module, randn(3, channels, side, side))
    out, residual = layer.forward(params, h)
    frame = Frame(params, (h.shape,), out.shape, residual)
    pairs = [(torch.randn_like(out), torch.randn_like(h)) for _ in range(2)]
    first, second = (layer.parameter_gradients(frame, [pair])[0] for pair in pairs)
    assert first is not None
    assert second is not None
    both = layer.parameter_gradients(frame, pairs)[0]
    assert both is not None
    assert_close(both, first + second, "gradient of two chains")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_an_empty_batch_passes_through_every_map(name: str) -> None:
    case = case_of(name)
    h = case.inputs[0][:0]
    empty = maps(case._replace(inputs=(h,)))
    assert empty["forward"].shape == case.function(case.params, h).shape
    assert empty["tangent"].shape == empty["forward"].shape
    assert empty["cotangent"].shape == h.shape
    assert_close(empty["gradient"], torch.zeros_like(case.params[0]), "gradient")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["1d", "2d", "2d strided", "2d transposed", *(f"2d {mode}" for mode in MODES)])
def test_every_dtype_is_kept_and_near_float64(name: str, dtype: torch.dtype) -> None:
    case = converted(case_of(name), lambda t: t.to(dtype))
    want = maps(converted(case, lambda t: t.double()))
    for what, t in maps(case).items():
        assert t.dtype == dtype, what
        size = want[what].norm()
        assert (t.double() - want[what]).norm() <= 4 * torch.finfo(dtype).eps * size, what


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("last", ["input", "weight", "both"])
@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if name[0] != "1"])
def test_channels_last_is_kept_where_pytorch_keeps_it(name: str, last: str) -> None:
    layer, function, (weight,), (h,) = converted(case_of(name), lambda t: t.float())
    layout = CL if h.dim() == 4 else CL3
    h = h.to(memory_format=layout) if last != "weight" else h
    weight = weight.to(memory_format=layout) if last != "input" else weight
    found = maps(Case(layer, function, (weight,), (h,)))
    leaf = h.detach().requires_grad_()
    out = function((weight,), leaf)
    (gradient,) = torch.autograd.grad(out, leaf, out.detach())
    for what, like in (("forward", out), ("tangent", out), ("cotangent", gradient)):
        kept = like.is_contiguous(memory_format=layout)
        assert found[what].is_contiguous(memory_format=layout) or not kept, f"{what}: {found[what].stride()}"
    if last == "both":
        assert all(found[what].is_contiguous(memory_format=layout) for what in ("forward", "tangent", "cotangent"))


@pytest.mark.parametrize("mode", MODES)
def test_padding_keeps_channels_last_though_the_weight_has_it_not(mode: str) -> None:
    layer, function, params, (h,) = converted(case_of(f"2d {mode}"), lambda t: t.float())
    found = maps(Case(layer, function, params, (h.to(memory_format=CL),)))
    assert all(found[what].is_contiguous(memory_format=CL) for what in ("forward", "tangent", "cotangent"))


def test_what_stands_in_for_the_input_has_its_format_and_takes_memory_only_for_channels_last() -> None:
    plain, last = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).to(memory_format=CL)
    shape = (2, 7, 6, 8)
    assert stand_in(plain, shape).untyped_storage().nbytes() == plain.element_size()
    assert stand_in(last, shape).stride() == torch.empty(shape, memory_format=CL).stride()
    assert stand_in(last, shape).shape == stand_in(plain, shape).shape == shape


@pytest.mark.parametrize("name", ["1d", "2d", "3d", "2d transposed"])
def test_an_input_without_a_batch_is_refused_with_the_shape_wanted(name: str) -> None:
    layer, _, params, (h,) = case_of(name)
    with pytest.raises(ValueError, match=r"^layer '.*' \(.*\) wants \[B, \d, (L|H, W|D, H, W)\], got \[.*\]"):
        layer.forward(params, h[0])


def test_inputs_that_do_not_fit_the_weight_are_refused() -> None:
    layer, _, params, (h,) = case_of("2d groups")
    with pytest.raises(ValueError, match=r"^layer .* wants \[B, 4, H, W\], got \[2, 3, 6, 6\]"):
        layer.forward(params, h[:, :3])
    with pytest.raises(ValueError, match=r"^layer .* weight of torch.float64 on cpu, got torch.float32"):
        layer.forward(params, h.float())


def test_same_padding_with_a_stride_is_refused() -> None:
    case = of_call(F.conv2d, Traced(randn(2, 3, 6, 6)), Param(randn(4, 3, 3, 3)), stride=2, padding="same")
    with pytest.raises(ValueError, match=r"^layer .* padding='same', which wants stride 1, got 2"):
        case.layer.forward(case.params, *case.inputs)


@pytest.mark.parametrize("name", ["1d", "2d", "3d", "1d transposed", "2d transposed", "3d transposed"])
def test_a_bias_is_not_homogeneous(name: str) -> None:
    kind, args, settings, _ = CONVOLUTIONS[name]
    rule = rule_of(kind)
    assert rule is not None
    with pytest.raises(NotHomogeneousError, match=r"bias.*Build it with bias=False, or use xa\.convert"):
        rule.build(kind(*args, **settings))


@pytest.mark.parametrize("target", [F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d])
def test_calls_that_no_rule_can_carry_say_why(target: Any) -> None:
    call = function_rule_of(target)
    assert call is not None
    with pytest.raises(NotHomogeneousError, match="bias"):
        call(Value(0), Constant(0), Constant(1))
    with pytest.raises(NotHomogeneousError, match="input and its weight both depend"):
        call(Value(0), Value(1))
    with pytest.raises(UnsupportedLayerError, match="its weight, and not its input"):
        call(Constant(0), Value(0))
    assert reason_not_homogeneous(F.conv_tbc) is not None


def test_settings_are_read_from_the_module_at_every_build() -> None:
    module = build("2d", dtype=torch.float64)
    rule = rule_of(type(module))
    assert rule is not None
    h = randn(2, 3, 8, 8)
    for stride in ((1, 1), (2, 2)):
        module.stride = stride
        assert rule.build(module).forward((module.weight.detach(),), h)[0].shape == module(h).shape
