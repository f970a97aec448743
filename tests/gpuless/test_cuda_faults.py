"""Faults put into the CUDA kernels of a perceptron: the tests must find them."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from . import shim
from .cuda_perceptron import OnShim
from .perceptrons import Operators, assert_gradients_right, assert_sweeps_right, net
from .shim import ShimError, with_fault
from .toolchain import needs_shim

pytestmark = needs_shim


class Fault(NamedTuple):
    """What becomes of a line of cuda/<file>, and in which mode it is sought."""

    file: str
    old: str
    new: str
    mode: str = "plain"


FAULTS = {
    "a tile that nobody waits for": Fault("pipeline.cuh", "cp_async_wait<kStages - 2>()", "cp_async_wait<kStages>()"),
    "no barrier before a tile": Fault("pipeline.cuh", "    __syncthreads();\n", "", "threads"),
    "u over y": Fault("mlp_attribute.cuh", "__syncthreads();  // y has left the tile that u takes", "", "threads"),
    "v_0 over delta": Fault("mlp_attribute_backward.cuh", "__syncthreads();  // the last cotangents", "//", "threads"),
    "a row too many": Fault("rows.cuh", "row < rows ? min(", "row <= rows ? min(", "sanitized"),
    "words that nobody fills": Fault("mlp_attribute.cuh", "shared.mask(1)[i] = 0;", ";"),
    "bits in disorder": Fault("mask.cuh", "spread(nibbles(1)) << 1", "spread(nibbles(1)) << 2"),
    "a mask of values that are not rounded": Fault(
        "mlp_attribute.cuh", "is_positive(rounded<T>(z[half][i]), slope)", "is_positive(z[half][i] + 0.01f, slope)"
    ),
    "a mask of the next layer": Fault("perceptron.cuh", "shared.mask(l)) + row", "shared.mask(1)) + row"),
    "fragments in disorder": Fault("tile.cuh", "{a.words[0][0], a.words[1][0],", "{a.words[1][0], a.words[0][0],"),
    "the task's pairs alone": Fault("weight_gradients.cuh", "|| own || args.own", "|| !own || args.own"),
    "a part of another's rows": Fault(
        "weight_gradients.cuh", "(part) * args.part_rows", "(part ? 1 : 0) * args.part_rows"
    ),
    "a part left out": Fault("weight_gradients.cuh", "int part = 0;", "int part = 1;"),
    "the parts added before the last": Fault("weight_gradients.cuh", "before + 1 ==", "before + 2 =="),
    "rows that nobody counts": Fault("mlp_attribute_backward.cuh", "count_up(swept", "if (ticket > 0) count_up(swept"),
    "gradients before their sweeps": Fault(
        "mlp_attribute_backward.cuh", "count_up(args.tickets)", "gridDim.x - 1 - count_up(args.tickets)"
    ),
}


BACKWARD = ("mlp_attribute_backward.cuh", "weight_gradients.cuh")


def check(fault: Fault, kernels: Path) -> None:
    """What the tests of the kernels in a folder would see, where the fault is."""
    environment = shim.ORDERS[1 if fault.mode == "plain" else 0]
    ops, args = OnShim("bf16", 16, 32, fault.mode, environment, kernels), net((20, 50, 40, 3), 77, torch.bfloat16)
    if fault.file not in BACKWARD:
        assert_sweeps_right(Operators(ops.mlp_attribute, ops.mlp_attribute_backward), args)
    else:
        assert_gradients_right(Operators(OnShim("bf16").mlp_attribute, ops.mlp_attribute_backward), args, "both")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name):
    fault = FAULTS[name]
    kernels = with_fault(fault.file, fault.old, fault.new)
    with pytest.raises((ShimError, AssertionError)):
        check(fault, kernels)


@pytest.mark.parametrize("mode", shim.MODES)
@pytest.mark.parametrize("file", ["mlp_attribute.cuh", "mlp_attribute_backward.cuh"])
def test_the_kernels_themselves_are_well(file, mode):
    check(Fault(file, "", "", mode), shim.KERNELS)


def test_a_fault_must_be_in_the_text():
    with pytest.raises(ValueError, match="0 times"):
        with_fault("tile.cuh", "no such line", "")
