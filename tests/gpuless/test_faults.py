"""Faults put into copies of the kernels: the tests that hold the kernels to their references find every one."""

import importlib
import itertools
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from cases import pack_bits
from torch import Tensor
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton", reason="Triton is not installed")

from gpuless.emulator import PtxError
from xattr_cuda.kernels import reference

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
pytestmark = pytest.mark.usefixtures("emulated", "poisoned")
_numbers = itertools.count()


class Fault(NamedTuple):
    """In `file`, `right` becomes `wrong`, everywhere; the operator is then called at the sizes of its arguments."""

    op: str
    file: str
    right: str
    wrong: str


FAULTS = {
    "a dropped boundary mask of relu_mask": Fault(
        "relu_mask", "relu_mask", "h.to(h_ptr.dtype.element_ty), mask=valid)", "h.to(h_ptr.dtype.element_ty))"
    ),
    "a dropped mask of the words of relu_mask": Fault(
        "relu_mask", "relu_mask", "(WORDS,)), mask=present)", "(WORDS,)))"
    ),
    "a comparison that forgets zero": Fault("relu_mask", "elementwise", "(z > 0) | (z != z)", "(z >= 0) | (z != z)"),
    "a wrong stride of rows": Fault(
        "mask_mul", "elementwise", "(row.to(tl.int64) * n)", "(row.to(tl.int64) * (n + 1))"
    ),
    "a wrong bit of a word": Fault(
        "mask_mul", "mask_mul", ">> tl.arange(0, 32)[None, :]", ">> (31 - tl.arange(0, 32))[None, :]"
    ),
    "an addend that is left out": Fault("add_relu_mask", "add_relu_mask", "b = tl.load(", "b = 0 * tl.load("),
    "a maximum that is the last one": Fault("max_pool", "max_pool", "(value > best)", "(value >= best)"),
    "padding that takes part": Fault(
        "max_pool", "max_pool", "inside = present & within(d, h, w, D, H, W)", "inside = present"
    ),
    "a missing test of the place in a window": Fault("pool_pull", "pool_pull", "named = some & (", "named = some | ("),
    "a wrong stride of the image": Fault("pool_push", "pooling", "* H + h", "* W + h"),
    "a dropped boundary mask of a product": Fault(
        "linear_relu_mask", "products", "there = (row[:, None] < rows) & (column[None, :] < columns)",
        "there = row[:, None] < rows",
    ),
    "a product that reads beyond its depth": Fault(
        "linear_relu_mask", "products", "mask=(row[:, None] < rows) & (first + k[None, :] < depth)",
        "mask=row[:, None] < rows",
    ),
    "a product that does not start at zero": Fault(
        "matmul_mask", "products", "tl.zeros((TALL, WIDE), dtype=tl.float32)",
        "tl.full((TALL, WIDE), 1.0, dtype=tl.float32)",
    ),
    "a wrong stride of a product": Fault(
        "matmul_mask", "products", "row.to(tl.int64)[:, None] * columns", "row.to(tl.int64)[:, None] * depth"
    ),
    "a mask of other rows": Fault("matmul_mask", "products", "[:, None] * row_words", "[:, None] * (row_words - 1)"),
    "a weight gradient that does not start at zero": Fault(
        "dual_weight_grad", "dual_weight_grad", "tl.zeros((TALL, WIDE), dtype=tl.float32)",
        "tl.full((TALL, WIDE), 1.0, dtype=tl.float32)",
    ),
    "a second pair that is the first": Fault(
        "dual_weight_grad", "dual_weight_grad", "g_ptr, g_stride, v_ptr, v_stride, own_rows, first",
        "delta_ptr, delta_stride, v_ptr, v_stride, own_rows, first",
    ),
    "a split that is left out": Fault(
        "dual_weight_grad", "dual_weight_grad", "range(splits)", "range(splits - 1)"
    ),
    "an accumulator that does not start at zero": Fault(
        "mlp_attribute", "perceptron", "total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)",
        "total = tl.full((ROWS, BLOCK), 1.0, dtype=tl.float32)",
    ),
    "a missing mask of the depth of a product": Fault(
        "mlp_attribute", "perceptron", "mask=(row[:, None] < valid) & (k[None, :] < DEPTH), other=0",
        "mask=(row[:, None] < valid) & (k[None, :] < DEPTH + 1), other=0",
    ),
    "rows that are not there in a tangent": Fault(
        "mlp_attribute_backward", "mlp_attribute_backward", "keep = (row[:, None] < valid) & (column[None, :] < COUNT)",
        "keep = column[None, :] < COUNT",
    ),
    "a tangent that reads the layer before its own": Fault(
        "mlp_attribute_backward", "mlp_attribute_backward", "in_ptr = tangents_ptr + COLUMNS[l - 1]",
        "in_ptr = tangents_ptr + COLUMNS[l - 1] * 0",
    ),
    "a pair of another layer": Fault(
        "mlp_attribute_backward", "weight_gradients", "tile >= TILES[l], things[l]", "tile > TILES[l], things[l]"
    ),
    "a weight gradient of all layers that does not start at zero": Fault(
        "mlp_attribute_backward", "weight_gradients", "tl.zeros((TALL, WIDE), dtype=tl.float32)",
        "tl.full((TALL, WIDE), 1.0, dtype=tl.float32)",
    ),
    "a rank that is off by one": Fault("gini", "gini", "rank = below + (upto - n)", "rank = below + (upto - n) + 1"),
}  # fmt: skip


