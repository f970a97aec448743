"""Misuse of the operators: refused with the operator's and the argument's name, on every back end."""

import re

import pytest
import torch
from cases import pack_bits
from torch import Tensor

import xattr_cuda as xa


def valid(op):
    """Named arguments of a valid call, with N = 33 and K = 4."""
    bits = pack_bits(torch.rand(3, 33) > 0.5)
    slope = torch.rand(33)
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
        "gini": lambda: {"a": torch.rand(33)},
    }[op]()


FLOATING = [(op, name) for op in xa.ops.SCHEMAS for name in valid(op) if name != "bits"]
SHAPED = [(op, name) for op in xa.ops.SCHEMAS for name in valid(op)]


def assert_refused(op, args, mentions):
    with pytest.raises((ValueError, RuntimeError)) as error:
        getattr(xa.ops, op)(**args)
    message = str(error.value)
    assert f"xattr::{op}" in message, message
    assert re.search(mentions, message), message


@pytest.mark.parametrize("op", xa.ops.SCHEMAS)
def test_the_call_that_the_others_vary_is_valid(op, backend):
    result = getattr(xa.ops, op)(**valid(op))
    assert (result if isinstance(result, Tensor) else result[0]).isfinite().all()


@pytest.mark.parametrize(("op", "name"), FLOATING)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_a_dtype_that_is_not_floating_is_refused(op, name, dtype, backend):
    args = valid(op)
    args[name] = args[name].to(dtype)
    assert_refused(op, args, f"`{name}`.*(wanted|expected)")


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, name in FLOATING if op != "gini"])
def test_two_dtypes_are_refused(op, name, backend):
    args = valid(op)
    args[name] = args[name].double()
    assert_refused(op, args, "float64|[Dd]ouble")


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, name in SHAPED if op != "gini"])
def test_two_devices_are_refused(op, name, backend):
    args = valid(op)
    args[name] = args[name].to("meta")
    assert_refused(op, args, "meta")


@pytest.mark.parametrize(("op", "name"), SHAPED)
def test_a_scalar_is_refused(op, name, backend):
    args = valid(op)
    args[name] = args[name].flatten()[0]
    assert_refused(op, args, f"`{name}`.*(wanted|expected)")


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, name in SHAPED if name not in ("z", "slope", "a")])
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
