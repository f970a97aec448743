"""Layers that move, drop, repeat or join elements: every map against PyTorch, formats, empty batches, refusals."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from layers import Case, Param, Traced, assert_rule, of_call, of_module
from rule_maps import CL, assert_foreseen, assert_keeps_dtypes, randn, serves_empty_batch, with_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from xattr_cuda.sweep.arguments import map_leaves
from xattr_cuda.sweep.errors import NotHomogeneousError, UnsupportedLayerError
from xattr_cuda.sweep.layer import Frame, Layer
from xattr_cuda.sweep.rules import join
from xattr_cuda.sweep.rules.pad import LikeRule, PadRule
from xattr_cuda.sweep.rules.registry import Constant, Size, Value, function_rule_of
from xattr_cuda.sweep.rules.shape import IndexRule, piece

ONES = slice(None)


class WithConstants(Layer):
    """A layer whose parameters have no gradient, as one without parameters."""

    def __init__(self, layer: Layer, params: tuple[Tensor, ...]) -> None:
        self.layer, self.params = layer, params

    def _frame(self, frame: Frame) -> Frame:
        assert self.layer.parameter_gradients(frame, []) == (None,)
        return frame._replace(params=self.params)

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> Any:
        return self.layer.forward(self.params, *inputs)

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return self.layer.tangent(self._frame(frame), *tangents)

    def cotangent(self, frame: Frame, g: Tensor) -> Any:
        return self.layer.cotangent(self._frame(frame), g)


def frozen(case: Case) -> Case:
    """The case of a layer of which no parameter has a gradient, without parameters; any other as it is."""
    layer, function, params, inputs = case
    if not params or not isinstance(layer, (IndexRule, LikeRule)):
        return case
    return Case(WithConstants(layer, params), lambda _, *h: function(params, *h), (), inputs)


CALLS: list[tuple[Any, ...]] = [
    (torch.flatten, (2, 3, 4)),
    ("flatten", (2, 3, 4, 5), 1, -2),
    ("view", (2, 3, 4), 2, -1),
    ("view", (2, 3, 4), (6, 4)),
    ("view", (1, 1), ()),
    ("reshape", (2, 3, 4), [2, 2, 6]),
    (torch.reshape, (2, 3, 4), (4, -1)),
    (torch.unflatten, (2, 12), 1, (3, -1)),
    ("unflatten", (2, 12), -1, (3, 4)),
    ("squeeze", (2, 1, 3, 1)),
    ("squeeze", (2, 1, 3, 1), 1),
    (torch.squeeze, (2, 1, 3, 1), (1, -1)),
    ("unsqueeze", (2, 3), -1),
    (torch.unsqueeze, (2, 3), 1),
    ("permute", (2, 3, 4, 5), 0, 3, -3, 2),
    (torch.permute, (2, 3, 4), (2, 0, 1)),
    ("transpose", (2, 3, 4), 1, -1),
    (torch.swapaxes, (2, 3, 4), 0, 1),
    ("t", (3, 4)),
    (torch.t, (4,)),
    ("movedim", (2, 3, 4, 5), 1, -1),
    (torch.moveaxis, (2, 3, 4, 5), (0, 1), (2, 0)),
    ("flip", (2, 3, 4), 1, -1),
    (torch.flip, (2, 3, 4), (0,)),
    ("roll", (2, 3, 4), 5, 1),
    (torch.roll, (2, 3, 4), (1, -2), (0, 2)),
    (torch.roll, (2, 3, 4), 3),
    ("contiguous", (2, 3)),
    ("clone", (2, 3)),
    ("narrow", (2, 5, 3), 1, 1, 3),
    (torch.narrow, (2, 5, 3), -1, 0, 2),
    ("select", (2, 5, 3), 1, -2),
    (torch.select, (2, 5, 3), 0, 1),
    (operator.getitem, (3, 4, 5), 1),
    (operator.getitem, (3, 4, 5), slice(1, None)),
    (operator.getitem, (3, 4, 5), (ONES, slice(None, None, 2), -1)),
    (operator.getitem, (3, 4, 5), (..., None, slice(-3, -1))),
    (operator.getitem, (3, 4, 5), ...),
    (operator.getitem, (3, 4, 5), None),
    ("expand", (2, 1, 3), 2, 4, -1),
    ("expand", (2, 1), (5, 2, 3)),
    (torch.broadcast_to, (1, 3), (4, 3)),
    ("repeat", (2, 3), 1, 2),
    ("repeat", (2, 3), (3, 2, 1)),
    (torch.tile, (2, 3), (2,)),
    ("tile", (2, 3), 2, 1, 2),
    ("unfold", (2, 7, 3), 1, 3, 2),
    ("unfold", (2, 7), -1, 2, 1),
    (F.unfold, (2, 3, 6, 5), (3, 2), 1, (1, 0), 2),
    (F.unfold, (3, 6, 5), 2),
    (F.fold, (2, 12, 20), (6, 5), 2),
    (F.fold, (2, 12, 12), (4, 3), 2, 1, 1, (2, 1)),
    (F.pad, (2, 3, 4), (1, 2)),
    (F.pad, (2, 3, 4), (1, -2, 0, 1), "constant", 0.0),
    (torch.constant_pad_nd, (2, 3, 4), (0, 1, 2, 3)),
    (F.pad, (2, 3, 5), (2, 3), "reflect"),
    (F.pad, (2, 3, 5, 6), (1, 0, 4, 4), "reflect"),
    (F.pad, (1, 2, 3, 4, 5), (1, 2, 2, 3, 2, 1), "reflect"),
    (F.pad, (2, 3, 5), (2, 7), "replicate"),
    (F.pad, (2, 3, 5, 6), (1, 0, 4, 6), "replicate"),
    (F.pad, (1, 2, 3, 4, 5), (1, 2, 2, 0, 2, 1), "replicate"),
    (F.pad, (2, 3, 5), (5, 3), "circular"),
    (F.pad, (2, 3, 5, 6), (1, 0, 4, 5), "circular"),
    (F.pad, (1, 2, 3, 4, 5), (1, 2, 2, 3, 2, 1), "circular"),
]
PIECES: list[tuple[Any, ...]] = [
    ("chunk", (2, 7), 0, 3, 1),
    ("chunk", (2, 7), -1, 3, 1),
    ("split", (2, 7), 1, 3, -1),
    ("split", (2, 7), -2, [1, 2, 4], 1),
    ("tensor_split", (2, 7), 2, 3, 1),
    ("tensor_split", (2, 7), 1, (2, 5), 1),
    ("unbind", (3, 4), 1),
    ("unbind", (3, 4, 2), -1, 1),
]
MODULES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (nn.Identity, (2, 3)),
    (nn.Flatten, (2, 3, 4)),
    (lambda: nn.Flatten(2, 3), (2, 3, 4, 5)),
    (lambda: nn.Unflatten(1, (3, 4)), (2, 12)),
    (lambda: nn.Unfold((2, 3), padding=1, stride=2), (2, 3, 6, 5)),
    (lambda: nn.Fold((6, 5), 2), (2, 12, 20)),
    (lambda: nn.ZeroPad1d(2), (2, 3, 4)),
    (lambda: nn.ZeroPad2d((1, 2, -1, 0)), (2, 3, 4, 5)),
    (lambda: nn.ZeroPad3d(1), (2, 3, 2, 4, 2)),
    (lambda: nn.ConstantPad1d(1, 0), (2, 3, 4)),
    (lambda: nn.ConstantPad2d(1, 0.0), (2, 3, 4, 4)),
    (lambda: nn.ConstantPad3d(1, 0), (2, 1, 3, 4, 4)),
]
MODULES += [
    (lambda kind=kind, n=n: getattr(nn, f"{kind}Pad{n}d")(2), shape)
    for n, shape in ((1, (2, 3, 6)), (2, (2, 3, 4, 6)), (3, (1, 2, 4, 3, 5)))
    for kind in ("Reflection", "Replication", "Circular")
]


def call(target: Any, shape: tuple[int, ...], *args: Any) -> Case:
    return of_call(target, Traced(randn(*shape)), *args)


def piece_case(method: str, shape: tuple[int, ...], index: int, *args: Any) -> Case:
    layer = piece(method, (Value(0), *args), {}, index).layer
    return Case(layer, lambda _, h: getattr(h, method)(*args)[index], (), (randn(*shape),))


def attribute_case(name: str, shape: tuple[int, ...], run: Callable[[Tensor], Tensor]) -> Case:
    build = function_rule_of(name)
    assert build is not None
    return Case(build(Value(0)).layer, lambda _, h: run(h), (), (randn(*shape),))


JOINED = {
    torch.cat: ([(2, 3), (2, 1), (2, 4)], 1),
    torch.concat: ([(2, 3, 2), (2, 3, 5)], -1),
    torch.concatenate: ([(2, 3), (0,), (5, 3)], 0),
    torch.stack: ([(2, 3)] * 3, -1),
    torch.hstack: ([(2, 3, 4), (2, 1, 4)],),
    torch.vstack: ([(3,), (2, 3), (1, 3)],),
}


def joined_case(target: Any) -> Case:
    shapes, *args = JOINED[target]
    return of_call(target, [Traced(randn(*shape)) for shape in shapes], *args)


OTHERS: dict[str, Callable[[], Case]] = {
    "T": lambda: attribute_case("T", (2, 3), lambda h: h.T),
    "T of more dimensions": lambda: attribute_case("T", (2, 3, 4), lambda h: h.permute(2, 1, 0)),
    "mT": lambda: attribute_case("mT", (2, 3, 4), lambda h: h.mT),
    "named dimensions": lambda: of_call(torch.cat, [Traced(randn(2, 3)), Traced(randn(2, 2))], axis=1),
    "named sizes": lambda: of_call("reshape", Traced(randn(2, 6)), shape=(3, 4)),
    "named input": lambda: of_call(torch.flip, input=Traced(randn(2, 6)), dims=[1]),
    "hstack of vectors": lambda: of_call(torch.hstack, [Traced(randn(3)), Traced(randn(2)), Traced(randn())]),
    "stack along the first": lambda: of_call(torch.stack, [Traced(randn(2, 3)), Traced(randn(2, 3))]),
    "expand_as": lambda: of_call("expand_as", Traced(randn(2, 1)), Traced(randn(4, 2, 3))),
    "view_as": lambda: of_call("view_as", Traced(randn(2, 6)), Traced(randn(3, 4))),
    "reshape_as": lambda: of_call("reshape_as", Traced(randn(6, 2).t()), Traced(randn(3, 4))),
    "expand_as a parameter": lambda: of_call("expand_as", Traced(randn(2, 1)), Param(randn(2, 3))),
    "index_select": lambda: index_case(torch.tensor([3, 0, 3, 1])),
    "index_select of nothing": lambda: index_case(torch.tensor([], dtype=torch.int64)),
}


def index_case(index: Tensor) -> Case:
    return of_call(torch.index_select, Traced(randn(2, 4, 3)), 1, Param(index))


CASES: dict[str, Callable[[], Case]] = {
    **{f"{getattr(c[0], '__name__', c[0])} {i}": lambda c=c: call(*c) for i, c in enumerate(CALLS)},
    **{f"piece of {p[0]} {i}": lambda p=p: piece_case(*p) for i, p in enumerate(PIECES)},
    **{f"module {i}": lambda m=m, s=s: of_module(m(), randn(*s)) for i, (m, s) in enumerate(MODULES)},
    **{target.__name__: lambda target=target: joined_case(target) for target in JOINED},
    **OTHERS,
}


@pytest.mark.parametrize("name", CASES)
def test_every_map_is_what_pytorch_differentiates_to(name: str) -> None:
    assert_rule(frozen(CASES[name]()))


@pytest.mark.parametrize("name", CASES)
def test_strided_inputs_give_the_same(name: str) -> None:
    case = CASES[name]()
    inputs = tuple(torch.stack([t, t], -1)[..., 0] for t in case.inputs)
    try:
        case.function(case.params, *inputs)
    except RuntimeError:  # a view that these strides do not allow
        return
    assert_rule(frozen(case._replace(inputs=inputs)))


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
    assert len(served) > len(CASES) / 2


def test_settings_may_be_sizes_that_are_known_later() -> None:
    for target, _, *args in CALLS:
        build = function_rule_of(target)
        assert build is not None
        sized = map_leaves(lambda a: Size(0) if isinstance(a, int) else a, args)
        assert build(Value(0), *sized).inputs == (Value(0),)
    for method, _, index, *args in PIECES:
        sized = map_leaves(lambda a: Size(0) if isinstance(a, int) else a, args)
        assert piece(method, (Value(0), *sized), {}, index).inputs == (Value(0),)
    view = function_rule_of("view")
    assert view is not None
    assert view(Value(0), Size(0)).inputs == (Value(0),)
    assert_rule(call("view", (2, 6), torch.Size([3, 4])))


@pytest.mark.parametrize(
    ("target", "args"),
    [
        ("flip", (1, 3)),
        ("narrow", (1, 1, 4)),
        (operator.getitem, ((ONES, ONES, slice(1, 4)),)),
        ("clone", ()),
        (F.pad, ((1, 2, 1, 0),)),
        (F.pad, ((1, 2, 1, 0), "reflect")),
        (F.pad, ((1, 2, 1, 0), "replicate")),
        (F.pad, ((1, 2, 1, 0), "circular")),
    ],
)
def test_channels_last_is_kept(target: Any, args: tuple[Any, ...]) -> None:
    case = with_tensors(call(target, (2, 8, 5, 6), *args), lambda t: t.contiguous(memory_format=CL))
    out, _ = case.layer.forward((), *case.inputs)
    frame = Frame((), (case.inputs[0].shape,), out.shape, ())
    back = case.layer.cotangent(frame, out.contiguous(memory_format=CL))
    assert isinstance(back, Tensor)
    assert out.stride(1) == case.layer.tangent(frame, *case.inputs).stride(1) == 1
    assert back.is_contiguous(memory_format=CL)


def test_margins_are_one_rule_for_functions_and_modules() -> None:
    for case in (of_call(F.pad, Traced(randn(2, 3)), (1, 1)), of_module(nn.ReflectionPad1d(1), randn(2, 3, 4))):
        assert isinstance(case.layer, PadRule)


def test_contiguous_takes_a_memory_format() -> None:
    h = randn(2, 3, 4, 5)
    case = of_call("contiguous", Traced(h), memory_format=CL)
    assert_rule(case)
    assert case.layer.forward((), h)[0].is_contiguous(memory_format=CL)
    assert of_call("contiguous", Traced(h)).layer.forward((), h.contiguous(memory_format=CL))[0].is_contiguous()


def test_pieces_keep_channels_last() -> None:
    case = with_tensors(piece_case("chunk", (2, 8, 5, 6), 1, 2, 1), lambda t: t.contiguous(memory_format=CL))
    case = case._replace(inputs=tuple(t.contiguous(memory_format=CL) for t in case.inputs))
    out = case.layer.forward((), *case.inputs)[0].contiguous(memory_format=CL)
    back = case.layer.cotangent(Frame((), (case.inputs[0].shape,), out.shape, ()), out)
    assert isinstance(back, Tensor)
    assert back.is_contiguous(memory_format=CL)


def test_a_copy_owns_its_memory_and_a_view_does_not() -> None:
    for name, aliases in {"clone": False, "view": True, "flip": False, "repeat": False, "expand": True}.items():
        build = function_rule_of(name)
        assert build is not None
        assert build(Value(0), *([] if name == "clone" else [1])).layer.aliases is aliases


@pytest.mark.parametrize(
    ("target", "args", "mentions"),
    [
        ("view", (torch.int32,), "dtype"),
        ("to", (torch.float16,), "dtype"),
        ("float", (), "dtype"),
        ("type_as", (Value(1),), "dtype"),
        ("narrow", (1, Constant(0), 2), "tensor"),
        (operator.getitem, (Constant(0),), "index_select"),
        (operator.getitem, ((ONES, Value(1)),), "index_select"),
        (operator.getitem, ([0, 1],), "index_select"),
        (operator.getitem, ((ONES, [0, 1]),), "index_select"),
        (operator.getitem, (True,), "index_select"),
        ("index_select", (1, Value(1)), "buffer"),
        (F.pad, ((1, -1), "reflect"), "slice"),
    ],
)
def test_what_cannot_be_carried_is_refused(target: Any, args: tuple[Any, ...], mentions: str) -> None:
    build = function_rule_of(target)
    assert build is not None
    with pytest.raises(UnsupportedLayerError, match=mentions):
        build(Value(0), *args)


def test_an_out_tensor_and_settings_in_tensors_are_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="out="):
        of_call(torch.cat, [Traced(randn(2))], out=Param(randn(2)))
    with pytest.raises(UnsupportedLayerError, match="integers"):
        piece("tensor_split", (Value(0), Constant(0)), {}, 0)
    with pytest.raises(UnsupportedLayerError, match="shape"):
        of_call("expand_as", Param(randn(2, 1)), Traced(randn(2, 3)))


@pytest.mark.parametrize("value", [1, -0.5, Size(0)])
def test_a_margin_that_is_not_zero_is_not_homogeneous(value: Any) -> None:
    with pytest.raises(NotHomogeneousError, match="zero"):
        of_call(F.pad, Traced(randn(2, 3)), (1, 1), "constant", value)
    if not isinstance(value, Size):
        with pytest.raises(NotHomogeneousError, match="zero"):
            of_module(nn.ConstantPad1d(1, value), randn(2, 3, 4))


@pytest.mark.parametrize("target", [torch.cat, torch.stack, torch.hstack])
def test_joining_a_constant_is_not_homogeneous(target: Any) -> None:
    with pytest.raises(NotHomogeneousError, match="constant"):
        of_call(target, [Traced(randn(2, 3)), Param(randn(2, 3))])


@pytest.mark.parametrize("layer", [join.CatRule(1), join.StackRule(0)])
def test_joining_dtypes_is_refused(layer: Layer) -> None:
    with pytest.raises(ValueError, match=r"^layer .*float64 and torch.float32"):
        layer.forward((), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3))


def test_flattening_the_batch_is_refused() -> None:
    layer = of_module(nn.Flatten(0), randn(2, 3)).layer
    layer.name, layer.kind = "head", "Flatten"
    with pytest.raises(UnsupportedLayerError, match=r"'head' \(Flatten\).*start_dim=1"):
        layer.forward((), randn(2, 3))
