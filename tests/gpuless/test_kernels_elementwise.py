"""relu_mask, add_relu_mask and mask_mul on a GPU: compiled, executed, and held against the reference."""

import pytest
import torch
from cases import DEFINITIONS, pack_bits, sample_inputs
from cases import non_finite as special_values
from helpers import assert_as_good_as

from xattr_cuda.kernels import reference

OPS = ("relu_mask", "add_relu_mask", "mask_mul")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

pytestmark = pytest.mark.usefixtures("poisoned")
by_op = pytest.mark.parametrize("op", OPS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


recorded = pytest.mark.parametrize("kernels", ["triton", "cuda"], indirect=True)


def results(result):
    return result if isinstance(result, tuple) else (result,)


def arguments(op, shape, dtype, slope_shape=None, values=torch.randn):
    """Arguments of an operator at a shape [..., N]."""
    t, other = values(shape).to(dtype), values(shape).to(dtype)
    slope = None if slope_shape is None else torch.rand(slope_shape).to(dtype)
    second = {"relu_mask": (), "add_relu_mask": (other,), "mask_mul": (pack_bits(torch.rand(shape) > 0.5),)}[op]
    return t, *second, slope


def assert_same(kernels, op, args):
    """Element for element what the reference computes, and in contiguous memory."""
    wanted, found = (results(getattr(module, op)(*args)) for module in (reference, kernels))
    for w, f in zip(wanted, found, strict=True):
        torch.testing.assert_close(f, w, rtol=0, atol=0, equal_nan=True)
        assert f.is_contiguous()


@by_op
@by_dtype
def test_samples_are_within_twice_the_error_of_pytorch_and_masks_are_exact(kernels, op, dtype):
    for sample in sample_inputs(op, dtype):
        got = results(getattr(kernels, op)(*sample.args))
        assert_as_good_as(got[0], DEFINITIONS[op], sample.args, f"{op} {sample.name}")
        if len(got) == 2:
            assert torch.equal(got[1], getattr(reference, op)(*sample.args)[1]), sample.name


@by_op
@by_dtype
@pytest.mark.parametrize("slope_shape", [None, (1,), (192,)], ids=["relu", "one slope", "slopes"])
@pytest.mark.parametrize("rows", [1, 37])
def test_rows_of_whole_words(kernels, op, dtype, slope_shape, rows):
    assert_same(kernels, op, arguments(op, (rows, 192), dtype, slope_shape))


@by_op
@by_dtype
@pytest.mark.parametrize("n", [2049, 118, 48])
def test_ragged_rows(kernels, op, dtype, n):
    for slope_shape in (None, (n,)):
        assert_same(kernels, op, arguments(op, (67, n), dtype, slope_shape))


@by_op
@by_dtype
@pytest.mark.parametrize("n", [5, 64])
def test_infinity_and_nan_are_those_of_pytorch(kernels, op, dtype, n):
    for slope_shape in (None, (1,), (n,)):
        args = arguments(op, (9, n), dtype, slope_shape, values=lambda s: special_values(s, torch.float32))
        assert_same(kernels, op, args)


@by_op
def test_memory_that_is_not_aligned(kernels, op):
    t, *rest = arguments(op, (6, 64), torch.float32)
    shifted = torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)
    assert shifted.data_ptr() % 16
    assert_same(kernels, op, (shifted, *rest))


@by_op
@recorded
@pytest.mark.parametrize("shape", [(0, 33), (3, 0), (2, 0, 32), (0,)])
def test_empty_tensors_launch_nothing(kernels, op, shape, launched):
    assert_same(kernels, op, arguments(op, shape, torch.bfloat16))
    assert not launched


@by_op
@recorded
def test_one_launch(kernels, op, launched):
    getattr(kernels, op)(*arguments(op, (3, 5, 40), torch.float32))
    (launch,) = launched
    assert launch.name.startswith(f"{op}_")
