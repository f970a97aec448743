"""The interpreter as a second opinion: bfloat16 and tf32 are right, and compiling is as before."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from gpuless import samples
from gpuless.interpreter import interpreted, unusable

pytestmark = pytest.mark.skipif(bool(unusable()), reason=unusable())
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def combined(op, x, y):
    out = torch.full_like(x, float("nan"))
    samples.combine[(1,)](x, y, out, N=len(x), OP=op)
    return out


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("op", samples.OPERATIONS)
def test_an_operation_is_that_of_pytorch_and_of_the_compiled_kernel(op, dtype, emulated):
    x, y = torch.randn(256).to(dtype), torch.randn(256).to(dtype)
    want = samples.OPERATIONS[op](x, y)
    exact = {"rtol": 1e-2, "atol": 1e-2} if op == "sum" else {"rtol": 0, "atol": 0}
    with interpreted():
        torch.testing.assert_close(combined(op, x, y), want, **exact)
    assert not emulated.launches
    torch.testing.assert_close(combined(op, x, y), want, **exact)
    assert len(emulated.launches) == 1


def product(x, w, precision):
    y = torch.full((x.shape[0], w.shape[0]), float("nan"), dtype=x.dtype)
    bits = torch.zeros(x.shape[0], (w.shape[0] + 31) // 32, dtype=torch.int32)
    grid = (-(-x.shape[0] // 32), -(-w.shape[0] // 64))
    args = samples.linear_args(x, w, y, bits)
    samples.linear_relu_mask[grid](*args, BM=32, BN=64, BK=32, PRECISION=precision)
    return y, bits


PRODUCTS = [("fp32", "ieee"), ("fp32", "tf32"), ("bf16", "ieee"), ("fp16", "ieee")]


@pytest.mark.parametrize(("dtype", "precision"), PRODUCTS)
def test_a_product_agrees_with_the_compiled_one(dtype, precision, emulated):
    x, w = torch.randn(100, 70).to(DTYPES[dtype]), torch.randn(200, 70).to(DTYPES[dtype])
    with interpreted():
        opinion, its_bits = product(x, w, precision)
    y, bits = product(x, w, precision)
    torch.testing.assert_close(opinion, y, rtol=2 * torch.finfo(y.dtype).eps, atol=2e-5)
    assert torch.equal(its_bits, bits)


def test_products_of_tf32_are_rounded_to_it(emulated):
    x, w = torch.randn(64, 64), torch.randn(64, 64)
    want = (x.double() @ w.double().T).relu()
    with interpreted():
        errors = {p: (product(x, w, p)[0].double() - want).abs().max() for p in ("ieee", "tf32")}
    assert errors["ieee"] < 1e-4 < errors["tf32"] < 1e-1


def test_compiling_goes_on_as_before_after_an_error(emulated):
    x = torch.randn(64)
    with pytest.raises(ZeroDivisionError), interpreted():
        raise ZeroDivisionError
    assert torch.equal(combined("add", x, x), x + x)
    assert len(emulated.launches) == 1
