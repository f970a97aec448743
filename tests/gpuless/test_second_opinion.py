"""Every operator's kernels interpreted: Triton's interpreter and the executed machine code come to the same results."""

import itertools

import pytest
import torch
from cases import LAYER_OPS, sample_inputs
from steps import DTYPES
from torch import Tensor
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton", reason="Triton is not installed")

from gpuless.interpreter import interpreted, unusable
from xattr_cuda.kernels import triton as kernels

pytestmark = [
    pytest.mark.skipif(bool(unusable()), reason=unusable()),
    pytest.mark.usefixtures("emulated", "poisoned"),
]
by_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
SAMPLES = 6  # of each operator, spread over all

ROUNDINGS = 16  # of one number, by which two orders of summation may differ
EXACT = ("relu_mask", "mask_mul", "add_relu_mask", "max_pool", "pool_push")


def spread(samples):
    """A few of many, the first and the last among them."""
    count = len(samples)
    return [samples[i * (count - 1) // (SAMPLES - 1)] for i in range(SAMPLES)] if count > SAMPLES else samples


def assert_same_opinion(launcher, args, tolerance):
    """Floating results agree to a relative error, all others exactly; so much of them as is not left to chance."""
    compiled = launcher(*args)
    with interpreted():
        opinion = launcher(*args)
    if NotImplemented in (compiled, opinion):
        assert compiled is opinion
        return
    for ours, its in zip(tree_leaves(compiled), tree_leaves(opinion), strict=True):
        if not isinstance(ours, Tensor) or not ours.is_floating_point():
            assert torch.equal(ours, its)
        else:
            size = float(ours.abs().max()) if ours.numel() else 0.0
            torch.testing.assert_close(its, ours, rtol=tolerance, atol=tolerance * size, equal_nan=True)


@pytest.mark.parametrize("op", [op for op in LAYER_OPS if hasattr(kernels, op)])
@by_dtype
def test_an_operator_of_one_layer(op, dtype):
    tolerance = 0.0 if op in EXACT else ROUNDINGS * torch.finfo(dtype).eps
    for sample in spread([s for s in sample_inputs(op, dtype) if "ties" in s.name or op != "linear_relu_mask"]):
        assert_same_opinion(getattr(kernels, op), sample.args, tolerance)


@pytest.mark.parametrize("widths", [(20, 40, 33, 1), (7, 16, 3)], ids=str)
@by_dtype
def test_the_sweeps_of_a_perceptron(widths, dtype):
    """On small whole numbers, whose sums are exact, so that no mask is left to chance."""

    def whole(*shape):
        return torch.randint(-1, 2, shape).to(dtype)

    weights = [whole(n, k) for k, n in itertools.pairwise(widths)]
    slopes = [(0.0, 0.5)[i % 2] for i in range(len(weights) - 1)]
    x, u, layers = whole(19, widths[0]), whole(19, widths[-1]), list(range(1, len(widths)))
    args = (x, weights, slopes, u, layers[:-1], [0, *layers[:-1]])
    tolerance = ROUNDINGS * torch.finfo(dtype).eps
    assert_same_opinion(kernels.mlp_attribute, args, tolerance)
    _, _, bits, h, g = kernels.mlp_attribute(*args)
    a, s, c = whole(19, widths[0]), whole(19, 1), whole(19, 1)
    chains = [(x, a, s, c, None), (x, None, s, None, None), (None, None, None, None, u), (x, a, None, None, u)]
    for chain in chains:
        pairs = ([*g[1:], u] if chain[0] is not None else [], [x, *h] if chain[-1] is not None else [])
        ends = (chain[0] is not None, chain[-1] is not None)
        backward = (*chain, weights, slopes, bits, *pairs, layers, *ends)
        assert_same_opinion(kernels.mlp_attribute_backward, backward, tolerance)
