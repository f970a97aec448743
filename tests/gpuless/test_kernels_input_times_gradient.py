"""input_times_gradient in Triton: compiled, executed, and held against the reference."""

import pytest
import torch
from cases import non_finite, sample_inputs
from helpers import assert_within

from xattr_cuda.kernels import reference

triton = pytest.importorskip("triton", reason="Triton is not installed")

from xattr_cuda.kernels import triton as kernels  # noqa: E402 - needs Triton

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

pytestmark = pytest.mark.usefixtures("emulated", "poisoned")
by_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


ORDERS = 8  # of what is summed: one of them may be exact by luck


def errors(a, truth):
    """PyTorch's own largest errors of mean_abs, l1 and l2 over several orders of rows and of features."""
    flat, largest = a.reshape(len(a), a.shape[1:].numel()), [0.0, 0.0, 0.0]
    for _ in range(ORDERS):
        rows, columns = torch.randperm(len(flat)), torch.randperm(flat.shape[1])
        turned = flat[rows][:, columns]
        sums = reference.input_times_gradient(turned, torch.ones_like(turned))[1:]
        for k, (found, t, order) in enumerate(zip(sums, truth, (columns, rows, rows), strict=True)):
            largest[k] = max(largest[k], float((found.double() - t.flatten()[order]).abs().max()) if t.numel() else 0.0)
    return largest


def assert_right(*args):
    """The attribution is the reference's to the bit, and so are its sums but for the order of them."""
    found, plain = kernels.input_times_gradient(*args), reference.input_times_gradient(*args)
    torch.testing.assert_close(found[0], plain[0], rtol=0, atol=0)
    a = plain[0].double()
    truth = reference.input_times_gradient(a, torch.ones_like(a))[1:]
    for name, f, t, error in zip(("mean_abs", "l1", "l2"), found[1:], truth, errors(plain[0], truth), strict=True):
        assert f.dtype == torch.float32
        assert_within(f, t, error, f"{name} of {list(a.shape)}")
    assert all(f.is_contiguous() for f in found)


@by_dtype
def test_samples_are_those_of_the_reference(dtype):
    for sample in sample_inputs("input_times_gradient", dtype):
        assert_right(*sample.args)


@by_dtype
@pytest.mark.parametrize("shape", [(70, 256), (300, 1), (3, 2, 300), (513, 48)], ids=str)
def test_sums_over_several_programs(dtype, shape):
    for scale in (None, torch.randn(shape[0]).to(dtype)):
        assert_right(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), scale)


@pytest.mark.parametrize("shape", [(9, 33), (9, 64)], ids=str)
def test_infinity_and_nan_are_those_of_pytorch(shape):
    x, g = non_finite(shape, torch.float32), non_finite(shape, torch.float32)
    found, wanted = (module.input_times_gradient(x, g, x[:, 0]) for module in (kernels, reference))
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0,)], ids=str)
def test_empty_tensors_launch_nothing_and_have_sums_of_zero(shape, emulated):
    for f, w in zip(
        *(module.input_times_gradient(torch.zeros(shape), torch.zeros(shape)) for module in (kernels, reference)),
        strict=True,
    ):
        torch.testing.assert_close(f, w, rtol=0, atol=0)
    assert not emulated.launches


def test_two_launches_and_the_same_bits_every_time(emulated):
    x, g = torch.randn(40, 200), torch.randn(40, 200)
    first, second = kernels.input_times_gradient(x, g), kernels.input_times_gradient(x, g)
    names = ["input_times_gradient_kernel", "prior_sums_kernel"]
    assert [launch.name for launch in emulated.launches] == 2 * names
    assert all(torch.equal(f, s) for f, s in zip(first, second, strict=True))
