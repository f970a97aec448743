"""The kernels of a whole perceptron in Triton: compiled, executed, and held against PyTorch's own error."""

import pytest
import torch
from cases import pack_bits
from torch.utils._pytree import tree_leaves

triton = pytest.importorskip("triton", reason="Triton is not installed")

from xattr_cuda.kernels.triton import configs, perceptron  # noqa: E402 - needs Triton

from gpuless import perceptrons  # noqa: E402
from gpuless.perceptrons import (  # noqa: E402
    CHAINS,
    Operators,
    assert_as_good,
    assert_gradients_right,
    assert_sweeps_right,
    chain_of,
    cut,
    exact,
    gradients,
)
from xattr_cuda.kernels import triton as kernels  # noqa: E402

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By how their values are multiplied."""
NETWORKS = {
    "one layer": ((16, 5), 70),
    "narrow": ((4, 3, 2), 1),
    "ragged": ((37, 70, 33, 1), 131),
    "wide": ((118, perceptron.WIDEST, 128, 32, 1), 65),
    "deep": ((5, 8, 33, 9, 16, 7, 12, 20, 2), 33),
    "too wide": ((20, perceptron.WIDEST + 1, 40, 3), 21),
    "too deep": ((*(9,) * perceptron.DEEPEST, 5, 2), 21),
}
"""(widths, rows): tiles of rows and of columns that are not whole, the most layers and columns that one launch serves,
and networks that go layer by layer."""
CONFIGURATIONS = {
    "-".join((one.name, f"{one.num_warps}", f"{one.num_stages}", dtype)): (dtype, one)
    for arch in configs.ARCHITECTURES
    for dtype in DTYPES
    for one in perceptron.tiles(DTYPES[dtype], "tf32" if dtype == "tf32" else "ieee", arch)
}

pytestmark = pytest.mark.usefixtures("emulated", "poisoned")
by_dtype = pytest.mark.parametrize("dtype", DTYPES, indirect=True)
by_network = pytest.mark.parametrize("network", NETWORKS)
by_chains = pytest.mark.parametrize("chains", CHAINS)


@pytest.fixture
def dtype(request):
    """A dtype of DTYPES, and fp32 multiplied as it says."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if request.param == "tf32" else "highest")
    yield DTYPES[request.param]
    torch.set_float32_matmul_precision(before)


def ops():
    """The kernels; what of fp32 they multiply as TF32 is cut to it."""
    return Operators(kernels.mlp_attribute, kernels.mlp_attribute_backward, cut if multiplied_as_tf32() else exact)


def multiplied_as_tf32():
    return torch.get_float32_matmul_precision() != "highest"


def net(network, dtype):
    return perceptrons.net(*(NETWORKS[network] if isinstance(network, str) else network), dtype)


@by_network
@by_dtype
def test_the_sweeps_are_within_twice_the_error_of_pytorch(network, dtype):
    assert_sweeps_right(ops(), net(network, dtype))


@by_network
@by_dtype
def test_gradients_are_within_twice_the_error_of_pytorch(network, dtype):
    assert_gradients_right(ops(), net(network, dtype), "both")


@pytest.mark.parametrize("network", ["one layer", "ragged", "too wide"])
@by_dtype
@pytest.mark.parametrize("chains", ["own", "task"])
def test_gradients_of_one_chain_are_within_twice_the_error_of_pytorch(network, dtype, chains):
    assert_gradients_right(ops(), net(network, dtype), chains)


@pytest.mark.parametrize(("dtype", "config"), CONFIGURATIONS.values(), ids=CONFIGURATIONS, indirect=["dtype"])
def test_every_configuration(dtype, config, monkeypatch):
    monkeypatch.setattr(perceptron, "tiles", lambda *_: (config,))
    perceptron.sizes.cache_clear()
    try:
        args = net(((37, 70, 5), 70), dtype)
        assert_sweeps_right(ops(), args)
        assert_gradients_right(ops(), args, "both")
    finally:
        perceptron.sizes.cache_clear()


@by_dtype
def test_a_batch_beyond_one_launch_takes_several_and_adds_up_their_sums(dtype, monkeypatch, emulated):
    monkeypatch.setattr(perceptron, "LAUNCHED", 128)
    args = net(((20, 33, 2), 300), dtype)
    assert_sweeps_right(ops(), args)
    assert_gradients_right(ops(), args, "both")
    grids = [launch.grid[0] for launch in emulated.launches if launch.name == "mlp_attribute_backward_kernel"]
    assert len(grids) == 3


@pytest.mark.parametrize("present", ["a", "s", "ac", "as"])
def test_the_own_chain_starts_where_it_is_told(present):
    args = net(((20, 33, 1), 70), torch.bfloat16)
    x, a, s, c, _ = chain_of("own", args)
    chain = (x, *(t if name in present else None for name, t in (("a", a), ("s", s), ("c", c))), None)
    swept_values = ops().swept(args)
    plain, truth = (gradients(chain, args, *swept_values, dtype, exact) for dtype in (torch.bfloat16, torch.float64))
    for k, (got, p, t) in enumerate(zip(ops().backward(chain, args, *swept_values), plain, truth, strict=True)):
        assert_as_good(got, p, t, f"result {k}")


