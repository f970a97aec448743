"""The CUDA C++ kernels of a whole perceptron, run by g++ and held against PyTorch's own error."""

import pytest
import torch
from cases import pack_bits
from torch.utils._pytree import tree_leaves

from . import shim
from .cuda_perceptron import MATHS, OnShim
from .perceptrons import (
    CHAINS,
    Operators,
    assert_as_good,
    assert_gradients_right,
    assert_sweeps_right,
    chain_of,
    exact,
    gradients,
    nearest,
    net,
)
from .toolchain import needs_shim

NETWORKS = {
    "one layer": ((16, 5), 70),
    "narrow": ((4, 3, 2), 1),
    "odd": ((7, 5, 3, 2), 17),
    "even": ((64, 64, 10), 33),
    "paper": ((118, 512, 128, 32, 1), 40),
    "widest": ((130, 512, 3), 34),
    "deepest": ((25, 18, 33, 19, 16, 27, 12, 20, 40, 36, 24, 19, 130, 23, 18, 31, 12), 33),
}
"""(widths, rows): tiles of rows and of columns that are not whole, rows of every alignment, the most that is served."""

pytestmark = needs_shim
by_math = pytest.mark.parametrize("math", MATHS)
by_network = pytest.mark.parametrize("network", NETWORKS)


def on_shim(math: str, **options) -> Operators:
    kernels = OnShim(math, **options)
    return Operators(kernels.mlp_attribute, kernels.mlp_attribute_backward, nearest if math == "tf32" else exact)


@by_network
@by_math
def test_the_sweeps_are_within_twice_the_error_of_pytorch(network, math):
    assert_sweeps_right(on_shim(math), net(*NETWORKS[network], MATHS[math]))


@pytest.mark.parametrize("chains", CHAINS)
@by_network
@by_math
def test_gradients_are_within_twice_the_error_of_pytorch(network, math, chains):
    assert_gradients_right(on_shim(math), net(*NETWORKS[network], MATHS[math]), chains)


@pytest.mark.parametrize(("math", "rows"), [("bf16", 16), ("bf16", 64), ("tf32", 16), ("fp32", 64)])
def test_every_tile_of_rows(math, rows):
    ops, args = on_shim(math, rows=rows), net((37, 130, 33, 2), 131, MATHS[math])
    assert_sweeps_right(ops, args)
    assert_gradients_right(ops, args, "both")


@pytest.mark.parametrize("environment", shim.ORDERS[1:], ids=str)
def test_the_turns_of_threads_and_copies_change_nothing(environment):
    args = net((37, 70, 33, 2), 70, torch.bfloat16)
    chain = chain_of("both", args)
    first, second = (on_shim("bf16", environment=e) for e in ({}, environment))
    swept = first.swept(args)
    for got, want in zip(tree_leaves(second.swept(args)), tree_leaves(swept), strict=True):
        assert torch.equal(got, want)
    found, wanted = (ops.backward(chain, args, *swept) for ops in (second, first))
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("math", ["bf16", "tf32", "fp32"])
def test_nothing_is_read_or_written_out_of_bounds(math):
    ops = on_shim(math, mode="sanitized")
    for widths, rows in (((7, 5, 3, 2), 17), ((118, 150, 36, 1), 40)):
        args = net(widths, rows, MATHS[math])
        assert_sweeps_right(ops, args)
        assert_gradients_right(ops, args, "both")


@pytest.mark.parametrize("environment", [shim.ORDERS[0], shim.ORDERS[-1]], ids=["late", "early"])
def test_no_two_threads_race(environment):
    ops, args = on_shim("bf16", rows=16, mode="threads", environment=environment), net((7, 40, 2), 17, torch.bfloat16)
    assert_sweeps_right(ops, args)
    assert_gradients_right(ops, args, "both")


@pytest.mark.parametrize("part_rows", [32, 64, 192])
def test_the_parts_of_a_batch_add_up(part_rows):
    assert_gradients_right(on_shim("bf16", part_rows=part_rows), net((20, 33, 2), 150, torch.bfloat16), "both")


@pytest.mark.parametrize("present", ["a", "s", "ac", "as"])
def test_the_own_chain_starts_where_it_is_told(present):
    ops, args = on_shim("bf16"), net((20, 33, 1), 70, torch.bfloat16)
    x, a, s, c, _ = chain_of("own", args)
    chain = (x, *(t if name in present else None for name, t in (("a", a), ("s", s), ("c", c))), None)
    swept = ops.swept(args)
    plain, truth = (gradients(chain, args, *swept, dtype, exact) for dtype in (torch.bfloat16, torch.float64))
    for k, (got, p, t) in enumerate(zip(ops.backward(chain, args, *swept), plain, truth, strict=True)):
        assert_as_good(got, p, t, f"result {k}")


@pytest.mark.parametrize("keep", [([], []), ([1], [0]), ([2], [1, 2])], ids=str)
def test_what_is_kept_changes_nothing_else(keep):
    ops, args = on_shim("bf16"), net((37, 70, 33, 1), 70, torch.bfloat16)
    y, a, bits, h, g = ops.mlp_attribute(*args)
    y2, a2, bits2, h2, g2 = ops.mlp_attribute(*args[:4], *keep)
    for got, want in zip([y2, a2, *bits2], [y, a, *bits], strict=True):
        assert torch.equal(got, want)
    assert all(torch.equal(got, h[k - 1]) for got, k in zip(h2, keep[0], strict=True))
    assert all(torch.equal(got, g[k]) for got, k in zip(g2, keep[1], strict=True))


