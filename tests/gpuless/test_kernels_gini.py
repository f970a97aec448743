"""gini in Triton: compiled, executed, and held against the reference in float64."""

import pytest
import torch
from cases import DEFINITIONS, non_finite, sample_inputs
from helpers import assert_as_good_as, assert_within_twice

from xattr_cuda.kernels import reference

triton = pytest.importorskip("triton", reason="Triton is not installed")

from xattr_cuda.kernels.triton.configs import configs  # noqa: E402

from xattr_cuda.kernels import triton as kernels  # noqa: E402 - needs Triton

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

pytestmark = pytest.mark.usefixtures("emulated", "poisoned")
by_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def assert_right(a):
    """Value and gradient are those of float64, rounded: they are computed in it."""
    for got, plain, truth in zip(kernels.gini(a), reference.gini(a), reference.gini(a.double()), strict=True):
        assert_within_twice(got, plain, truth, f"n = {a.numel()}")


@by_dtype
def test_samples_are_within_twice_the_error_of_pytorch(dtype):
    for sample in sample_inputs("gini", dtype):
        assert_as_good_as(kernels.gini(*sample.args)[0], DEFINITIONS["gini"], sample.args, f"gini {sample.name}")


@by_dtype
@pytest.mark.parametrize("n", [1, 2, 31, 1024, 2500])
def test_value_and_gradient_are_those_of_the_reference(dtype, n):
    assert_right(torch.rand(n).add(0.01).to(dtype))


@by_dtype
def test_ties_share_a_rank_across_programs(dtype):
    a = torch.randint(0, 3, (3000,)).to(dtype)
    assert_right(a)
    _, gradient = kernels.gini(a)
    assert all(len(gradient[a == v].unique()) == 1 for v in a.unique())


def test_programs_that_take_several_blocks_and_sums_of_many(monkeypatch):
    monkeypatch.setitem(configs("gini", "80")[0].blocks, "BLOCK", 16)
    assert_right(torch.rand(512 * 16 * 2 + 5))


@by_dtype
@pytest.mark.parametrize("n", [1, 5, 64])
def test_zeros_have_coefficient_zero_and_gradient_zero(dtype, n):
    value, gradient = kernels.gini(torch.zeros(n, dtype=dtype))
    assert value == 0
    assert not gradient.any()


def test_infinity_and_nan_are_those_of_the_reference():
    for a in (non_finite((40,), torch.float32).abs(), torch.tensor([1.0, torch.inf, 2.0])):
        for got, wanted in zip(kernels.gini(a), reference.gini(a), strict=True):
            torch.testing.assert_close(got, wanted, equal_nan=True)


def test_an_empty_vector_launches_nothing(emulated):
    value, gradient = kernels.gini(torch.zeros(0))
    assert value == 0
    assert gradient.shape == (0,)
    assert not emulated.launches


def test_two_launches_and_the_same_bits_every_time(emulated):
    a = torch.rand(5000)
    first, second = kernels.gini(a), kernels.gini(a)
    assert [launch.name for launch in emulated.launches[:2]] == ["gini_ranks_kernel", "gini_gradient_kernel"]
    assert len(emulated.launches) == 4
    assert all(torch.equal(f, s) for f, s in zip(first, second, strict=True))
