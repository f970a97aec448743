"""Products large enough for the tiles of the CPU kernels: values, layouts, and what surrounds the tiles."""

import pytest
import torch
from cases import DEFINITIONS, LAYOUTS, pack_bits
from helpers import assert_as_good_as

import xattr_cuda as xa

SHAPES = (
    (1, 500, 300),
    (512, 1, 256),
    (65, 118, 33),
    (100, 512, 128),
    (129, 32, 64),
    (300, 64, 64),
    (600, 37, 129),
    (257, 130, 48),
)
"""(rows, K, N): one row, one column on one side, ragged edges, a longer K, a longer N, and
more rows than one tile and one block of depth."""

by_shape = pytest.mark.parametrize(("rows", "k", "n"), SHAPES)
by_layout = pytest.mark.parametrize("layout", [None, *LAYOUTS])
by_slope = pytest.mark.parametrize("slope", [None, "one", "each"])


def arranged(t, layout):
    return LAYOUTS[layout](t) if layout else t


def arranged_too(t, layout):
    """The layout of a second argument: two expanded ones would make every element of a product the same number."""
    return t if layout == "expanded" else arranged(t, layout)


def slopes(kind, n):
    return None if kind is None else torch.linspace(0.1, 0.9, 1 if kind == "one" else n)


@by_shape
@by_layout
@by_slope
def test_linear_relu_mask_is_within_twice_the_error_of_pytorch(rows, k, n, layout, slope, backend):
    args = arranged(torch.randn(rows, k), layout), arranged_too(torch.randn(n, k), layout), slopes(slope, n)
    h, bits = xa.ops.linear_relu_mask(*args)
    assert_as_good_as(h, DEFINITIONS["linear_relu_mask"], args, "linear_relu_mask")
    assert torch.equal(bits, pack_bits(h > 0)), "the mask is not that of the activation beside it"


@by_shape
@by_layout
@by_slope
def test_matmul_mask_is_within_twice_the_error_of_pytorch(rows, k, n, layout, slope, backend):
    t, matrix = arranged(torch.randn(rows, k), layout), arranged_too(torch.randn(k, n), layout)
    args = t, matrix, pack_bits(torch.rand(rows, n) > 0.5), slopes(slope, n)
    assert_as_good_as(xa.ops.matmul_mask(*args), DEFINITIONS["matmul_mask"], args, "matmul_mask")


@by_shape
@by_layout
def test_a_product_without_a_mask_is_the_product(rows, k, n, layout, backend):
    args = arranged(torch.randn(rows, k), layout), arranged_too(torch.randn(k, n), layout)
    assert_as_good_as(xa.ops.matmul_mask(*args), torch.matmul, args, "product")


@by_shape
@by_layout
@pytest.mark.parametrize("pairs", [1, 2])
def test_dual_weight_grad_is_within_twice_the_error_of_pytorch(rows, k, n, layout, pairs, backend):
    args = [
        f(torch.randn(rows, width), layout)
        for width, f in zip((n, k) * pairs, (arranged, arranged_too) * 2, strict=False)
    ]
    args = (*args, *[None] * (4 - len(args)))
    assert_as_good_as(xa.ops.dual_weight_grad(*args), DEFINITIONS["dual_weight_grad"], args, "dual_weight_grad")


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_results_do_not_depend_on_the_number_of_threads(threads, backend):
    torch.manual_seed(0)
    x, weight, g = torch.randn(300, 64), torch.randn(80, 64), torch.randn(300, 80)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = (*xa.ops.linear_relu_mask(x, weight), xa.ops.dual_weight_grad(g, x))
        torch.set_num_threads(threads)
        got = (*xa.ops.linear_relu_mask(x, weight), xa.ops.dual_weight_grad(g, x))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_slopes_without_a_mask_are_refused(backend):
    with pytest.raises(ValueError, match="`slope` was given without `bits`"):
        xa.ops.matmul_mask(torch.ones(2, 3), torch.ones(3, 4), None, torch.ones(1))
