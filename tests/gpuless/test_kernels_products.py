"""The tiled products in Triton, in every configuration: compiled, executed, and held against float64."""

import pytest
import torch
from cases import DEFINITIONS, cast, non_finite, pack_bits, sample_inputs
from helpers import assert_as_good_as
from torch import Tensor

triton = pytest.importorskip("triton", reason="Triton is not installed")

from xattr_cuda.kernels.triton import configs, products  # noqa: E402 - needs Triton

from xattr_cuda.kernels import triton as kernels  # noqa: E402

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPS = ("linear_relu_mask", "matmul_mask", "dual_weight_grad")
CONFIGURATIONS = {
    "-".join((config.name, f"{config.num_stages} stages", dtype, precision)): (config, DTYPES[dtype], precision)
    for config, dtype, precision, _ in products.configurations()
}
TF32 = 2.0**-10  # the largest relative error of a number cut to TF32

pytestmark = pytest.mark.usefixtures("emulated", "poisoned")
by_op = pytest.mark.parametrize("op", OPS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@pytest.fixture
def choose(monkeypatch):
    """Makes a configuration the only one of the emulated device; and its precision that of products of fp32."""
    before = torch.get_float32_matmul_precision()

    def make(config, precision):
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        monkeypatch.setitem(configs._TABLE["product"], "80", (config,) * 5)
        products.choice.cache_clear()

    yield make
    torch.set_float32_matmul_precision(before)
    products.choice.cache_clear()


def drawn(op, rows, k, n, dtype):
    """Arguments of an operator; of the weight gradient's two pairs the second has half as many rows."""

    def normal(*shape):
        return torch.randn(shape).to(dtype)

    if op == "linear_relu_mask":
        return normal(rows, k), normal(n, k), None
    if op == "matmul_mask":
        return normal(rows, k), normal(k, n), pack_bits(torch.rand(rows, n) > 0.5), normal(n).abs()
    return normal(rows, n), normal(rows, k), normal(rows // 2, n), normal(rows // 2, k)


def value(op, args):
    """The floating result; a mask must be that of the activation beside it."""
    found = getattr(kernels, op)(*args)
    if op == "linear_relu_mask":
        found, bits = found
        assert torch.equal(bits, pack_bits(found > 0)), "not the mask of the activation"
    assert found.is_contiguous()
    return found


def assert_within_tf32(op, args):
    """The error is at most what cutting the factors to TF32 makes, and not that of exact products."""
    found, truth = value(op, args).double(), DEFINITIONS[op](*cast(args, torch.float64))
    sizes = tuple(t.abs() if isinstance(t, Tensor) and t.is_floating_point() else t for t in args)
    error, limit = (found - truth).abs(), 2.01 * TF32 * DEFINITIONS[op](*cast(sizes, torch.float64))
    assert (error <= limit).all()
    assert error.max() > 1e-5 * truth.abs().max()


@by_op
@by_dtype
def test_samples_are_within_twice_the_error_of_pytorch(op, dtype):
    for sample in sample_inputs(op, dtype):
        assert_as_good_as(value(op, sample.args), DEFINITIONS[op], sample.args, f"{op} {sample.name}")


@by_op
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_on_ragged_tiles(op, name, choose):
    """More than one tile each way, and more than one step, of which the last is not whole."""
    config, dtype, precision = CONFIGURATIONS[name]
    choose(config, precision)
    args = drawn(op, 137, 75, 133, dtype)
    if precision == "tf32":
        assert_within_tf32(op, args)
    else:
        assert_as_good_as(value(op, args), DEFINITIONS[op], args, f"{op} {name}")


@by_op
def test_more_tiles_than_one_group_of_rows(op):
    args = drawn(op, *((600, 5, 70) if op != "dual_weight_grad" else (17, 70, 600)), torch.float32)
    assert_as_good_as(value(op, args), DEFINITIONS[op], args, op)


@by_dtype
@pytest.mark.parametrize("pairs", [1, 2])
def test_a_long_batch_is_split_and_its_sum_does_not_depend_on_chance(dtype, pairs, emulated):
    args = (*drawn("dual_weight_grad", 1500, 20, 33, dtype)[: 2 * pairs], *[None] * (4 - 2 * pairs))
    first, second = value("dual_weight_grad", args), value("dual_weight_grad", args)
    names = ["dual_weight_grad_kernel", "add_splits_kernel"]
    assert [launch.name for launch in emulated.launches] == 2 * names
    assert emulated.launches[0].grid[1] == 3
    assert torch.equal(first, second)
    assert_as_good_as(first, DEFINITIONS["dual_weight_grad"], args, "split")


@pytest.mark.parametrize("slope", [None, 1, 45], ids=["no slope", "one slope", "slopes"])
def test_infinity_and_nan_are_those_of_pytorch(slope):
    """In rows of their own: every column of the product meets all of a row."""
    t, matrix = torch.randn(9, 21), torch.randn(21, 45)
    t[:5, :7] = non_finite((5, 7), torch.float32)
    slopes, bits = None if slope is None else torch.rand(slope), pack_bits(torch.rand(9, 45) > 0.5)
    found, want = kernels.matmul_mask(t, matrix, bits, slopes), DEFINITIONS["matmul_mask"](t, matrix, bits, slopes)
    torch.testing.assert_close(found, want, equal_nan=True)
    found, want = kernels.linear_relu_mask(t, matrix.T, slopes)[0], DEFINITIONS["linear_relu_mask"](t, matrix.T, slopes)
    torch.testing.assert_close(found, want, equal_nan=True)


def test_a_row_of_nan_leaves_all_other_rows_alone():
    x, weight = torch.randn(70, 21), torch.randn(45, 21)
    want, want_bits = kernels.linear_relu_mask(x, weight)
    x[3] = torch.nan
    found, bits = kernels.linear_relu_mask(x, weight)
    others = torch.arange(70) != 3
    assert torch.equal(found[others], want[others])
    assert torch.equal(bits[others], want_bits[others])
    assert found[3].isnan().all()
    assert torch.equal(bits[3], pack_bits(torch.ones(1, 45, dtype=torch.bool))[0])


@by_op
def test_one_launch(op, emulated):
    value(op, drawn(op, 70, 33, 40, torch.float32))
    assert len(emulated.launches) == 1


@by_dtype
def test_no_rows_launch_nothing(dtype, emulated):
    h, bits = kernels.linear_relu_mask(torch.zeros(0, 5, dtype=dtype), torch.zeros(33, 5, dtype=dtype))
    assert h.shape == (0, 33)
    assert bits.shape == (0, 2)
    gradient = kernels.dual_weight_grad(torch.zeros(0, 7, dtype=dtype), torch.zeros(0, 5, dtype=dtype))
    assert torch.equal(gradient, torch.zeros(7, 5, dtype=dtype))
    assert not emulated.launches


def test_a_product_without_a_mask_is_that_of_pytorch(emulated):
    t, matrix = torch.randn(9, 21), torch.randn(45, 21).T
    assert torch.equal(kernels.matmul_mask(t, matrix), t @ matrix)
    assert not emulated.launches
