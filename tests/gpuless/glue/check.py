"""Run by test_cuda_glue.py in a process of its own: the operators through their glue, on CPU tensors.

    python check.py LIBRARY SEED

The library registers its operators for CUDA before the package is imported, as the extension does.
"""

import sys
import types

import pytest
import torch

torch.ops.load_library(sys.argv[1])
torch.manual_seed(int(sys.argv[2]))

from cases import sample_inputs  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

import xattr_cuda as xa  # noqa: E402
from xattr_cuda.kernels import reference  # noqa: E402
from xattr_cuda.ops import gpu  # noqa: E402

OPS = ("relu_mask", "mask_mul", "add_relu_mask", "max_pool", "pool_pull", "pool_push")
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
glue = torch.ops.xattr_glue
gpu.extension = types.SimpleNamespace(set_cuda_kernels=glue.use)

fallen: list[str] = []
answer = None  # of the layer below, in place of the reference
below = torch.library.Library("xattr_below", "IMPL")


def falls(name):
    def run(*args):
        fallen.append(name)
        return getattr(reference, name)(*args) if answer is None else answer

    return run


for name in OPS:
    below.impl(name, falls(name), "CPU")


def call(name, args):
    """What PyTorch runs for the tensors of a GPU."""
    return getattr(torch.ops.xattr, name).default.redispatch(CUDA, *args)


def assert_same(name, args):
    got, want = tree_leaves(call(name, args)), tree_leaves(getattr(reference, name)(*args))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=0, equal_nan=True)
        assert g.stride() == w.stride() or not g.numel(), name


assert set(OPS) <= gpu.NATIVE
for name in OPS:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for sample in sample_inputs(name, dtype):
            before = glue.launches()
            assert_same(name, sample.args)
            assert glue.launches() - before == (next(iter(sample.args)).numel() > 0), sample.name
    assert not fallen, f"{name}: {fallen}"

    double = sample_inputs(name, torch.float64)[0].args
    before = glue.launches()
    assert_same(name, double)
    assert fallen == [name], "float64 goes to the layer below"
    with_float = sample_inputs(name, torch.float32)[0].args
    xa.ops.backend._set("triton")
    assert_same(name, with_float)
    assert fallen == [name] * 2, "a forced Triton goes to the layer below"
    assert glue.launches() == before
    xa.ops.backend._set("auto")
    fallen.clear()

wrong = {
    "relu_mask": (torch.randn(3, 33), torch.rand(2)),
    "mask_mul": (torch.randn(3, 33), torch.zeros(3, 1, dtype=torch.int32)),
    "add_relu_mask": (torch.randn(3, 33), torch.randn(3, 32)),
    "max_pool": (torch.randn(1, 1, 4, 4), (2, 2), (2, 2), (2, 0), (1, 1), False),
}
for name, args in wrong.items():
    with pytest.raises(ValueError, match=f"xattr::{name}: "):
        call(name, args)

# Windows that reach further than an int counts are left to the layer below.
far, answer = 2**30, torch.ones(1, 1, 2, 3)
idx = answer.byte()
call("pool_push", (torch.randn(1, 1, 2, 3), idx, (2, 1), (1, 1), (far // 2, 0), (far, 1)))
assert fallen == ["pool_push"]
print("works")