@pytest.fixture
def mutant(tmp_path, monkeypatch):
    """From a fault to the launchers of a copy of the kernels that has it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def make(fault):
        name = f"mutant_{next(_numbers)}"
        names.append(name)
        for leaf in ("reference", "triton"):
            shutil.copytree(KERNELS / leaf, tmp_path / name / leaf, ignore=shutil.ignore_patterns("__pycache__"))
        path = tmp_path / name / "triton" / f"{fault.file}.py"
        text = path.read_text(encoding="utf-8")
        assert fault.right in text, "the kernel has changed: write the fault anew"
        path.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
        return importlib.import_module(f"{name}.triton")

    yield make
    for module in [one for one in sys.modules if one.partition(".")[0] in names]:
        del sys.modules[module]


def _whole(*shape):
    """Small whole numbers, zero among them, whose sums are exact."""
    return torch.randint(-2, 3, shape).float()


def _network():
    widths = (20, 40, 3)
    return [_whole(n, k) for k, n in itertools.pairwise(widths)], [0.0]


def _backward():
    weights, slopes = _network()
    x, u = _whole(19, 20), _whole(19, 3)
    _, _, bits, h, g = reference.mlp_attribute(x, weights, slopes, u, [1], [0, 1])
    ends = True, True
    return x, _whole(19, 20), None, None, u, weights, slopes, bits, [*g[1:], u], [x, *h], [1, 2], *ends


WINDOWS = ((3, 3), (2, 2), (1, 1), (1, 1))
ARGUMENTS = {
    "relu_mask": lambda: (_whole(5, 70), None),
    "add_relu_mask": lambda: (_whole(5, 70), _whole(5, 70), None),
    "mask_mul": lambda: (_whole(5, 70) + 0.5, pack_bits(torch.rand(5, 70) > 0.5), None),
    "max_pool": lambda: (_whole(2, 3, 8, 7) - 3, *WINDOWS, False),
    "pool_pull": lambda: (_whole(2, 3, 4, 4) + 0.5, torch.randint(9, (2, 3, 4, 4)).byte(), (2, 3, 8, 7), *WINDOWS),
    "pool_push": lambda: (torch.randn(2, 3, 8, 7), torch.randint(9, (2, 3, 4, 4)).byte(), *WINDOWS),
    "linear_relu_mask": lambda: (_whole(19, 21), _whole(45, 21), None),
    "matmul_mask": lambda: (_whole(19, 21), _whole(21, 45), pack_bits(torch.rand(19, 45) > 0.5), None),
    "dual_weight_grad": lambda: (_whole(1100, 9), _whole(1100, 21), _whole(1100, 9), _whole(1100, 21)),
    "mlp_attribute": lambda: (_whole(19, 20), *_network(), _whole(19, 3), [1], [0, 1]),
    "mlp_attribute_backward": _backward,
    "gini": lambda: (torch.rand(70),),
}


def outcome(launcher, op, args):
    """What a test of the kernel would see: an error of the emulator, a wrong value, or that all is well."""
    want = getattr(reference, op)(*args)
    try:
        got = launcher(*args)
    except PtxError as error:
        return f"caught by the emulator: {error}"
    for g, w in zip(tree_leaves(got), tree_leaves(want), strict=True):
        if isinstance(g, Tensor) and not torch.allclose(g.double(), w.double(), rtol=1e-5, atol=1e-5):
            return "wrong values"
    return "well"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name, mutant):
    fault = FAULTS[name]
    launcher = getattr(mutant(fault), fault.op)
    assert outcome(launcher, fault.op, ARGUMENTS[fault.op]()) != "well"


@pytest.mark.parametrize("op", ARGUMENTS)
def test_the_kernels_themselves_are_well(op):
    kernels = importlib.import_module("xattr_cuda.kernels.triton")
    assert outcome(getattr(kernels, op), op, ARGUMENTS[op]()) == "well"
