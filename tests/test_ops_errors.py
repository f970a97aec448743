"""Misuse of the operators: refused with the operator's and the argument's name, on every back end."""

import re

import pytest
import torch
from cases import LAYER_OPS, pack_bits
from torch import Tensor

import xattr_cuda as xa


def valid(op):
    """Named arguments of a valid call, with N = 33 and K = 4."""
    bits = pack_bits(torch.rand(3, 33) > 0.5)
    slope = torch.rand(33)
    windows = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 1), "dilation": (1, 1)}
    idx = torch.randint(4, (3, 4, 2, 3), dtype=torch.uint8)
    return {
        "relu_mask": lambda: {"z": torch.randn(3, 33), "slope": slope},
        "mask_mul": lambda: {"t": torch.randn(3, 33), "bits": bits, "slope": slope},
        "add_relu_mask": lambda: {"a": torch.randn(3, 33), "b": torch.randn(3, 33), "slope": slope},
        "linear_relu_mask": lambda: {"x": torch.randn(3, 4), "weight": torch.randn(33, 4), "slope": slope},
        "matmul_mask": lambda: {"t": torch.randn(3, 4), "matrix": torch.randn(4, 33), "bits": bits, "slope": slope},
        "dual_weight_grad": lambda: {
            "delta": torch.randn(3, 33),
            "h": torch.randn(3, 4),
            "g": torch.randn(3, 33),
            "v": torch.randn(3, 4),
        },
        "max_pool": lambda: {"h": torch.randn(3, 4, 5, 4), **windows},
        "pool_pull": lambda: {"g": torch.randn(3, 4, 2, 3), "idx": idx, "shape": (3, 4, 5, 4), **windows},
        "pool_push": lambda: {"v": torch.randn(3, 4, 5, 4), "idx": idx, **windows},
        "input_times_gradient": lambda: {"x": torch.randn(3, 33), "g": torch.randn(3, 33), "scale": torch.rand(3)},
        "gini": lambda: {"a": torch.rand(33)},
    }[op]()


SHAPED = [(op, name) for op in LAYER_OPS for name, t in valid(op).items() if isinstance(t, Tensor)]
FLOATING = [(op, name) for op, name in SHAPED if name not in ("bits", "idx")]
ALONE = ("gini", "max_pool")  # take one tensor


def assert_refused(op, args, mentions):
    with pytest.raises((ValueError, RuntimeError)) as error:
        getattr(xa.ops, op)(**args)
    message = str(error.value)
    assert f"xattr::{op}" in message, message
    assert re.search(mentions, message), message


@pytest.mark.parametrize("op", LAYER_OPS)
def test_the_call_that_the_others_vary_is_valid(op, backend):
    result = getattr(xa.ops, op)(**valid(op))
    assert (result if isinstance(result, Tensor) else result[0]).isfinite().all()


@pytest.mark.parametrize(("op", "name"), FLOATING)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_a_dtype_that_is_not_floating_is_refused(op, name, dtype, backend):
    args = valid(op)
    args[name] = args[name].to(dtype)
    assert_refused(op, args, f"`{name}`.*(wanted|expected)")


@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op, name in FLOATING if op not in (*ALONE, "pool_pull", "pool_push")]
)
def test_two_dtypes_are_refused(op, name, backend):
    args = valid(op)
    args[name] = args[name].double()
    assert_refused(op, args, "float64|[Dd]ouble")


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, name in SHAPED if op not in ALONE])
def test_two_devices_are_refused(op, name, backend):
    args = valid(op)
    args[name] = args[name].to("meta")
    assert_refused(op, args, "meta")


@pytest.mark.parametrize(("op", "name"), SHAPED)
def test_a_scalar_is_refused(op, name, backend):
    args = valid(op)
    args[name] = args[name].flatten()[0]
    assert_refused(op, args, f"`{name}`.*(wanted|expected)")


@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op, name in SHAPED if name not in ("z", "slope", "a") and op not in ALONE]
)
def test_rows_of_another_length_are_refused(op, name, backend):
    args = valid(op)
    args[name] = torch.cat([args[name]] * 3, -1)
    assert_refused(op, args, "wanted|expected")


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, name in SHAPED if name == "slope"])
@pytest.mark.parametrize("shape", [(0,), (2,), (32,), (1, 33), (33, 1)], ids=str)
def test_a_slope_of_another_shape_is_refused(op, name, shape, backend):
    assert_refused(op, {**valid(op), name: torch.rand(shape)}, r"`slope`.*\[33\]")


