"""Operators compiled on a GPU: the compiled code launches their Triton kernels itself, and has their results."""

import pytest
import torch
from calls import drawn
from steps import DTYPES
from torch._inductor.utils import run_and_get_code
from torch.utils._pytree import tree_leaves

import xattr_cuda as xa
from xattr_cuda.ops import gpu, traced

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that PyTorch can use")
OPS = [name for name in xa.ops.SCHEMAS if name not in traced.OPAQUE]
KERNELS = {
    "linear_relu_mask": "product",
    "matmul_mask": "product",
    "gini": "gini_gradient",
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_compiled_code_launches_the_kernels_and_has_their_results(op, dtype, monkeypatch):
    monkeypatch.setattr(gpu, "forced", True)  # products too are those of the package's kernels
    args, function = drawn(op, dtype, "cuda"), getattr(xa.ops, op)
    want = function(*args)
    torch.compiler.reset()
    got, codes = run_and_get_code(torch.compile(function, fullgraph=True), *args)
    assert any(f"def {KERNELS.get(op, op)}_kernel" in code for code in codes)
    assert not any(f"torch.ops.xattr.{op}" in code for code in codes)
    for g, w in zip(tree_leaves(got), tree_leaves(want), strict=True):
        torch.testing.assert_close(g, w)


def test_what_surrounds_an_operator_is_compiled_with_it_both_ways():
    z, other = (torch.randn(64, 96, device="cuda", requires_grad=True) for _ in range(2))

    def function(z, other):
        h, _ = xa.ops.relu_mask(z * other + 1)
        return (h.sin() * other).sum()

    want = torch.autograd.grad(function(z, other), (z, other))
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True)
    for _ in range(2):
        for g, w in zip(torch.autograd.grad(compiled(z, other), (z, other)), want, strict=True):
            torch.testing.assert_close(g, w)


def test_other_sizes_get_the_right_results():
    torch.compiler.reset()
    compiled = torch.compile(lambda z: xa.ops.relu_mask(z * 2)[0])
    for rows in (7, 64, 65, 0):
        z = torch.randn(rows, 45, device="cuda")
        torch.testing.assert_close(compiled(z), (z * 2).relu())
