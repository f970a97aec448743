"""The kernels of a whole perceptron in Triton: compiled, executed, and held against PyTorch's own error."""

import itertools
from importlib import import_module
from typing import NamedTuple

import pytest
import torch
from cases import pack_bits, unpack_bits
from helpers import assert_within
from torch import Tensor
from torch.utils._pytree import tree_leaves

triton = pytest.importorskip("triton", reason="Triton is not installed")

from xattr_cuda.kernels.reference.mlp_attribute_backward import start_of_tangents  # noqa: E402
from xattr_cuda.kernels.triton import configs, perceptron  # noqa: E402 - needs Triton

from xattr_cuda.kernels import triton as kernels  # noqa: E402

forward_launcher = import_module(kernels.mlp_attribute.__module__)

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
    "-".join((one.config.name, f"{one.config.num_warps}", f"{one.config.num_stages}", dtype)): (dtype, one.config)
    for arch in configs.ARCHITECTURES
    for dtype in DTYPES
    for one in (perceptron.sizes((64, 1), DTYPES[dtype], "tf32" if dtype == "tf32" else "ieee", arch),)
}
CHAINS = ("own", "task", "both")
TF32 = 2.0**-10  # the largest relative error of a number cut to TF32

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


def cuts(dtype):
    """Whether products cut their factors."""
    return dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"


class Net(NamedTuple):
    """Arguments of the forward operator that keep everything."""

    x: Tensor
    weights: list[Tensor]
    slopes: list[float]
    u: Tensor
    keep_h: list[int]
    keep_g: list[int]

    def to(self, dtype):
        return self._replace(x=self.x.to(dtype), weights=[w.to(dtype) for w in self.weights], u=self.u.to(dtype))


def net(network, dtype):
    widths, rows = NETWORKS[network] if isinstance(network, str) else network
    weights = [torch.randn(n, k) * (2 / k) ** 0.5 for k, n in itertools.pairwise(widths)]
    slopes = [(0.0, 0.25)[i % 2] for i in range(len(weights) - 1)]
    keep = list(range(len(weights)))
    found = Net(torch.randn(rows, widths[0]), weights, slopes, torch.randn(rows, widths[-1]), keep[1:], keep)
    return found.to(dtype)


def factor(t):
    """What a product takes of a value."""
    return t.view(torch.int32).bitwise_and(-(2**13)).view(torch.float32) if cuts(t.dtype) else t


def product(left, right):
    return factor(left) @ factor(right)


def selected(t, bits, slope):
    return torch.where(unpack_bits(bits, t.shape[1]), t, slope * t if slope else torch.zeros_like(t))


def up(start, net, bits):
    """The values of all layers from `start` [B, N_0] on, by plain PyTorch operations with these masks."""
    found = [start]
    for k, weight in enumerate(net.weights):
        t = product(found[-1], weight.T)
        found.append(selected(t, bits[k], net.slopes[k]) if k < len(bits) else t)
    return found


def down(start, net, bits):
    """The cotangents of all layers, that of the output being `start` [B, N_L]."""
    found = [start]
    for k in reversed(range(len(net.weights))):
        t = product(found[0], net.weights[k])
        found.insert(0, selected(t, bits[k - 1], net.slopes[k - 1]) if k else t)
    return found


def gradients(chain, net, bits, g, h, dtype):
    """All results of the backward operator in a dtype; g and h as it takes them."""
    net, (x, a, s, c, delta) = net.to(dtype), (t if t is None else t.to(dtype) for t in chain)
    found, v_end, delta_end = [0] * len(net.weights), torch.zeros(0, dtype=dtype), torch.zeros(0, dtype=dtype)
    if delta is not None:
        delta_end, *deltas = down(delta, net, bits)
        found = [product(d.T, t.to(dtype)) for d, t in zip(deltas, h, strict=True)]
    if x is not None:
        *tangents, v_end = up(start_of_tangents(x, a, s, c), net, bits)
        found = [w + product(t.to(dtype).T, v) for w, t, v in zip(found, g, tangents, strict=True)]
    return [*found, v_end, delta_end]


