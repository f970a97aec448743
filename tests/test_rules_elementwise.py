"""abs, the larger and the smaller of two, clamp at zero; and what is refused: every map against PyTorch."""

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers import Case, Traced, assert_rule, of_call
from rule_maps import CL, assert_foreseen, assert_keeps_dtypes, maps, randn, serves_empty_batch, with_tensors
from torch import Tensor, nn
from torch.nn import functional as F

import xattr_cuda as xa
from xattr_cuda.sweep.errors import NotHomogeneousError, UnsupportedLayerError
from xattr_cuda.sweep.rules import refusals
from xattr_cuda.sweep.rules.registry import Constant, Size, Value, function_rule_of, reason_not_homogeneous

SHAPES = [(3, 40), (5,), (2, 3, 4, 5), (2, 3, 7)]
EXTREMES: list[Any] = [torch.maximum, torch.minimum, "maximum", "minimum", torch.max, "min"]


def ties(*shape: int) -> Tensor:
    """Random small integers, zeros and pairs that are equal among them."""
    return torch.randint(-2, 3, shape).double()


def two(target: Any, *shapes: tuple[int, ...], draw: Callable[..., Tensor] = ties) -> Case:
    return of_call(target, *(Traced(draw(*shape)) for shape in shapes))


CASES: dict[str, Callable[[], Case]] = {
    **{f"abs of {shape}": lambda s=shape: of_call(torch.abs, Traced(ties(*s))) for shape in SHAPES},
    "abs": lambda: of_call(operator.abs, Traced(randn(3, 4))),
    "absolute": lambda: of_call("absolute", Traced(randn(3, 4))),
    **{f"extreme {i}": lambda t=t: two(t, (3, 40), (3, 40)) for i, t in enumerate(EXTREMES)},
    **{f"maximum of {shape}": lambda s=shape: two(torch.maximum, s, s) for shape in SHAPES},
    **{f"minimum of {shape}": lambda s=shape: two(torch.minimum, s, s, draw=randn) for shape in SHAPES},
    "broadcast maximum": lambda: two(torch.maximum, (3, 1), (2, 1, 4)),
    "broadcast minimum": lambda: two(torch.minimum, (4,), (2, 3, 4)),
    "clamp from below": lambda: of_call(torch.clamp, Traced(ties(3, 40)), min=0),
    "clamp from above": lambda: of_call("clamp", Traced(ties(3, 40)), max=0.0),
    "clamp to infinity": lambda: of_call("clip", Traced(ties(2, 3, 4, 5)), 0, math.inf),
    "clamp_min": lambda: of_call("clamp_min", Traced(ties(3, 40)), 0),
    "clamp_max": lambda: of_call(torch.clamp_max, Traced(ties(3, 40)), 0),
    "hardtanh": lambda: of_call(F.hardtanh, Traced(ties(3, 40)), 0, math.inf),
}


@pytest.mark.parametrize("name", CASES)
def test_every_map_is_what_pytorch_differentiates_to(name: str) -> None:
    assert_rule(CASES[name]())


@pytest.mark.parametrize("name", CASES)
def test_strided_inputs_give_the_same(name: str) -> None:
    assert_rule(with_tensors(CASES[name](), lambda t: torch.stack([t, t], -1)[..., 0]))


def test_shapes_and_strides_are_foreseen_without_data() -> None:
    for make in CASES.values():
        case = make()
        assert_foreseen(case)
        if all(t.dim() == 4 for t in case.inputs):
            assert_foreseen(with_tensors(case, lambda t: t.contiguous(memory_format=CL)))


def test_every_dtype_is_kept() -> None:
    for make in CASES.values():
        assert_keeps_dtypes(make())


def test_an_empty_batch_passes_through_every_map() -> None:
    served = [name for name, make in CASES.items() if serves_empty_batch(make())]
    assert len(served) > len(CASES) * 2 / 3


@pytest.mark.parametrize("target", ["abs", torch.maximum, torch.minimum, "clamp_min"])
def test_channels_last_is_kept_and_exact(target: Any) -> None:
    tensors = [Traced(ties(2, 8, 5, 6).contiguous(memory_format=CL)) for _ in range(2)]
    if target == "clamp_min":
        case = of_call(target, tensors[0], 0)
    else:
        case = of_call(target, *tensors[: 1 if target == "abs" else 2])
    assert_rule(case)
    assert all(t.is_contiguous(memory_format=CL) for t in maps(case))


def test_what_is_kept_takes_two_bits_an_element_at_most() -> None:
    for name in ("abs", "maximum", "clamp_min"):
        args = {"abs": (), "maximum": (Traced(randn(4, 640)),), "clamp_min": (0,)}[name]
        case = of_call(name, Traced(randn(4, 640)), *args)
        _, residual = case.layer.forward((), *case.inputs)
        assert sum(t.numel() * t.element_size() for t in residual) <= 4 * 640 * 2 / 8


