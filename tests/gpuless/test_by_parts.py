"""Products by PyTorch's library with element-wise kernels around them: the same operators, and when they are chosen."""

import pytest
import torch
from cases import DEFINITIONS, pack_bits, sample_inputs
from helpers import assert_as_good_as

triton = pytest.importorskip("triton", reason="Triton is not installed")

from xattr_cuda.kernels.triton import by_parts  # noqa: E402 - needs Triton

from xattr_cuda.ops import gpu  # noqa: E402

pytestmark = pytest.mark.usefixtures("emulated", "poisoned")
by_op = pytest.mark.parametrize("op", by_parts.LAUNCHERS)


@by_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_parts_are_within_twice_the_error_of_pytorch(op, dtype):
    for sample in sample_inputs(op, dtype):
        found = by_parts.LAUNCHERS[op](*sample.args)
        if op == "linear_relu_mask":
            found, bits = found
            assert torch.equal(bits, pack_bits(found > 0)), sample.name
        assert_as_good_as(found, DEFINITIONS[op], sample.args, f"{op} {sample.name}")


@pytest.mark.parametrize("rows", [8, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_chains_of_few_samples_are_one_product(rows, dtype, monkeypatch):
    args = [torch.randn(8, 40, dtype=dtype), torch.randn(8, 50, dtype=dtype)]
    args += [torch.randn(rows, 40, dtype=dtype), torch.randn(rows, 50, dtype=dtype)]
    found = by_parts.dual_weight_grad(*args)
    assert_as_good_as(found, DEFINITIONS["dual_weight_grad"], tuple(args), "few samples")
    joined = []
    monkeypatch.setattr(torch, "cat", lambda tensors: joined.append(1) or torch.concatenate(tensors))
    by_parts.dual_weight_grad(*args)
    by_parts.dual_weight_grad(*(t.repeat(2, 1) for t in args))  # more samples, written twice
    assert len(joined) == 2


@by_op
@pytest.mark.parametrize(("side", "dtype", "whole"), [(64, torch.bfloat16, True), (64, torch.float32, False)])
def test_small_products_of_two_bytes_run_whole_and_those_of_float32_never(op, side, dtype, whole):
    t = torch.randn(side, side, dtype=dtype)
    chosen = gpu._faster(op, (t, t), print)
    assert (chosen is print) == whole
    assert (by_parts.LAUNCHERS[op] is chosen) != whole


@by_op
def test_large_products_run_by_parts_unless_the_kernels_are_forced(op, monkeypatch):
    t = torch.empty(4096, 4096, dtype=torch.bfloat16)
    assert gpu._faster(op, (t, t), print) is by_parts.LAUNCHERS[op]
    monkeypatch.setattr(gpu, "forced", True)
    assert gpu._faster(op, (t, t), print) is print


def test_other_operators_have_no_parts():
    t = torch.empty(4096, 4096)
    assert gpu._faster("relu_mask", (t,), print) is print
