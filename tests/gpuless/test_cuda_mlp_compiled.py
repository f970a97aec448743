"""The CUDA C++ kernels of a whole perceptron as nvcc compiles them for sm_80, executed."""

import pytest
import torch

from . import nvcc
from .cuda_perceptron import MATHS, Compiled, instances
from .perceptrons import Operators, assert_gradients_right, assert_sweeps_right, exact, nearest, net
from .shim import KERNELS, with_fault
from .toolchain import needs_nvcc, needs_shim

NETWORKS = {
    "one layer": ((16, 5), 37),
    "odd": ((7, 5, 3, 2), 17),
    "even": ((64, 72, 10), 33),
    "paper": ((118, 512, 128, 32, 1), 20),
}

pytestmark = [needs_nvcc, needs_shim]
by_math = pytest.mark.parametrize("math", MATHS)


def compiled(math: str, **options) -> Operators:
    kernels = Compiled(math, **options)
    return Operators(kernels.mlp_attribute, kernels.mlp_attribute_backward, nearest if math == "tf32" else exact)


@pytest.mark.parametrize("network", NETWORKS)
@by_math
def test_what_nvcc_makes_is_within_twice_the_error_of_pytorch(network, math):
    ops, args = compiled(math), net(*NETWORKS[network], MATHS[math])
    assert_sweeps_right(ops, args)
    assert_gradients_right(ops, args, "both")


@pytest.mark.parametrize("rows", [16, 64])
def test_every_tile_of_rows(rows):
    ops, args = compiled("bf16", rows=rows), net((20, 33, 40, 2), 70, torch.bfloat16)
    assert_sweeps_right(ops, args)
    assert_gradients_right(ops, args, "own")


def test_gradients_that_do_not_wait_for_their_sweeps_are_found_out():
    """Blocks run side by side here."""
    kernels = with_fault("mlp_attribute_backward.cuh", "if (args.sweeps > 0) wait_for", "if (tile.rows < 0) wait_for")
    faulty = Operators(compiled("bf16").mlp_attribute, compiled("bf16", kernels=kernels).mlp_attribute_backward, exact)
    with pytest.raises(AssertionError):
        assert_gradients_right(faulty, net((20, 33, 2), 40, torch.bfloat16), "both")


@by_math
def test_what_blocks_of_one_launch_hand_over_is_read_where_they_write_it(math):
    """Loads of what never changes go through a cache that no fence reaches."""
    text = nvcc.ptx(instances("mlp_attribute_backward", (math, 32)), KERNELS)
    assert "ld.global" in text
    assert "ld.global.nc" not in text
    assert "nanosleep" in text