@pytest.mark.parametrize(
    "function", [lambda x: F.hardtanh(x, 0, math.inf), lambda x: x.clamp(min=0), lambda x: x.clamp(max=0)]
)
def test_derivatives_at_bounds_and_infinity_are_those_of_the_pytorch_at_hand(function: Any) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    x = torch.tensor([[0.0, -0.0, 1, -1, math.inf, -math.inf, math.nan]])
    u = torch.full_like(x, 2.0)
    got, want = (xa.attribute(Model(), x, cotangent=u, engine=engine) for engine in ("sweep", "autograd"))
    torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("function", [torch.maximum, torch.minimum])
def test_the_larger_and_the_smaller_share_as_in_pytorch_beside_nan(function: Any) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return function(x, y)

    x, y = torch.tensor([[1.0, math.nan, 2, 3, math.nan]]), torch.tensor([[math.nan, 2.0, 2, 1, math.nan]])
    u = torch.full_like(x, 3.0)
    got, want = (xa.attribute(Model(), (x, y), cotangent=u, engine=engine) for engine in ("sweep", "autograd"))
    torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (torch.maximum, (Value(0), Constant(0))),
        (torch.minimum, (Constant(0), Value(0))),
        ("max", (Value(0), Constant(0))),
        ("clamp", (Value(0), -1, 1)),
        ("clamp", (Value(0), 0, 6)),
        ("clamp_min", (Value(0), Constant(0))),
        (torch.clamp_max, (Value(0), Size(0))),
        (F.hardtanh, (Value(0),)),
    ],
)
def test_fixed_bounds_are_not_homogeneous(target: Any, args: Any) -> None:
    build = function_rule_of(target)
    assert build is not None
    with pytest.raises(NotHomogeneousError, match="scale"):
        build(*args)


@pytest.mark.parametrize(
    ("target", "args", "mentions"),
    [
        ("max", (Value(0),), "reduces"),
        (torch.min, (Value(0), 1), "reduces"),
        ("max", (Value(0), 1, True), "reduces"),
        ("clamp", (Value(0), Value(1)), "maximum"),
        (torch.where, (Value(0), Value(1), 0), "condition"),
        (operator.gt, (Value(0), 0), "condition"),
        ("eq", (Value(0), Value(1)), "condition"),
    ],
)
def test_conditions_and_reductions_are_refused(target: Any, args: Any, mentions: str) -> None:
    build = function_rule_of(target)
    assert build is not None
    with pytest.raises(UnsupportedLayerError, match=mentions):
        build(*args)


def test_joining_dtypes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^layer .*float64 and torch.float32"):
        two(torch.maximum, (3,), (3,)).layer.forward((), randn(3), torch.randn(3))


CURVED = [nn.GELU(), nn.SiLU(), nn.ReLU6(), nn.Softmax(1), nn.BatchNorm2d(2), nn.LayerNorm(2), nn.AlphaDropout()]
FUNCTIONS = [
    torch.tanh,
    "tanh",
    "tanh_",
    F.gelu,
    F.silu,
    torch.sigmoid,
    "sigmoid",
    torch.exp,
    "log",
    torch.pow,
    "square",
]
FUNCTIONS += ["sqrt", F.softmax, torch.softmax, "softmax", F.log_softmax, F.elu, F.selu, F.celu, F.mish, F.softplus]
FUNCTIONS += [F.softsign, F.logsigmoid, F.relu6, F.hardswish, F.hardsigmoid, F.hardshrink, F.softshrink, F.threshold]
FUNCTIONS += [F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm, F.normalize, F.local_response_norm]
FUNCTIONS += [torch.sin, "cos", operator.pow, torch.reciprocal, F.tanh, F.sigmoid, torch.erf, torch.special.expit]


@pytest.mark.parametrize("target", [*CURVED, *FUNCTIONS], ids=lambda t: getattr(t, "__name__", str(t)))
def test_what_breaks_homogeneity_has_a_reason_and_a_remedy(target: Any) -> None:
    answer = reason_not_homogeneous(target)
    assert answer is not None
    assert all(text and not text.endswith(".") for text in answer)


def test_a_remedy_names_convert_where_it_helps() -> None:
    for target in (nn.BatchNorm2d(3), nn.GELU(), F.gelu):
        answer = reason_not_homogeneous(target)
        assert answer is not None
        assert "xa.convert" in answer[1]


def test_nothing_is_refused_that_has_a_rule() -> None:
    names = " ".join(row.functions for row in refusals._REFUSALS).split()
    assert len(names) == len(set(names))
    assert not [target for target in refusals._functions(names) if function_rule_of(target)]
