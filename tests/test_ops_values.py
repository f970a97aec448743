"""Values of the operators: against their definition in float64, within twice PyTorch's own error, on every back end."""

import runpy
from pathlib import Path

import pytest
import torch
from cases import (
    DEFINITIONS,
    DTYPES,
    LAYER_OPS,
    PRE_ACTIVATIONS,
    SAMPLES,
    SHAPES,
    non_finite,
    pack_bits,
    sample_inputs,
)
from helpers import assert_as_good_as
from torch import Tensor
from torch.nn import functional as F

import xattr_cuda as xa
from xattr_cuda.kernels import reference
from xattr_cuda.ops.autograd import DERIVATIVES

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
by_op = pytest.mark.parametrize("op", LAYER_OPS)


@by_op
def test_every_operator_has_samples_a_definition_a_reference_and_a_derivative(op):
    assert op in SAMPLES
    assert op in DEFINITIONS
    assert op in DERIVATIVES
    assert callable(getattr(reference, op))
    assert callable(getattr(xa.ops, op))
    assert op in xa.ops.__all__
    assert ("bits)" in xa.ops.SCHEMAS[op].split("->")[1]) == (op in PRE_ACTIVATIONS)


@by_op
def test_every_operator_has_a_benchmark(op):
    path = Path(__file__).parent.parent / "benchmarks" / "operators.py"
    assert op in runpy.run_path(str(path))["ARGUMENTS"]


def value_of(result):
    """The floating result of an operator; gini also returns a gradient, which has tests of its own."""
    return result if isinstance(result, Tensor) else result[0]


@pytest.mark.parametrize("op", [op for op in LAYER_OPS if op != "gini"])
@by_dtype
def test_values_are_within_twice_the_error_of_pytorch(op, dtype, backend, device):
    for sample in sample_inputs(op, dtype, device):
        got = value_of(getattr(xa.ops, op)(*sample.args))
        assert_as_good_as(got, DEFINITIONS[op], sample.args, f"{op} {sample.name}")


@by_dtype
def test_coefficients_are_within_twice_the_error_of_pytorch(dtype, backend, device):
    """The error of one number is a matter of luck, so it is the largest of many that counts."""
    vectors = tuple(args[0] for _ in range(3) for _, args in sample_inputs("gini", dtype, device))

    def definition(*vectors):
        return torch.stack([DEFINITIONS["gini"](a) for a in vectors])

    got = torch.stack([xa.ops.gini(a)[0] for a in vectors])
    assert_as_good_as(got, definition, vectors, "gini")


@by_op
@by_dtype
def test_no_argument_is_changed_and_no_result_aliases_one(op, dtype, backend, device):
    for sample in sample_inputs(op, dtype, device):
        before = [t.clone() if isinstance(t, Tensor) else t for t in sample.args]
        results = getattr(xa.ops, op)(*sample.args)
        for result in (results,) if isinstance(results, Tensor) else results:
            tensors = [t for t in sample.args if isinstance(t, Tensor)]
            assert not any(torch._C._is_alias_of(result, t) for t in tensors), sample.name
        for t, copy in zip(sample.args, before, strict=True):
            assert not isinstance(t, Tensor) or torch.equal(t, copy), sample.name


@pytest.mark.parametrize("op", PRE_ACTIVATIONS)
@by_dtype
def test_mask_bits_are_the_sign_of_the_pre_activation(op, dtype, backend, device):
    for sample in sample_inputs(op, dtype, device):
        slope = sample.args[-1]
        _, bits = getattr(xa.ops, op)(*sample.args)
        z = PRE_ACTIVATIONS[op](*sample.args)
        mask = ~(z <= 0) if slope is None else z > 0
        assert bits.dtype == torch.int32
        assert bits.shape == pack_bits(mask).shape, sample.name
        # A product may be summed in another order, which can change the sign of what is zero but for rounding; the
        # sums of a sample with ties are exact, so every bit of theirs counts, those of exact zeros too.
        exact = op != "linear_relu_mask" or "ties" in sample.name
        sure = torch.ones_like(mask) if exact else z.abs() > 64 * torch.finfo(dtype).eps
        assert torch.equal(bits & pack_bits(sure), pack_bits(mask & sure)), sample.name
        assert not (bits & ~pack_bits(torch.ones_like(mask))).any(), f"{sample.name}: padding bits are set"


@pytest.mark.parametrize(("op", "packed"), [("linear_relu_mask", 2), ("add_relu_mask", 2), ("relu_mask", 1)])
def test_activation_and_bits_agree(op, packed, backend, device):
    for sample in sample_inputs(op, torch.float32, device):
        h, bits = getattr(xa.ops, op)(*sample.args)
        assert torch.equal(pack_bits(h > 0), bits), sample.name


LAYOUT_TABLE = [  # positive elements, row length, words
    ([0], 1, [1]),
    ([], 5, [0]),
    ([0, 2, 3], 4, [0b1101]),
    ([31], 32, [-(2**31)]),
    (list(range(32)), 32, [-1]),
    ([32], 33, [0, 1]),
    ([0, 31, 33, 64, 69], 70, [1 - 2**31, 2, 0b100001]),
]