@pytest.mark.parametrize("chains", CHAINS)
@pytest.mark.parametrize("trained", [[], [1], ["last"], [1, "last"]], ids=str)
@pytest.mark.parametrize("widths", [(20, 33, 16, 5), (20, 33, 8)], ids=["three", "two"])
def test_layers_that_are_not_trained_change_no_other_result(widths, trained, chains):
    ops, args = on_shim("bf16"), net(widths, 70, torch.bfloat16)
    trained = [len(widths) - 1 if k == "last" else k for k in trained]
    swept, chain = ops.swept(args), chain_of(chains, args)
    *everything, v_end, delta_end = ops.backward(chain, args, *swept)
    *few, same_v, same_delta = ops.backward(chain, args, *swept, trained)
    assert all(torch.equal(got, everything[k - 1]) for k, got in zip(trained, few, strict=True))
    assert torch.equal(v_end, same_v)
    assert torch.equal(delta_end, same_delta)
    *alone, no_v, no_delta = ops.backward(chain, args, *swept, trained, ends=False)
    assert all(torch.equal(got, everything[k - 1]) for k, got in zip(trained, alone, strict=True))
    assert no_v.shape == no_delta.shape == (0,)


@by_math
def test_strides_change_nothing(math):
    ops, args = on_shim(math), net((37, 70, 33, 1), 70, MATHS[math])
    x, u = torch.randn(70, 100).to(args.x.dtype), torch.randn(70, 3).to(args.x.dtype)
    x[:, 3:40], u[:, 1:2] = args.x, args.u
    strided = args._replace(x=x[:, 3:40], u=u[:, 1:2])
    for got, want in zip(tree_leaves(ops.swept(strided)), tree_leaves(ops.swept(args)), strict=True):
        assert torch.equal(got, want)
    chain, swept = chain_of("both", args), ops.swept(args)
    found, wanted = ops.backward((strided.x, *chain[1:]), strided, *swept), ops.backward(chain, args, *swept)
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@by_math
def test_a_row_of_nan_leaves_all_other_rows_alone(math):
    ops, args = on_shim(math), net((37, 70, 33, 1), 70, MATHS[math])
    args = args._replace(slopes=[0.0] * len(args.slopes))
    y, a, *_ = ops.mlp_attribute(*args)
    args.x[3] = torch.nan
    y2, a2, bits, *_ = ops.mlp_attribute(*args)
    others = torch.arange(len(y)) != 3
    assert torch.equal(y2[others], y[others])
    assert torch.equal(a2[others], a[others])
    assert y2[3].isnan().all()
    assert a2[3].isnan().all()
    assert torch.equal(bits[0][3], pack_bits(torch.ones(1, 70, dtype=torch.bool))[0])


CHOICE = """
#define XATTR_LAUNCH(...)  // nothing is launched
#include "cuda/mlp_attribute_backward.cuh"
using namespace xattr::cuda;
void run(const cuemu::Arguments& a) {
  Network<__half> net;
  const int64_t* widths = a.pointer<int64_t>(0);
  net.layers = static_cast<int>(a.all[0].word / sizeof(int64_t)) - 1;
  int tiles = 0;
  for (int l = 0; l <= net.layers; ++l) net.widths[l] = static_cast<int>(widths[l]);
  for (int l = 1; l <= net.layers; ++l) tiles += tiles_of(net.widths[l], net.widths[l - 1]);
  const Device device{static_cast<int>(a.integer(1)), static_cast<int>(a.integer(2))};
  const Parts parts = parts_of(device, tiles, a.integer(3));
  const int forward = choose_rows(device, net, a.integer(3));
  const int backward = choose_backward_rows(device, net, a.integer(3));
  const int64_t found[] = {forward, backward, parts.rows, parts.count};
  std::copy(found, found + 4, a.pointer<int64_t>(4));
}
"""


@pytest.mark.parametrize(
    ("capability", "processors", "batch", "expected"),
    [
        (80, 108, 100_000, (64, 32, 8384, 12)),
        (80, 108, 2048, (16, 16, 192, 11)),
        (80, 108, 100, (16, 16, 128, 1)),
        (86, 84, 100_000, (32, 16, 10048, 10)),
        (89, 128, 1, (16, 16, 64, 1)),
        (100, 148, 8192, (32, 32, 512, 16)),
        (100, 148, 2**33, (64, 32, 505290304, 17)),
    ],
)
def test_a_batch_is_shared_by_the_table_of_devices(capability, processors, batch, expected):
    """118-512-128-32-1 has 18 tiles of gradients, of which each multiprocessor is to have two.
    The rows: of the forward pass, and of the backward pass, where a multiprocessor has two blocks.
    """
    found = torch.zeros(4, dtype=torch.int64)
    shim.build(CHOICE).run(torch.tensor([118, 512, 128, 32, 1]), capability, processors, batch, found)
    assert tuple(found.tolist()) == expected


def test_a_block_of_the_forward_pass_may_have_all_shared_memory():
    """512-512-512-1 in fp32 fills what an A100 gives a block, to the byte."""
    found = torch.zeros(4, dtype=torch.int64)
    shim.build(CHOICE.replace("__half", "float")).run(torch.tensor([512, 512, 512, 1]), 80, 108, 100_000, found)
    assert tuple(found.tolist()) == (32, 16, 25024, 4)
