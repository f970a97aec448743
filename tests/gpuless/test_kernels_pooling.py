"""max_pool, pool_pull and pool_push on a GPU: compiled, executed, and held against the reference."""

import pytest
import torch
from cases import POOL_LAYOUTS, POOLS, non_finite, pooled

from xattr_cuda.kernels import reference

OPS = ("max_pool", "pool_pull", "pool_push")
NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}

pytestmark = pytest.mark.usefixtures("poisoned")
by_op = pytest.mark.parametrize("op", OPS)
on_triton = pytest.mark.parametrize("kernels", ["triton"], indirect=True)
recorded = pytest.mark.parametrize("kernels", ["triton", "cuda"], indirect=True)
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


def assert_same(kernels, op, args):
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
def test_windows_of_every_kind(kernels, op, layout, pool):
    shape, *geometry = pool
    assert_same(kernels, op, arguments(op, shape, geometry, torch.float32, layout, tied))


@by_op
@by_layout
@pytest.mark.parametrize("dtype", NARROW.values(), ids=NARROW)
def test_narrow_types_and_more_than_one_program(kernels, op, layout, dtype):
    geometry = ((3, 3), (2, 2), (1, 1), (1, 1), False)
    assert_same(kernels, op, arguments(op, (2, 48, 11, 9), geometry, dtype, layout))


@by_op
@by_layout
def test_infinity_and_nan_are_those_of_pytorch(kernels, op, layout):
    geometry = ((2, 2), (2, 1), (0, 1), (1, 1), True)
    args = arguments(op, (3, 5, 6, 7), geometry, torch.float32, layout, lambda s: non_finite(s, torch.float32))
    assert_same(kernels, op, args)


def test_a_window_of_negative_infinity_has_its_first_place(kernels):
    h = torch.full((1, 1, 4, 4), -torch.inf)
    assert_same(kernels, "max_pool", (h, (2, 2), (2, 2), (1, 1), (1, 1), False))


TILED = ((2, 3, 7, 16), (3, 5, 8, 48), (1, 2, 1, 8), (2, 2, 4, 12))  # lines of whole vectors, or of those of fp32


@by_op
@pytest.mark.parametrize("dtype", [torch.float32, *NARROW.values()], ids=["fp32", *NARROW])
@pytest.mark.parametrize("values", [tied, lambda shape: non_finite(shape, torch.float32)], ids=["ties", "special"])
def test_windows_that_tile_the_image(kernels, op, dtype, values):
    for shape in TILED:
        geometry = ((2, 2), (2, 2), (0, 0), (1, 1), shape[2] == 1)
        assert_same(kernels, op, arguments(op, shape, geometry, dtype, POOL_LAYOUTS[""], values))


@by_op
@pytest.mark.parametrize(
    "pool", [((2, 2), (2, 2), (1, 1)), ((3, 3), (2, 2), (1, 0)), ((3, 2), (2, 2), (1, 1))], ids=str
)
def test_channels_that_fill_vectors(kernels, op, pool):
    for dtype in (torch.float32, torch.bfloat16):
        geometry = (*pool, (1, 1), True)
        layout = POOL_LAYOUTS[", channels last"]
        assert_same(kernels, op, arguments(op, (2, 24, 7, 5), geometry, dtype, layout, tied))


@by_op
def test_memory_that_is_not_aligned(kernels, op):
    for shape, layout in (((1, 2, 4, 16), ""), ((1, 16, 4, 3), ", channels last")):
        t, *rest = arguments(op, shape, ((2, 2), (2, 2), (0, 0), (1, 1), False), torch.float32, POOL_LAYOUTS[layout])
        shifted = t.new_zeros(t.numel() + 1)[1:].as_strided(t.shape, t.stride()).copy_(t)
        assert shifted.data_ptr() % 16
        assert_same(kernels, op, (shifted, *rest))


@by_op
@by_layout
@on_triton
def test_places_beyond_an_int32_are_computed_in_64_bits(kernels, op, layout, monkeypatch):
    monkeypatch.setattr(kernels.pooling, "_LARGE", 0)
    shape, *geometry = POOLS[4]
    assert_same(kernels, op, arguments(op, shape, geometry, torch.float32, layout))


@by_op
@on_triton
def test_more_rows_than_an_int32_counts_are_left_to_the_reference(kernels, op, monkeypatch, emulated):
    monkeypatch.setattr(kernels.pooling, "_MOST_ROWS", 10)
    shape, *geometry = POOLS[4]
    args = arguments(op, shape, geometry, torch.float32, POOL_LAYOUTS[""])
    assert getattr(kernels, op)(*args) is NotImplemented
    assert not emulated.launches


@by_op
def test_tensors_that_are_not_contiguous(kernels, op):
    shape, *geometry = POOLS[4]
    args = arguments(op, shape, geometry, torch.float32, lambda t: t[..., None].repeat(1, 1, 1, 1, 2)[..., 0])
    assert not args[0].is_contiguous()
    assert_same(kernels, op, args)


@by_op
def test_layouts_may_differ_between_arguments(kernels, op):
    if op == "max_pool":
        pytest.skip("it has one argument")
    shape, *geometry = POOLS[4]
    t, *rest = arguments(op, shape, geometry, torch.float32, POOL_LAYOUTS[""])
    assert_same(kernels, op, (POOL_LAYOUTS[", channels last"](t), *rest))


@by_op
@recorded
def test_one_launch_and_none_for_an_empty_batch(kernels, op, launched):
    shape, *geometry = POOLS[3]
    getattr(kernels, op)(*arguments(op, shape, geometry, torch.float32, POOL_LAYOUTS[""]))
    (launch,) = launched
    assert launch.name.startswith(f"{op}_")
    getattr(kernels, op)(*arguments(op, (0, *shape[1:]), geometry, torch.float32, POOL_LAYOUTS[""]))
    assert len(launched) == 1
