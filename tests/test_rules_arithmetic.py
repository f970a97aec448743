"""Sums, products with constants, reductions: every map against PyTorch, formats, empty batches, refusals."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers import Case, Param, Traced, assert_close, assert_rule, of_call
from rule_maps import CL, assert_foreseen, assert_keeps_dtypes, maps, randn, serves_empty_batch, with_tensors

from xattr_cuda.sweep.errors import NotHomogeneousError, UnsupportedLayerError
from xattr_cuda.sweep.layer import Frame
from xattr_cuda.sweep.rules.arithmetic import AddRule, FactorRule, ScaleRule
from xattr_cuda.sweep.rules.registry import Constant, Size, Value, function_rule_of

BROADCASTS = [
    ((3, 4), (3, 4)),
    ((3, 4), (1, 4)),
    ((3, 1), (3, 4)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 3, 4)),
    ((2, 3, 1, 5), (1, 3, 4, 1)),
    ((3, 4), ()),
]
SUMS: list[tuple[Any, dict[str, Any]]] = [
    (operator.add, {}),
    (torch.add, {"alpha": 3}),
    ("add", {"alpha": -0.5}),
    (operator.sub, {}),
    (torch.sub, {"alpha": 2}),
    ("sub", {}),
    (torch.subtract, {"alpha": -2.5}),
    (torch.rsub, {"alpha": 2}),
    (torch.rsub, {}),
]
REDUCTIONS: list[tuple[Any, ...]] = [(), (1,), (-1, True), ((0, -1),), ([1, 2], True), (0,), ((),), (None, True)]


def two(target: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]], **kwargs: Any) -> Case:
    return of_call(target, *(Traced(randn(*shape)) for shape in shapes), **kwargs)


def one(target: Any, *args: Any, **kwargs: Any) -> Case:
    return of_call(target, Traced(randn(2, 3, 4)), *args, **kwargs)


def times(target: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]], first: bool = True) -> Case:
    value, constant = Traced(randn(*shapes[0])), Param(0.5 + randn(*shapes[1]).abs())  # fit to divide by
    return of_call(target, *((value, constant) if first else (constant, value)))


CASES: dict[str, Callable[[], Case]] = {
    **{f"sum {i}": lambda t=t, k=k: two(t, ((3, 4), (3, 4)), **k) for i, (t, k) in enumerate(SUMS)},
    **{f"sum of {a} and {b}": lambda a=a, b=b: two(torch.sub, (a, b), alpha=2) for a, b in BROADCASTS},
    **{f"{a} times {b}": lambda a=a, b=b: times(torch.mul, (a, b)) for a, b in BROADCASTS},
    **{f"{a} over {b}": lambda a=a, b=b: times(operator.truediv, (a, b)) for a, b in BROADCASTS},
    "constant first": lambda: times(operator.mul, ((3, 4), (4,)), first=False),
    "number": lambda: one(operator.mul, -2.5),
    "number first": lambda: of_call(operator.mul, 3, Traced(randn(2, 3))),
    "over a number": lambda: one("div", 3),
    "true_divide": lambda: one(torch.true_divide, 7),
    "negated": lambda: one(operator.neg),
    "negative": lambda: one("negative"),
    "positive": lambda: one(operator.pos),
    "zero more": lambda: one(operator.add, 0),
    "zero less": lambda: one("sub", 0.0),
    "to zero": lambda: of_call(operator.add, 0, Traced(randn(2, 3))),
    "from zero": lambda: of_call(operator.sub, 0, Traced(randn(2, 3))),
    "zero twice": lambda: one(torch.add, 0, alpha=2),
    **{f"sum over {a}": lambda a=a: one(torch.sum, *a) for a in REDUCTIONS if a[:1] != (None,)},
    **{f"mean over {a}": lambda a=a: one("mean", *a) for a in REDUCTIONS},
    "named sum": lambda: one("sum", axis=1, keepdims=True),
    "named mean": lambda: one(torch.mean, dim=(1, 2), keepdim=True),
    "sum of a scalar": lambda: of_call("sum", Traced(randn())),
    "mean of a scalar": lambda: of_call("mean", Traced(randn()), -1),
    "cumsum": lambda: one(torch.cumsum, 1),
    "cumsum from the end": lambda: one("cumsum", dim=-2),
}


@pytest.mark.parametrize("name", CASES)
def test_every_map_is_what_pytorch_differentiates_to(name: str) -> None:
    assert_rule(CASES[name]())


@pytest.mark.parametrize("name", CASES)
def test_strided_inputs_give_the_same(name: str) -> None:
    case = CASES[name]()
    assert_rule(with_tensors(case, lambda t: torch.stack([t, t], -1)[..., 0]))


def test_shapes_and_strides_are_foreseen_without_data() -> None:
    for make in CASES.values():
        assert_foreseen(make())


def test_every_dtype_is_kept() -> None:
    for make in CASES.values():
        assert_keeps_dtypes(make())


def test_an_empty_batch_passes_through_every_map() -> None:
    served = [name for name, make in CASES.items() if serves_empty_batch(make())]
    assert len(served) > len(CASES) * 2 / 3


@pytest.mark.parametrize("constant", [(8,), (1, 8, 1, 1), (2, 8, 5, 6)])
def test_channels_last_is_kept(constant: tuple[int, ...]) -> None:
    h = randn(2, 8, 5, 6).contiguous(memory_format=CL)
    other = randn(2, 8, 5, 6).contiguous(memory_format=CL)
    factor = Param(randn(*constant).reshape(-1, 8, 1, 1) if len(constant) == 1 else randn(*constant))
    for case in (
        of_call(operator.add, Traced(h), Traced(other)),
        of_call(operator.sub, Traced(h), Traced(other)),
        of_call(operator.mul, Traced(h), factor),
        of_call(operator.mul, Traced(h), 0.5),
    ):
        assert all(t.is_contiguous(memory_format=CL) for t in maps(case)[: 2 + len(case.inputs)])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_a_constant_of_integers_has_no_gradient(dtype: torch.dtype) -> None:
    h, mask = randn(3, 4), torch.randint(0, 2, (4,)).to(dtype)
    layer = FactorRule()
    out, _ = layer.forward((mask,), h)
    frame = Frame((mask,), (h.shape,), out.shape, ())
    assert_close(out, h * mask, "forward")
    assert_close(layer.tangent(frame, h), h * mask, "tangent")
    assert_close(layer.cotangent(frame, h), h * mask, "cotangent")
    assert layer.parameter_gradients(frame, [(h, h)]) == (None,)


def test_gradient_of_a_constant_sums_two_different_chains() -> None:
    for divide in (False, True):
        c = randn(4).requires_grad_()
        pairs = [(randn(3, 4), randn(3, 4)) for _ in range(2)]
        want = torch.autograd.grad(sum((g * (v / c if divide else v * c)).sum() for g, v in pairs), c)[0]
        frame = Frame((c.detach(),), (torch.Size((3, 4)),), torch.Size((3, 4)), ())
        (got,) = FactorRule(divide=divide).parameter_gradients(frame, pairs)
        assert got is not None
        assert_close(got, want, "gradient")


def test_a_scalar_of_another_dtype_gets_a_gradient_of_its_own_dtype() -> None:
    h, c = torch.randn(3, 4), randn()
    layer = FactorRule()
    out, _ = layer.forward((c,), h)
    (gradient,) = layer.parameter_gradients(Frame((c,), (h.shape,), out.shape, ()), [(h, h)])
    assert gradient is not None
    assert (out.dtype, gradient.dtype) == (torch.float32, torch.float64)


def test_dtypes_that_would_widen_the_input_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^layer .*float32.*float64"):
        FactorRule().forward((randn(4),), torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"^layer .*float32.*float64"):
        AddRule().forward((), torch.randn(3, 4), randn(3, 4))


def test_settings_may_be_sizes_that_are_known_later() -> None:
    for target in (operator.mul, operator.truediv, "mul", "div"):
        build = function_rule_of(target)
        assert build is not None
        assert isinstance(build(Value(0), Size(0)).layer, ScaleRule)
    for target in (torch.add, torch.sub, torch.rsub):
        build = function_rule_of(target)
        assert build is not None
        assert isinstance(build(Value(0), Value(1), alpha=Size(0)).layer, AddRule)
    mean = function_rule_of("mean")
    assert mean is not None
    assert mean(Value(0), Size(0)).inputs == (Value(0),)


def test_a_sum_of_two_keeps_its_order_and_its_alpha() -> None:
    for target, order, alpha in ((torch.sub, (0, 1), -3), (torch.rsub, (1, 0), -3), (torch.add, (0, 1), 3)):
        build = function_rule_of(target)
        assert build is not None
        call = build(Value(0), Value(1), alpha=3)
        assert isinstance(call.layer, AddRule)
        assert tuple(v.index for v in call.inputs) == order
        assert call.layer.alpha == alpha


@pytest.mark.parametrize(
    ("target", "in_place"),
    [
        (operator.add, operator.iadd),
        (operator.sub, operator.isub),
        (operator.mul, operator.imul),
        (operator.truediv, operator.itruediv),
        *((name, f"{name}_") for name in ("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide")),
    ],
)
def test_forms_in_place_have_the_rule_of_their_twin(target: Any, in_place: Any) -> None:
    layers = []
    for name in (target, in_place):
        build = function_rule_of(name)
        assert build is not None
        layers.append(build(Value(0), 0 if "add" in str(name) or "sub" in str(name) else 2).layer)
    assert type(layers[0]) is type(layers[1])
    assert vars(layers[0]) == vars(layers[1])


@pytest.mark.parametrize("target", [operator.add, operator.sub, operator.iadd, torch.rsub, "add_", "subtract"])
@pytest.mark.parametrize("other", [1, -0.5, Size(0), Constant(0)])
def test_adding_a_constant_is_not_homogeneous(target: Any, other: Any) -> None:
    build = function_rule_of(target)
    assert build is not None
    for args in ((Value(0), other), (other, Value(0))):
        with pytest.raises(NotHomogeneousError, match=r"adds a constant.*xa\.convert"):
            build(*args)


@pytest.mark.parametrize(
    ("target", "args", "mentions"),
    [
        (operator.mul, (Value(0), Value(1)), "degree 2"),
        ("mul_", (Value(0), Value(0)), "degree 2"),
        (operator.truediv, (Value(0), Value(1)), "divides"),
        (operator.truediv, (1, Value(0)), "divides"),
        (torch.div, (Constant(0), Value(0)), "divides"),
    ],
)
def test_products_and_quotients_of_values_are_not_homogeneous(target: Any, args: Any, mentions: str) -> None:
    build = function_rule_of(target)
    assert build is not None
    with pytest.raises(NotHomogeneousError, match=mentions):
        build(*args)


def test_settings_that_change_the_map_are_refused() -> None:
    with pytest.raises(NotHomogeneousError, match="rounds"):
        one(torch.div, 2, rounding_mode="floor")
    with pytest.raises(UnsupportedLayerError, match="complex"):
        one(operator.mul, 1j)
    for target in (torch.sum, "mean", torch.cumsum):
        with pytest.raises(UnsupportedLayerError, match="dtype"):
            one(target, 1, dtype=torch.float32)
    with pytest.raises(UnsupportedLayerError, match="out="):
        of_call(torch.add, Traced(randn(2)), Traced(randn(2)), out=randn(2))
