"""Kernels in CUDA C++ under g++: accesses out of bounds, undefined behaviour and races are found, and so are faults."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cases import POOL_LAYOUTS, pack_bits, pooled
from torch.utils._pytree import tree_leaves

from gpuless import launchers, shim
from gpuless.toolchain import needs_shim
from xattr_cuda.kernels import reference

ROOT = Path(__file__).resolve().parents[2]
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


def pooling(op, shape, geometry, dtype, layout):
    """Arguments of an operator for an input of `shape` [B, C, *size]."""
    out = pooled(shape, *geometry)
    idx = layout(torch.randint(torch.Size(geometry[0]).numel(), out).to(torch.uint8))
    values = layout(torch.randn(out if op == "pool_pull" else shape).to(dtype))
    if op == "max_pool":
        return values, *geometry
    return (values, idx, shape, *geometry[:4]) if op == "pool_pull" else (values, idx, *geometry[:4])


TILES = ((2, 2), (2, 2), (0, 0), (1, 1), False)
OVERLAPS = ((3, 3), (2, 2), (1, 1), (1, 1), True)
UNUSUAL = ((3, 2), (1, 2), (1, 1), (2, 1), True)
CALLS = {  # shape, windows and layout: windows that tile, of every dtype's vectors of channels, and any others
    "sanitized": [
        *(((2, 3, size, 16), TILES, "") for size in (7, 8)),
        *(((2, 8, 5, 7), windows, layout) for windows in (TILES, OVERLAPS, UNUSUAL) for layout in POOL_LAYOUTS),
        ((1, 5, 7, 8), OVERLAPS, ", channels last"),
        ((2, 2, 3, 4, 8), ((1, 2, 2), (1, 2, 2), (0, 0, 0), (1, 1, 1), False), ""),
    ],
    "threads": [((1, 2, 5, 8), TILES, ""), ((1, 8, 5, 3), OVERLAPS, ", channels last")],
}


@by_mode
@pytest.mark.parametrize("op", ["max_pool", "pool_pull", "pool_push"])
def test_pooling_kernels_touch_nothing_beyond_their_tensors_and_race_for_nothing(mode, op):
    kernels = launchers.source(mode)
    for shape, geometry, layout in CALLS[mode]:
        for dtype in (torch.float32, torch.bfloat16):
            args = pooling(op, shape, geometry, dtype, POOL_LAYOUTS[layout])
            assert agrees(kernels, op, args), (shape, geometry, layout, dtype)


LIMITS = """
#include "cuda/elementwise.cuh"
#include "cuda/pooling.cuh"

using xattr::cuda::countable;

int64_t pools(int64_t size, int64_t images, int64_t channels, bool last, int64_t stride = 2, int64_t dilation = 1) {
  const int64_t axis[] = {size, (size - 1 - dilation) / stride + 1, 2, stride, 0, dilation};
  int64_t axes[3][6] = {{1, 1, 1, 1, 0, 1}};
  for (int i = 1; i < 3; ++i) std::copy(axis, axis + 6, axes[i]);
  return countable(axes, images, channels, last);
}

void run(const cuemu::Arguments& arguments) {
  const int64_t found[] = {
      countable(1, int64_t{1} << 35), countable(int64_t{1} << 30, 32), countable(int64_t{1} << 40, 0),
      pools(1 << 10, 1 << 10, 1, false), pools(1 << 11, 1, 1 << 8, true),
      pools(8, 1, 1, false, int64_t{1} << 31), pools(8, 1, 1, false, 1, 6),
      countable(1, int64_t{1} << 36), countable(int64_t{1} << 30, 33), countable(int64_t{1} << 31, 1),
      pools(1 << 16, 1, 1, false), pools(1 << 15, 1 << 17, 1, false), pools(1 << 12, 1, 1 << 8, true),
      pools(1 << 4, 1 << 24, 1 << 8, true), pools(1 << 30, 1, 1, false, 1 << 30),
  };
  std::copy(std::begin(found), std::end(found), arguments.pointer<int64_t>(0));
}
"""


def test_what_a_launch_cannot_count_is_left_to_the_layer_below():
    """Words and rows of 2^31 and images of as many elements; strides may be as large as they like."""
    found = torch.zeros(15, dtype=torch.int64)
    shim.build("#include <algorithm>\n#include <iterator>\n" + LIMITS, "plain").run(found)
    assert found.tolist() == [1] * 7 + [0] * 8


class Fault(NamedTuple):
    """In `file`, `right` becomes `wrong`; the operator is then called at a shape and with a slope, or with windows.

    beyond: accesses lie beyond a tensor, which only the sanitizer sees.
    """

    op: str
    file: str
    right: str
    wrong: str
    shape: tuple[int, ...] = (5, 33)
    slope: tuple[int, ...] | None = None
    beyond: bool = False
    windows: tuple[Any, ...] | None = None


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
    "a maximum that is the last one": Fault(
        "max_pool", "max_pool.cuh", "other > value", "other >= value", (2, 3, 8, 8), windows=OVERLAPS
    ),
    "padding that takes part": Fault(
        "max_pool", "max_pool.cuh", "|| !within(x, width.in)) continue", ") continue", (2, 3, 8, 7), windows=OVERLAPS
    ),
    "a tile of other columns": Fault(
        "max_pool", "max_pool.cuh", "at[2 * e + k % 2]", "at[e + k % 2]", (2, 3, 8, 8), windows=TILES
    ),
    "tiles beyond the last line": Fault(
        "max_pool", "pooling.cuh", "&& 2 * height.out <= height.in", "", (1, 1, 1, 8), None, True, (*TILES[:4], True)
    ),
    "windows in the wrong order": Fault(
        "pool_push",
        "pool_push.cuh",
        "const int i = line / W::size(height)",
        "const int i = line % W::size(height)",
        (2, 2, 7, 8),
        windows=UNUSUAL,
    ),
    "a window too few": Fault(
        "pool_pull", "pooling.cuh", "/ stride(axis) + 1;", "/ stride(axis);", (2, 2, 7, 8), windows=OVERLAPS
    ),
    "the last line of an odd image": Fault(
        "pool_pull", "pool_pull.cuh", "if (2 * y + 1 < H) store", "store", (1, 1, 7, 8), None, True, TILES
    ),
    "rows that are taken for aligned": Fault(
        "relu_mask", "elementwise.cuh", "n % vector == 0", "n >= vector", (5, 33), beyond=True
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_the_source_is_found(fault):
    if fault.windows is None:
        args = elementwise(fault.op, fault.shape, torch.float32, fault.slope)
        args[0][:, ::3] = 0
    else:
        args = pooling(fault.op, fault.shape, fault.windows, torch.float32, lambda t: t)
        args[0].round_()  # ties
    mode = "sanitized" if fault.beyond else "plain"
    assert agrees(launchers.source(mode), fault.op, args)
    wrong = launchers.source(mode, shim.with_fault(fault.file, fault.right, fault.wrong))
    try:
        found = not agrees(wrong, fault.op, args)
    except shim.ShimError as error:
        found = "Sanitizer" in str(error) or "runtime error" in str(error)
    assert found


@pytest.mark.parametrize("path", sorted((ROOT / "kernels" / "cuda").glob("*.cuh")), ids=lambda path: path.name)
def test_arguments_by_layer_start_as_nothing(path):
    """A pointer of a layer that nobody sets must be null and not what the stack held: no sanitizer here sees that."""
    assert not re.findall(r"\w+\[kMostLayers[^\]]*\];", path.read_text(encoding="utf-8"))
