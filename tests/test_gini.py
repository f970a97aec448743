"""gini: against the pairwise definition, value and gradient, and what the definition implies."""

import numpy as np
import pytest
import torch
from cases import DTYPES, sample_inputs
from helpers import assert_as_good_as, assert_within_twice, relative_error

import xattr_cuda as xa

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def pairwise(a):
    return (a[:, None] - a[None, :]).abs().sum() / (2 * a.numel() * a.sum())


def sorted_gini(a):
    """The textbook formula by sorting, and the gradient for values without ties."""
    n, order = a.numel(), a.argsort()
    rank = torch.empty_like(a)
    rank[order] = 2 * torch.arange(n, dtype=a.dtype) - n + 1
    value = (rank * a).sum() / (n * a.sum())
    return value, (rank / n - value) / a.sum()


@pytest.mark.parametrize("kind", ["distinct", "ties", "mostly zero"])
@pytest.mark.parametrize("n", [1, 2, 3, 32, 97])
def test_value_and_gradient_are_those_of_the_pairwise_form(kind, n, backend):
    a = torch.rand(n, dtype=torch.float64) + 0.01
    if kind == "ties":
        a = torch.randint(1, 4, (n,)).double()
    if kind == "mostly zero":
        a = torch.where(torch.rand(n) < 0.7, 0, a)
        a[0] = 1
    a.requires_grad_()
    want = pairwise(a)
    (want_gradient,) = torch.autograd.grad(want, a)
    value, gradient = xa.ops.gini(a)
    (by_autograd,) = torch.autograd.grad(value, a, retain_graph=True)
    assert abs(value - want) <= 1e-14
    assert relative_error(gradient, want_gradient) <= 1e-12
    assert relative_error(by_autograd, want_gradient) <= 1e-12


@by_dtype
def test_gradient_is_within_twice_the_error_of_the_sorted_formula(dtype, backend, device):
    for sample in sample_inputs("gini", dtype, device):
        (a,) = sample.args
        if a.numel() < 2 or a.double().unique().numel() < a.numel():
            continue  # the textbook formula has no gradient at ties
        _, gradient = xa.ops.gini(a)
        assert_as_good_as(gradient, lambda a: sorted_gini(a)[1], (a,), sample.name)


def test_an_image_of_150528_pixels_against_numpy(backend):
    a = torch.rand(150_528).square()
    order = np.sort(a.double().cpu().numpy())
    n = len(order)
    truth = ((2 * np.arange(1, n + 1) - n - 1) * order).sum() / (n * order.sum())
    value, gradient = xa.ops.gini(a)
    plain_value, plain_gradient = sorted_gini(a)
    _, true_gradient = sorted_gini(a.double())
    assert_within_twice(value, plain_value, torch.tensor(truth), "value")
    # The textbook gradient breaks ties at random, so it is compared where values are distinct.
    _, where, counts = a.unique(return_inverse=True, return_counts=True)
    alone = (counts == 1)[where]
    assert alone.sum() > n / 2
    assert_within_twice(gradient[alone], plain_gradient[alone], true_gradient[alone], "gradient")
    assert abs(xa.ops.gini(a.double())[0] - truth) <= 1e-12


@by_dtype
def test_zeros_have_coefficient_zero_and_gradient_zero(dtype, backend):
    for n in (1, 5, 64):
        a = torch.zeros(n, dtype=dtype, requires_grad=True)
        value, gradient = xa.ops.gini(a)
        value.backward()
        assert value.item() == 0
        assert not gradient.any()
        assert not a.grad.any()


@by_dtype
def test_an_empty_vector_has_coefficient_zero_and_an_empty_gradient(dtype, backend):
    a = torch.empty(0, dtype=dtype, requires_grad=True)
    value, gradient = xa.ops.gini(a)
    value.backward()
    assert value.shape == ()
    assert value.dtype == dtype
    assert value.item() == 0
    assert gradient.shape == a.grad.shape == (0,)


@by_dtype
def test_strided_vectors_give_what_contiguous_ones_give(dtype, backend):
    matrix = torch.rand(40, 3, dtype=torch.float64).to(dtype)
    for strided in (matrix[:, 1], matrix[::2, 0], matrix[0, :1].expand(12)):
        value, gradient = xa.ops.gini(strided)
        want_value, want_gradient = xa.ops.gini(strided.contiguous())
        assert abs(value - want_value) <= 4 * torch.finfo(dtype).eps  # sums may run in another order
        assert relative_error(gradient, want_gradient) <= 4 * torch.finfo(dtype).eps


def test_a_permutation_leaves_the_value_and_permutes_the_gradient(backend):
    a, order = torch.rand(90, dtype=torch.float64), torch.randperm(90)
    value, gradient = xa.ops.gini(a)
    other, permuted = xa.ops.gini(a[order])
    assert abs(other - value) <= 1e-14
    assert relative_error(permuted, gradient[order]) <= 1e-12


@pytest.mark.parametrize("factor", [1e-6, 0.3, 4e5])
def test_a_factor_leaves_the_value_and_divides_the_gradient(factor, backend):
    a = torch.rand(90, dtype=torch.float64)
    value, gradient = xa.ops.gini(a)
    other, scaled = xa.ops.gini(factor * a)
    assert abs(other - value) <= 1e-13
    assert relative_error(scaled * factor, gradient) <= 1e-12


def test_equal_values_have_coefficient_zero_and_a_single_one_has_one_less_a_share(backend):
    equal, _ = xa.ops.gini(torch.full((50,), 0.7, dtype=torch.float64))
    assert abs(equal) <= 1e-15
    single = torch.zeros(50, dtype=torch.float64)
    single[7] = 3
    assert abs(xa.ops.gini(single)[0] - (1 - 1 / 50)) <= 1e-15
