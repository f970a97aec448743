"""The planner of the CPU's sweeps of perceptrons: which form it chooses, and that no choice changes the numbers."""

import math

import pytest
import torch

import xattr_cuda as xa
from xattr_cuda import ops

pytestmark = pytest.mark.skipif(
    ops.extension is None or ops.extension.cpu_capability() != "AVX512", reason="tiles need micro-kernels of AVX-512"
)
PAPER = [118, 512, 128, 32, 1]


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def plan(widths, rows, **dtype):
    return ops.extension.SweepPlan(widths, rows, **dtype)


@pytest.mark.parametrize(
    ("widths", "rows", "tiles"),
    [
        (PAPER, 100, True),
        (PAPER, 31, False),  # too few rows for tiles to pay
        ([784, 1024, 1024, 1], 2048, False),  # weights beyond the cache
        ([15, 64, 1], 100, False),  # an input narrower than a vector
        ([64, 8, 64, 1], 100, False),  # so is a hidden layer
        ([64, 64, 0], 100, False),
        ([64, 64], 100, True),
    ],
)
def test_tiles_are_for_networks_that_fit_the_cache_and_vectors(widths, rows, tiles):
    assert plan(widths, rows).tiles == tiles


@pytest.mark.parametrize("rows", [32, 33, 100, 257, 512, 8192])
def test_tiles_are_even_and_no_higher_than_the_cache_allows(rows, threads):
    found = plan(PAPER, rows)
    assert 1 <= found.threads <= threads
    assert 16 <= found.height <= 128
    share = math.ceil(rows / found.threads)
    assert found.height == math.ceil(share / math.ceil(share / 128))


def test_gradients_are_taken_over_the_whole_batch_where_a_thread_has_one_tile(threads):
    assert plan(PAPER, 100).sums_gradients == (threads == 1)
    assert plan(PAPER, 1024).sums_gradients


def test_gradients_of_bf16_are_summed_by_thread():
    if not plan(PAPER, 100, bf16=True).tiles:
        pytest.skip("this processor has no dot product of bf16")
    assert plan(PAPER, 100, bf16=True).sums_gradients


def test_the_cotangent_above_a_narrow_last_layer_is_swept_again_where_tiles_make_it_free():
    assert plan([64, 64, 1], 8192).repeats_last
    assert not plan([64, 64, 16], 8192).repeats_last
    assert not plan([784, 1024, 1024, 1], 2048).repeats_last


@pytest.mark.parametrize("before", [1, 2])
def test_the_number_of_threads_may_change_between_forward_and_backward(before):
    """A cotangent that one plan leaves out is found again by another."""
    model, x = xa.models.xmlp([64, 96, 48, 1]), torch.randn(100, 64)
    threads = torch.get_num_threads()

    def gradients(forward, backward):
        torch.set_num_threads(forward)
        output, attribution = xa.attribute(model, x)
        torch.set_num_threads(backward)
        return torch.autograd.grad(output.sum() + attribution.square().sum(), list(model.parameters()))

    try:
        for got, want in zip(gradients(before, 3 - before), gradients(2, 2), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(threads)