@pytest.mark.parametrize("op", ["mask_mul", "matmul_mask"])
@pytest.mark.parametrize("shape", [(3, 1), (3, 3), (2, 2), (2,), (1, 3, 2)], ids=str)
def test_bits_of_another_shape_are_refused(op, shape, backend):
    bits = torch.zeros(shape, dtype=torch.int32)
    assert_refused(op, {**valid(op), "bits": bits}, r"`bits`.*\[3, 2\]")


@pytest.mark.parametrize("op", ["mask_mul", "matmul_mask"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float32], ids=str)
def test_bits_of_another_dtype_are_refused(op, dtype, backend):
    args = valid(op)
    args["bits"] = args["bits"].to(dtype)
    assert_refused(op, args, "`bits`.*[Ii]nt")


@pytest.mark.parametrize("name", ["delta", "h", "g", "v"])
def test_pairs_with_different_numbers_of_rows_are_refused(name, backend):
    args = valid("dual_weight_grad")
    args[name] = args[name][:2]
    assert_refused("dual_weight_grad", args, f"`{name}`.*(wanted|expected)")


def test_addends_of_two_shapes_are_refused_even_where_they_would_broadcast(backend):
    args = valid("add_relu_mask")
    assert_refused("add_relu_mask", {**args, "b": args["b"][:1]}, "`b`.*(wanted|expected)")


def test_gini_wants_a_vector(backend):
    assert_refused("gini", {"a": torch.rand(3, 4)}, "`a`.*vector")


WINDOWS = [  # argument, what is given, what the message says
    ("kernel", (), "`kernel`.*1 to 3 spatial"),
    ("stride", (2,), "`stride`.*1 to 3 spatial"),
    ("kernel", (2, 0), "`kernel`.*from 1"),
    ("stride", (0, 2), "`stride`.*from 1"),
    ("dilation", (1, 2**31), "`dilation`.*from 1"),
    ("padding", (0, -1), "`padding`.*half"),
    ("padding", (2, 0), "`padding`.*half"),
    ("kernel", (16, 17), "`kernel`.*at most 256 elements"),
]


@pytest.mark.parametrize("op", ["max_pool", "pool_pull", "pool_push"])
@pytest.mark.parametrize(("name", "value", "mentions"), WINDOWS, ids=str)
def test_windows_that_pytorch_would_refuse_or_a_byte_cannot_index_are_refused(op, name, value, mentions, backend):
    assert_refused(op, {**valid(op), name: value}, mentions)


@pytest.mark.parametrize("op", ["pool_pull", "pool_push"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.float32], ids=str)
def test_idx_of_another_dtype_is_refused(op, dtype, backend):
    args = valid(op)
    args["idx"] = args["idx"].to(dtype)
    assert_refused(op, args, "`idx`.*(uint8|Byte)")


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        ({"h": torch.zeros(3, 4, 5)}, "`h`.*2 spatial"),
        ({"h": torch.zeros(3, 0, 5, 4)}, "`h`.*none empty"),
        ({"h": torch.zeros(3, 4, 1, 4)}, "`h`.*room"),
        ({"h": torch.zeros(3, 4, 4, 1), "dilation": (1, 2)}, "`dilation`.*padding alone"),
    ],
    ids=str,
)
def test_max_pool_wants_a_batch_and_every_window_to_meet_it(change, mentions, backend):
    assert_refused("max_pool", {**valid("max_pool"), **change}, mentions)


def test_pool_pull_wants_a_cotangent_and_a_shape_that_fit_the_index(backend):
    args = valid("pool_pull")
    assert_refused("pool_pull", {**args, "shape": (3, 4, 7, 4)}, "`idx`")
    assert_refused("pool_pull", {**args, "shape": (3, 4, 5)}, "`shape`")
    assert_refused("pool_pull", {**args, "g": args["g"][..., :2]}, "`g`")


@pytest.mark.parametrize("name", ["nonsense", "", "Reference"])
def test_an_unknown_back_end_is_refused_with_the_choices(name):
    with pytest.raises(RuntimeError, match="reference, cpu, triton, cuda"), xa.use_backend(name):
        pass


def test_a_back_end_that_cannot_run_is_refused_with_its_reason():
    missing = [name for name in ("cpu", "triton", "cuda") if xa.ops.unavailable(name)]
    for name in missing:
        with pytest.raises(RuntimeError, match=re.escape(xa.ops.unavailable(name))), xa.use_backend(name):
            pass
    assert not xa.ops.unavailable("reference")
    assert xa.ops.active() == "auto"


def test_use_backend_nests_and_restores_after_an_error():
    with xa.use_backend("reference"):
        with xa.use_backend("auto"):
            assert xa.ops.active() == "auto"
        assert xa.ops.active() == "reference"
        with pytest.raises(ZeroDivisionError), xa.use_backend("auto"):
            raise ZeroDivisionError
        assert xa.ops.active() == "reference"
    assert xa.ops.active() == "auto"
