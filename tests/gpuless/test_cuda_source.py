"""Kernels in CUDA C++ under g++: accesses out of bounds, undefined behaviour and races are found, and so are faults."""

from typing import NamedTuple

import pytest
import torch
from cases import pack_bits
from torch.utils._pytree import tree_leaves

from gpuless import launchers, shim
from gpuless.toolchain import needs_shim
from xattr_cuda.kernels import reference

pytestmark = [needs_shim, pytest.mark.usefixtures("poisoned")]
by_mode = pytest.mark.parametrize("mode", ["sanitized", "threads"])
by_dtype = pytest.mark.parametrize("dtype", launchers.DTYPES, ids=["fp32", "bf16", "fp16"])

SHAPES = {
    "sanitized": ((1, 1), (3, 31), (2, 64), (5, 33), (2, 40), (7, 100), (1, 4099)),
    "threads": ((5, 33), (3, 40)),  # every thread of a block is one of the system
}


def elementwise(op, shape, dtype, slope_shape=None):
    """Arguments of an operator at a shape [..., N]."""
    t, other = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    slope = None if slope_shape is None else torch.rand(slope_shape).to(dtype)
    second = {"relu_mask": (), "add_relu_mask": (other,), "mask_mul": (pack_bits(torch.rand(shape) > 0.5),)}[op]
    return t, *second, slope


def agrees(kernels, op, args):
    """Whether an operator computes what the reference does, to the last bit."""
    found, wanted = (tree_leaves(getattr(module, op)(*args)) for module in (kernels, reference))
    return all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@by_mode
@by_dtype
@pytest.mark.parametrize("op", ["relu_mask", "mask_mul", "add_relu_mask"])
def test_elementwise_kernels_touch_nothing_beyond_their_tensors_and_race_for_nothing(mode, dtype, op):
    kernels = launchers.source(mode)
    for shape in SHAPES[mode]:
        for slope_shape in (None, (1,), shape[-1:]):
            assert agrees(kernels, op, elementwise(op, shape, dtype, slope_shape)), (shape, slope_shape)


class Fault(NamedTuple):
    """In `file`, `right` becomes `wrong`; the operator is then called at a shape and with a slope.

    beyond: accesses lie beyond a tensor, which only the sanitizer sees.
    """

    op: str
    file: str
    right: str
    wrong: str
    shape: tuple[int, ...] = (5, 33)
    slope: tuple[int, ...] | None = None
    beyond: bool = False


FAULTS = {
    "a word that is not there": Fault(
        "relu_mask", "elementwise.cuh", "word < words ? n - column : 0", "n - column", (5, 36), beyond=True
    ),
    "a lane that keeps a word beyond the last": Fault(
        "relu_mask", "elementwise.cuh", "kSteps && word(member) < words", "kSteps", (5, 36), beyond=True
    ),
    "a ragged row that is written to its last word's end": Fault(
        "mask_mul", "mask_mul.cuh", "if (spans[step].left > 0) out[", "out[", beyond=True
    ),
    "a comparison that forgets zero": Fault(
        "relu_mask", "elementwise.cuh", "!(widened(z) <= 0.0f)", "!(widened(z) < 0.0f)", (4, 64)
    ),
    "a shuffle too few": Fault(
        "relu_mask", "elementwise.cuh", "apart < Lanes<T>::kOfWord", "apart < Lanes<T>::kOfWord / 2", (4, 64)
    ),
    "a step's word kept by another lane": Fault(
        "relu_mask", "elementwise.cuh", "if (lanes.member == step)", "if (lanes.member == step + 1)", (4, 64)
    ),
    "the word of another step": Fault(
        "mask_mul", "mask_mul.cuh", "* Lanes<T>::kOfWord + step)", "* Lanes<T>::kOfWord)", (9, 64)
    ),
    "an addend that is left out": Fault(
        "add_relu_mask", "add_relu_mask.cuh", "widened(a) + widened(b)", "widened(a) + 0 * widened(b)"
    ),
    "slopes of other columns": Fault(
        "relu_mask", "elementwise.cuh", "slope + span.column", "slope + span.column % 4", (3, 64), (64,)
    ),
    "rows that are taken for aligned": Fault(
        "relu_mask", "elementwise.cuh", "n % vector == 0", "n >= vector", (5, 33), beyond=True
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_the_source_is_found(fault):
    args = elementwise(fault.op, fault.shape, torch.float32, fault.slope)
    args[0][:, ::3] = 0
    mode = "sanitized" if fault.beyond else "plain"
    assert agrees(launchers.source(mode), fault.op, args)
    wrong = launchers.source(mode, shim.with_fault(fault.file, fault.right, fault.wrong))
    try:
        found = not agrees(wrong, fault.op, args)
    except shim.ShimError as error:
        found = "Sanitizer" in str(error) or "runtime error" in str(error)
    assert found