def assert_as_good(got, plain, truth, what):
    """Within twice the error of PyTorch on the same factors, and a unit in the last place of these.

    The largest error of exact sums through many layers is a matter of luck; so of these it is the root of the mean
    square, over which luck evens out, and the largest may be twice as far again.
    """
    if not got.numel():
        assert got.shape == truth.shape, what
        return
    error, largest = plain.double() - truth, float(truth.abs().max())
    exact = got.dtype == torch.float32 and not cuts(got.dtype)
    if exact:
        spread = (got.double() - truth).norm()
        allowed = 2 * error.norm() + torch.finfo(got.dtype).eps * truth.norm()
        assert spread <= allowed, f"{what}: error {spread:.3g}, allowed are {allowed:.3g}"
    unit = TF32 * largest / 2 if cuts(got.dtype) else 0.0
    assert_within(got, truth, (2 if exact else 1) * float(error.abs().max()) + unit, what)


def chain_of(chains, net):
    """x, a, s, c and delta."""
    rows, dtype = len(net.x), net.x.dtype
    own = (net.x, torch.randn_like(net.x), torch.randn(rows, 1).to(dtype), torch.randn(rows, 1).to(dtype))
    return (*(own if chains != "task" else [None] * 4), torch.randn_like(net.u) if chains != "own" else None)


def backward(chain, net, bits, g, h, trained=None, ends=True):
    """The operator, given what it takes of the cotangents g_1 .. g_L and the inputs h_0 .. h_{L-1}."""
    trained = list(range(1, len(net.weights) + 1)) if trained is None else trained
    own, task = chain[0] is not None, chain[-1] is not None
    g = [g[k - 1] for k in trained] if own else []
    h = [h[k - 1] for k in trained] if task else []
    found, v_end, delta_end = kernels.mlp_attribute_backward(
        *chain, net.weights, net.slopes, bits, g, h, trained, own and ends, task and ends
    )
    return [*found, v_end, delta_end]


def swept(net):
    """(masks, g_1 .. g_L, h_0 .. h_{L-1}) by the kernels."""
    _, _, bits, h, g = kernels.mlp_attribute(*net)
    return bits, [*g[1:], net.u], [net.x, *h]


def assert_sweeps_right(args):
    y, a, bits, h, g = kernels.mlp_attribute(*args)
    exact = args.to(torch.float64)
    plain, truth = (up(one.x, one, bits) for one in (args, exact))
    for k, (got, p, t) in enumerate(zip([*h, y], plain[1:], truth[1:], strict=True)):
        assert_as_good(got, p, t, f"h_{k + 1}")
    for k, mask in enumerate(bits):
        assert torch.equal(mask, pack_bits(h[k] > 0)), f"the mask of h_{k + 1} is not that of the value beside it"
    plain, truth = (down(one.u, one, bits) for one in (args, exact))
    for k, (got, p, t) in enumerate(zip(g, plain[:-1], truth[:-1], strict=True)):
        assert_as_good(got, p, t, f"g_{k}")
    assert_as_good(a, args.x * plain[0], exact.x * truth[0], "attribution")


def assert_gradients_right(args, chains):
    swept_values, chain = swept(args), chain_of(chains, args)
    plain, truth = (gradients(chain, args, *swept_values, dtype) for dtype in (args.x.dtype, torch.float64))
    for k, (got, p, t) in enumerate(zip(backward(chain, args, *swept_values), plain, truth, strict=True)):
        assert_as_good(got, p, t, f"result {k}")


@by_network
@by_dtype
def test_the_sweeps_are_within_twice_the_error_of_pytorch(network, dtype):
    assert_sweeps_right(net(network, dtype))


@by_network
@by_dtype
def test_gradients_are_within_twice_the_error_of_pytorch(network, dtype):
    assert_gradients_right(net(network, dtype), "both")


@pytest.mark.parametrize("network", ["one layer", "ragged", "too wide"])
@by_dtype
@pytest.mark.parametrize("chains", ["own", "task"])
def test_gradients_of_one_chain_are_within_twice_the_error_of_pytorch(network, dtype, chains):
    assert_gradients_right(net(network, dtype), chains)


@pytest.mark.parametrize(("dtype", "config"), CONFIGURATIONS.values(), ids=CONFIGURATIONS, indirect=["dtype"])
def test_every_configuration(dtype, config, monkeypatch):
    monkeypatch.setitem(configs._TABLE["perceptron"], "80", (config,) * 3)
    perceptron.sizes.cache_clear()
    try:
        args = net(((37, 70, 33, 2), 70), dtype)
        assert_sweeps_right(args)
        assert_gradients_right(args, "both")
    finally:
        perceptron.sizes.cache_clear()