def test_four_launches_and_the_same_bits_every_time(emulated):
    args = net(((37, 70, 33, 1), 300), torch.bfloat16)
    chain = chain_of("both", args)
    first, second = (ops().backward(chain, args, *ops().swept(args)) for _ in range(2))
    names = ["mlp_attribute_kernel", "mlp_attribute_backward_kernel", "weight_gradients_kernel", "add_partials_kernel"]
    assert [launch.name for launch in emulated.launches] == 2 * names
    assert all(torch.equal(f, s) for f, s in zip(first, second, strict=True))


@pytest.mark.parametrize("keep", [([], []), ([1], [0]), ([2], [1, 2])], ids=str)
def test_what_is_kept_changes_nothing_else(keep):
    args = net("ragged", torch.bfloat16)
    y, a, bits, h, g = kernels.mlp_attribute(*args)
    y2, a2, bits2, h2, g2 = kernels.mlp_attribute(*args[:4], *keep)
    for got, want in zip([y2, a2, *bits2], [y, a, *bits], strict=True):
        assert torch.equal(got, want)
    assert all(torch.equal(got, h[k - 1]) for got, k in zip(h2, keep[0], strict=True))
    assert all(torch.equal(got, g[k]) for got, k in zip(g2, keep[1], strict=True))


def test_a_forward_sweep_alone_is_left_to_the_reference():
    args = net("ragged", torch.bfloat16)
    assert kernels.mlp_attribute(*args[:3], None, [1], []) is NotImplemented


@by_chains
@pytest.mark.parametrize("trained", [[], [1], [3], [1, 3]], ids=str)
def test_layers_that_are_not_trained_change_no_other_result(trained, chains):
    args = net(((20, 33, 16, 5), 70), torch.bfloat16)
    swept_values, chain = ops().swept(args), chain_of(chains, args)
    *everything, v_end, delta_end = ops().backward(chain, args, *swept_values)
    *few, same_v, same_delta = ops().backward(chain, args, *swept_values, trained)
    assert all(torch.equal(got, everything[k - 1]) for k, got in zip(trained, few, strict=True))
    assert torch.equal(v_end, same_v)
    assert torch.equal(delta_end, same_delta)
    *alone, no_v, no_delta = ops().backward(chain, args, *swept_values, trained, ends=False)
    assert all(torch.equal(got, everything[k - 1]) for k, got in zip(trained, alone, strict=True))
    assert no_v.shape == no_delta.shape == (0,)


def test_strides_change_nothing():
    args = net("ragged", torch.bfloat16)
    chain = chain_of("both", args)
    chain = (*chain[:2], chain[2][:1].expand(len(args.x), 1), *chain[3:])
    bits, g, h = ops().swept(args)
    wide = torch.randn(len(args.x), 100).to(torch.bfloat16)
    wide[:, : args.x.shape[1]] = args.x
    strided = args._replace(
        x=wide[:, : args.x.shape[1]], weights=[w.T.contiguous().T for w in args.weights], u=args.u.T.contiguous().T
    )
    for got, want in zip(tree_leaves(ops().swept(strided)), tree_leaves((bits, g, h)), strict=True):
        assert torch.equal(got, want)
    found = ops().backward(
        (strided.x, chain[1].T.contiguous().T, chain[2].contiguous(), chain[3], chain[4]),
        *(strided, [mask.T.contiguous().T for mask in bits], [t.T.contiguous().T for t in g], h),
    )
    assert all(torch.equal(f, w) for f, w in zip(found, ops().backward(chain, args, bits, g, h), strict=True))


def test_a_row_of_nan_leaves_all_other_rows_alone():
    args = net("ragged", torch.bfloat16)
    args = args._replace(slopes=[0.0] * len(args.slopes))
    y, a, *_ = kernels.mlp_attribute(*args)
    args.x[3] = torch.nan
    y2, a2, bits, *_ = kernels.mlp_attribute(*args)
    others = torch.arange(len(y)) != 3
    assert torch.equal(y2[others], y[others])
    assert torch.equal(a2[others], a[others])
    assert y2[3].isnan().all()
    assert a2[3].isnan().all()
    assert torch.equal(bits[0][3], pack_bits(torch.ones(1, 70, dtype=torch.bool))[0])


@by_network
def test_no_rows_launch_nothing_and_have_gradients_of_zero(network, emulated):
    args = net((NETWORKS[network][0], 0), torch.bfloat16)
    y, a, *_ = kernels.mlp_attribute(*args)
    assert y.shape == args.u.shape
    assert a.shape == args.x.shape
    *found, v_end, delta_end = ops().backward(chain_of("both", args), args, *ops().swept(args))
    assert all(torch.equal(got, torch.zeros_like(w)) for got, w in zip(found, args.weights, strict=True))
    assert v_end.shape == args.u.shape
    assert delta_end.shape == args.x.shape
    assert not emulated.launches
