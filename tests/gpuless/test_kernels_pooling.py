"""max_pool, pool_pull and pool_push in Triton: compiled, executed, and held against the reference."""

import pytest
import torch
from cases import POOL_LAYOUTS, POOLS, non_finite, pooled

from xattr_cuda.kernels import reference

triton = pytest.importorskip("triton", reason="Triton is not installed")

from xattr_cuda.kernels.triton import pooling  # noqa: E402

from xattr_cuda.kernels import triton as kernels  # noqa: E402 - needs Triton

OPS = ("max_pool", "pool_pull", "pool_push")
NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}

pytestmark = pytest.mark.usefixtures("emulated", "poisoned")
by_op = pytest.mark.parametrize("op", OPS)
by_layout = pytest.mark.parametrize("layout", POOL_LAYOUTS.values(), ids=["contiguous", "channels last"])


def arguments(op, shape, geometry, dtype, layout, values=torch.randn):
    """Arguments of an operator for an input of `shape` [B, C, *size], with indices that also point beyond windows."""
    kernel, *_ = geometry
    out = pooled(shape, *geometry)
    idx = layout(torch.randint(min(256, torch.Size(kernel).numel() + 1), out).to(torch.uint8))
    return {
        "max_pool": lambda: (layout(values(shape).to(dtype)), *geometry),
        "pool_pull": lambda: (layout(values(out).to(dtype)), idx, shape, *geometry[:4]),
        "pool_push": lambda: (layout(values(shape).to(dtype)), idx, *geometry[:4]),
    }[op]()


def assert_same(op, args):
    """Element for element what the reference computes, and with its strides; sums are taken in its order."""
    wanted, found = (getattr(module, op)(*args) for module in (reference, kernels))
    if not isinstance(wanted, tuple):
        wanted, found = (wanted,), (found,)
    for w, f in zip(wanted, found, strict=True):
        torch.testing.assert_close(f, w, rtol=0, atol=0, equal_nan=True)
        assert f.stride() == w.stride()


def tied(shape):
    return torch.randn(shape).round()


@by_op
@by_layout
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_windows_of_every_kind(op, layout, pool):
    shape, *geometry = pool
    assert_same(op, arguments(op, shape, geometry, torch.float32, layout, tied))


@by_op
@by_layout
@pytest.mark.parametrize("dtype", NARROW.values(), ids=NARROW)
def test_narrow_types_and_more_than_one_program(op, layout, dtype):
    geometry = ((3, 3), (2, 2), (1, 1), (1, 1), False)
    assert_same(op, arguments(op, (2, 48, 11, 9), geometry, dtype, layout))


@by_op
@by_layout
def test_infinity_and_nan_are_those_of_pytorch(op, layout):
    geometry = ((2, 2), (2, 1), (0, 1), (1, 1), True)
    args = arguments(op, (3, 5, 6, 7), geometry, torch.float32, layout, lambda s: non_finite(s, torch.float32))
    assert_same(op, args)


def test_a_window_of_negative_infinity_has_its_first_place(emulated):
    h = torch.full((1, 1, 4, 4), -torch.inf)
    assert_same("max_pool", (h, (2, 2), (2, 2), (1, 1), (1, 1), False))


@by_op
@by_layout
def test_places_beyond_an_int32_are_computed_in_64_bits(op, layout, monkeypatch):
    monkeypatch.setattr(pooling, "_LARGE", 0)
    shape, *geometry = POOLS[4]
    assert_same(op, arguments(op, shape, geometry, torch.float32, layout))


@by_op
def test_more_rows_than_an_int32_counts_are_left_to_the_reference(op, monkeypatch, emulated):
    monkeypatch.setattr(pooling, "_MOST_ROWS", 10)
    shape, *geometry = POOLS[4]
    args = arguments(op, shape, geometry, torch.float32, POOL_LAYOUTS[""])
    assert getattr(kernels, op)(*args) is NotImplemented
    assert not emulated.launches


@by_op
def test_tensors_that_are_not_contiguous(op):
    shape, *geometry = POOLS[4]
    args = arguments(op, shape, geometry, torch.float32, lambda t: t[..., None].repeat(1, 1, 1, 1, 2)[..., 0])
    assert not args[0].is_contiguous()
    assert_same(op, args)


@by_op
def test_layouts_may_differ_between_arguments(op):
    if op == "max_pool":
        pytest.skip("it has one argument")
    shape, *geometry = POOLS[4]
    t, *rest = arguments(op, shape, geometry, torch.float32, POOL_LAYOUTS[""])
    assert_same(op, (POOL_LAYOUTS[", channels last"](t), *rest))


@by_op
def test_one_launch_and_none_for_an_empty_batch(op, emulated):
    shape, *geometry = POOLS[3]
    getattr(kernels, op)(*arguments(op, shape, geometry, torch.float32, POOL_LAYOUTS[""]))
    assert [launch.name for launch in emulated.launches] == [f"{op}_kernel"]
    getattr(kernels, op)(*arguments(op, (0, *shape[1:]), geometry, torch.float32, POOL_LAYOUTS[""]))
    assert len(emulated.launches) == 1