@by_dtype
def test_a_batch_beyond_one_launch_takes_several_and_adds_up_their_sums(dtype, monkeypatch, emulated):
    monkeypatch.setattr(perceptron, "LONGEST_SPAN", 64)
    monkeypatch.setattr(forward_launcher, "LAUNCHED", 128)
    monkeypatch.setitem(emulated.utils.properties, "multiprocessor_count", 2)
    args = net(((20, 33, 2), 300), dtype)
    assert_sweeps_right(args)
    assert_gradients_right(args, "both")
    grids = [launch.grid[0] for launch in emulated.launches if launch.name == "mlp_attribute_backward_kernel"]
    assert grids == [2, 2, 1]


@pytest.mark.parametrize("present", ["a", "s", "ac", "as"])
def test_the_own_chain_starts_where_it_is_told(present):
    args = net(((20, 33, 1), 70), torch.bfloat16)
    x, a, s, c, _ = chain_of("own", args)
    chain = (x, *(t if name in present else None for name, t in (("a", a), ("s", s), ("c", c))), None)
    swept_values = swept(args)
    plain, truth = (gradients(chain, args, *swept_values, dtype) for dtype in (torch.bfloat16, torch.float64))
    for k, (got, p, t) in enumerate(zip(backward(chain, args, *swept_values), plain, truth, strict=True)):
        assert_as_good(got, p, t, f"result {k}")


def test_three_launches_and_the_same_bits_every_time(emulated):
    args = net("ragged", torch.bfloat16)
    chain = chain_of("both", args)
    first, second = (backward(chain, args, *swept(args)) for _ in range(2))
    names = ["mlp_attribute_kernel", "mlp_attribute_backward_kernel", "add_partials_kernel"]
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


@by_chains
@pytest.mark.parametrize("trained", [[], [1], [3], [1, 3]], ids=str)
def test_layers_that_are_not_trained_change_no_other_result(trained, chains):
    args = net(((20, 33, 16, 5), 70), torch.bfloat16)
    swept_values, chain = swept(args), chain_of(chains, args)
    *everything, v_end, delta_end = backward(chain, args, *swept_values)
    *few, same_v, same_delta = backward(chain, args, *swept_values, trained)
    assert all(torch.equal(got, everything[k - 1]) for k, got in zip(trained, few, strict=True))
    assert torch.equal(v_end, same_v)
    assert torch.equal(delta_end, same_delta)
    *alone, no_v, no_delta = backward(chain, args, *swept_values, trained, ends=False)
    assert all(torch.equal(got, everything[k - 1]) for k, got in zip(trained, alone, strict=True))
    assert no_v.shape == no_delta.shape == (0,)


def test_strides_change_nothing():
    args = net("ragged", torch.bfloat16)
    chain = chain_of("both", args)
    chain = (*chain[:2], chain[2][:1].expand(len(args.x), 1), *chain[3:])
    bits, g, h = swept(args)
    wide = torch.randn(len(args.x), 100).to(torch.bfloat16)
    wide[:, : args.x.shape[1]] = args.x
    strided = args._replace(
        x=wide[:, : args.x.shape[1]], weights=[w.T.contiguous().T for w in args.weights], u=args.u.T.contiguous().T
    )
    for got, want in zip(tree_leaves(swept(strided)), tree_leaves((bits, g, h)), strict=True):
        assert torch.equal(got, want)
    found = backward(
        (strided.x, chain[1].T.contiguous().T, chain[2].contiguous(), chain[3], chain[4]),
        *(strided, [mask.T.contiguous().T for mask in bits], [t.T.contiguous().T for t in g], h),
    )
    assert all(torch.equal(f, w) for f, w in zip(found, backward(chain, args, bits, g, h), strict=True))


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
    *found, v_end, delta_end = backward(chain_of("both", args), args, *swept(args))
    assert all(torch.equal(got, torch.zeros_like(w)) for got, w in zip(found, args.weights, strict=True))
    assert v_end.shape == args.u.shape
    assert delta_end.shape == args.x.shape
    assert not emulated.launches