@by_dtype
@pytest.mark.parametrize(("positive", "length", "words"), LAYOUT_TABLE)
def test_bit_i_of_word_j_is_element_32_j_plus_i(positive, length, words, dtype, backend, device):
    z = torch.full((3, length), -1.0, dtype=dtype, device=device)
    z[1, positive] = 1
    expected = torch.zeros(3, len(words), dtype=torch.int32)
    expected[1] = torch.tensor(words, dtype=torch.int32)
    for slope in (None, torch.ones(1, dtype=dtype, device=device)):
        _, bits = xa.ops.relu_mask(z, slope)
        assert torch.equal(bits.cpu(), expected.cpu())
    kept = xa.ops.mask_mul(torch.ones_like(z), expected.to(device))
    assert kept[1].nonzero().flatten().tolist() == positive
    assert not kept[[0, 2]].any()


@by_dtype
def test_padding_bits_of_a_mask_are_ignored(dtype, backend, device):
    t = torch.randn(4, 33, dtype=torch.float64).to(device, dtype)
    mask = torch.rand(4, 33) > 0.5
    bits = pack_bits(mask).to(device)
    dirty = bits.clone()
    dirty[:, 1] |= ~1
    assert torch.equal(xa.ops.mask_mul(t, bits), xa.ops.mask_mul(t, dirty))


def equal_with_nan(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@by_dtype
@pytest.mark.parametrize("shape", [s for s in SHAPES if torch.Size(s).numel() >= 7], ids=str)
def test_nan_and_infinity_pass_relu_as_in_pytorch(shape, dtype, backend, device):
    z = non_finite(shape, dtype, device).requires_grad_()
    d = non_finite(shape, dtype, device)
    want = F.relu(z)
    (want_grad,) = torch.autograd.grad(want, z, d)
    h, bits = xa.ops.relu_mask(z)
    (grad,) = torch.autograd.grad(h, z, d)
    equal_with_nan(h, want)
    equal_with_nan(grad, want_grad)
    equal_with_nan(xa.ops.mask_mul(d, bits), want_grad)


@by_dtype
@pytest.mark.parametrize("shape", [s for s in SHAPES if torch.Size(s).numel() >= 7], ids=str)
def test_nan_and_infinity_pass_leaky_relu_as_in_pytorch(shape, dtype, backend, device):
    slope = torch.tensor([0.25], dtype=dtype, device=device)
    z = non_finite(shape, dtype, device).requires_grad_()
    d = non_finite(shape, dtype, device)
    want = F.leaky_relu(z, 0.25)
    (want_grad,) = torch.autograd.grad(want, z, d)
    h, bits = xa.ops.relu_mask(z, slope)
    equal_with_nan(h, want)
    equal_with_nan(xa.ops.mask_mul(d, bits, slope), want_grad)


@by_dtype
def test_nan_and_infinity_pass_prelu_as_in_pytorch(dtype, backend, device):
    slope = torch.linspace(0.1, 0.9, 33).to(device, dtype).requires_grad_()
    z = non_finite((5, 33), dtype, device).requires_grad_()
    d = non_finite((5, 33), dtype, device)
    want = torch.autograd.grad(F.prelu(z, slope), (z, slope), d)
    got = torch.autograd.grad(xa.ops.relu_mask(z, slope)[0], (z, slope), d)
    equal_with_nan(got[0], want[0])
    equal_with_nan(got[1].isnan(), want[1].isnan())


@by_dtype
def test_non_finite_sums_and_products_are_those_of_pytorch(dtype, backend, device):
    a, b = non_finite((5, 33), dtype, device), non_finite((5, 33), dtype, device)
    equal_with_nan(xa.ops.add_relu_mask(a, b)[0], F.relu(a + b))
    x, weight = non_finite((5, 7), dtype, device), torch.ones(33, 7, dtype=dtype, device=device)
    equal_with_nan(xa.ops.linear_relu_mask(x, weight)[0], F.relu(F.linear(x, weight)))
    bits = pack_bits(torch.rand(5, 33) > 0.5).to(device)
    equal_with_nan(xa.ops.matmul_mask(x, weight.T, bits), xa.ops.mask_mul(x @ weight.T, bits))
    assert xa.ops.gini(non_finite((14,), dtype, device).abs())[0].isnan()


@by_op
@by_dtype
def test_a_call_gives_the_same_bits_every_time(op, dtype, backend, device):
    for sample in sample_inputs(op, dtype, device)[-6:]:
        first, second = (value_of(getattr(xa.ops, op)(*sample.args)) for _ in range(2))
        assert torch.equal(first, second), sample.name


def _attribution_sums(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    features = a.flatten(1) if a.dim() > 1 else a.unsqueeze(1)
    return a.abs().sum(0) / max(len(a), 1), features.abs().sum(1), features.square().sum(1)


@by_dtype
def test_sums_of_an_attribution_are_within_twice_the_error_of_pytorch_in_float32_at_least(dtype, backend, device):
    for sample in sample_inputs("input_times_gradient", dtype, device):
        a, *sums = xa.ops.input_times_gradient(*sample.args)
        wide = torch.promote_types(dtype, torch.float32)
        assert all(s.dtype == wide for s in sums)
        assert_as_good_as(sums, _attribution_sums, (a.to(wide),), sample.name)
