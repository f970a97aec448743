"""The operators of a whole perceptron: values, derivatives, registration and misuse, on every back end."""

import itertools
import re
from typing import NamedTuple

import pytest
import torch
from cases import DTYPES, pack_bits, unpack_bits
from helpers import assert_within_twice
from torch import Tensor
from torch.autograd import gradcheck

import xattr_cuda as xa
from xattr_cuda.kernels import reference
from xattr_cuda.ops.autograd import DERIVATIVES

OPS = ("mlp_attribute", "mlp_attribute_backward")
SHAPES = (
    ((118, 512, 128, 32, 1), 100),
    ((37, 300, 200, 100, 1), 257),
    ((64, 64, 64, 10), 601),
    ((40, 24, 17), 33),
    ((16, 16), 32),
    ((20, 33, 5), 31),
    ((8, 8, 1), 5),
    ((700, 900, 3), 40),
    ((5, 40, 3), 64),
    ((4, 3, 2), 1),
    ((30, 20, 1), 0),
)
"""(widths, rows): several tiles a thread and one, narrow last layers and wide ones, ragged sizes; and what runs layer
by layer: too few rows, too narrow, too large, empty."""

by_shape = pytest.mark.parametrize(("widths", "rows"), SHAPES, ids=str)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


class Net(NamedTuple):
    x: Tensor
    weights: list[Tensor]
    slopes: list[float]
    u: Tensor

    def to(self, dtype: torch.dtype) -> "Net":
        return Net(self.x.to(dtype), [w.to(dtype) for w in self.weights], self.slopes, self.u.to(dtype))

    @property
    def everything(self) -> tuple[list[int], list[int]]:
        """keep_h and keep_g for all that there is."""
        return list(range(1, len(self.weights))), list(range(len(self.weights)))


def net(widths, rows, dtype=torch.float32) -> Net:
    weights = [torch.randn(n, k) * (2 / max(k, 1)) ** 0.5 for k, n in itertools.pairwise(widths)]
    slopes = [(0.0, 0.25)[i % 2] for i in range(len(weights) - 1)]
    return Net(torch.randn(rows, widths[0]), weights, slopes, torch.randn(rows, widths[-1])).to(dtype)


def plain(net: Net, masks: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """(y, attribution, h, g) by plain PyTorch operations for given activation patterns: those of the operator."""

    def activate(t, i):
        return torch.where(masks[i], t, torch.zeros_like(t) if net.slopes[i] == 0 else net.slopes[i] * t)

    h = [net.x]
    for i, weight in enumerate(net.weights):
        z = h[-1] @ weight.T
        h.append(activate(z, i) if i < len(masks) else z)
    g = [net.u]
    for i in reversed(range(len(net.weights))):
        t = g[0] @ net.weights[i]
        g.insert(0, activate(t, i - 1) if i else t)
    return h[-1], net.x * g[0], h, g


def swept(net: Net) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """(bits, g, h) of all layers as the backward pass takes them."""
    _, _, bits, h, g = xa.ops.mlp_attribute(*net, *net.everything)
    return bits, [*g[1:], net.u], [net.x, *h]


def started(v: Tensor | None) -> tuple[Tensor | None, ...]:
    """x, a, s and c for tangents that start at v."""
    return (v, None if v is None else torch.ones_like(v), None, None)


def test_the_operators_are_registered_as_all_are():
    for op in OPS:
        assert op in xa.ops.SCHEMAS
        assert op in DERIVATIVES
        assert op in xa.ops.__all__
        assert callable(getattr(reference, op))


@by_shape
@by_dtype
def test_the_sweeps_are_within_twice_the_error_of_pytorch(widths, rows, dtype, backend):
    args = net(widths, rows, dtype)
    y, a, bits, h, g = xa.ops.mlp_attribute(*args, *args.everything)
    masks = [unpack_bits(b, n) for b, n in zip(bits, widths[1:], strict=False)]
    eager, truth = plain(args, masks), plain(args.to(torch.float64), masks)
    for name, got, want, exact in (("y", y, eager[0], truth[0]), ("attribution", a, eager[1], truth[1])):
        assert_within_twice(got, want, exact, name)
    for k, (got, want, exact) in enumerate(zip(h, eager[2][1:], truth[2][1:], strict=False)):
        assert_within_twice(got, want, exact, f"h_{k + 1}")
        assert torch.equal(bits[k], pack_bits(got > 0)), "a mask is not that of the activation beside it"
    for k, (got, want, exact) in enumerate(zip(g, eager[3], truth[3], strict=False)):
        assert_within_twice(got, want, exact, f"g_{k}")


@by_shape
@by_dtype
@pytest.mark.parametrize("chains", ["own", "task", "both"])
def test_gradients_are_within_twice_the_error_of_pytorch(widths, rows, dtype, chains, backend):
    args = net(widths, rows, dtype)
    bits, g, h = swept(args)
    masks = [unpack_bits(b, n) for b, n in zip(bits, widths[1:], strict=False)]
    v = torch.randn_like(args.x) if chains != "task" else None
    delta = torch.randn_like(args.u) if chains != "own" else None
    trained = list(range(1, len(widths)))
    own, task = ([], h) if v is None else (g, [] if delta is None else h)
    found, v_end, delta_end = xa.ops.mlp_attribute_backward(
        *started(v), delta, args.weights, args.slopes, bits, own, task, trained, v is not None, delta is not None
    )

    def sums(dtype):
        weights = [w.to(dtype) for w in args.weights]
        zero = [torch.zeros_like(w) for w in weights]
        if v is not None:
            end, _, tangents, _ = plain(Net(v, weights, args.slopes, args.u).to(dtype), masks)
            zero = [d + c.to(dtype).T @ t for d, c, t in zip(zero, g, tangents, strict=False)]
        else:
            end = torch.zeros(0, dtype=dtype)
        start = torch.zeros(0, dtype=dtype)
        if delta is not None:
            _, _, _, deltas = plain(Net(args.x, weights, args.slopes, delta).to(dtype), masks)
            zero = [d + c.T @ t.to(dtype) for d, c, t in zip(zero, deltas[1:], h, strict=False)]
            start = deltas[0]
        return [*zero, end, start]

    for k, (got, want, exact) in enumerate(
        zip([*found, v_end, delta_end], sums(dtype), sums(torch.float64), strict=True)
    ):
        assert_within_twice(got, want, exact, f"result {k}")


@pytest.mark.parametrize("rows", [40, 700])
@pytest.mark.parametrize("present", ["a", "s", "as", "ac", "asc"])
def test_the_own_chain_starts_where_it_is_told(rows, present, backend):
    args = net((64, 96, 48, 1), rows)
    bits, g, _ = swept(args)
    a, s, c = torch.randn_like(args.x), torch.randn(1, 1).expand(rows, 1), torch.randn(rows, 1)
    v = ((c if "c" in present else 1) * a if "a" in present else 0) + (s if "s" in present else 0)
    rest = (None, args.weights, args.slopes, bits, g, [], [1, 2, 3], True)
    given = [t if name in present else None for name, t in (("a", a), ("s", s), ("c", c))]
    got, end, _ = xa.ops.mlp_attribute_backward(args.x, *given, *rest)
    want, want_end, _ = xa.ops.mlp_attribute_backward(*started(v * args.x), *rest)
    for one, other in zip([*got, end], [*want, want_end], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trained", [[], [1], [2, 3], [4], [1, 4]], ids=str)
def test_layers_that_are_not_trained_change_no_other_gradient(trained, backend):
    args = net((118, 512, 128, 32, 1), 100)
    bits, g, h = swept(args)
    v, delta = torch.randn_like(args.x), torch.randn_like(args.u)
    common = (*started(v), delta, args.weights, args.slopes, bits)
    everything, *ends = xa.ops.mlp_attribute_backward(*common, g, h, [1, 2, 3, 4], True, True)
    few, *same_ends = xa.ops.mlp_attribute_backward(
        *common, [g[k - 1] for k in trained], [h[k - 1] for k in trained], trained, True, True
    )
    for k, got in zip(trained, few, strict=True):
        assert torch.equal(got, everything[k - 1])
    assert all(torch.equal(a, b) for a, b in zip(ends, same_ends, strict=True))


@pytest.mark.parametrize("keep", [([], []), ([1, 3], [0]), ([2], [1, 3])], ids=str)
def test_what_is_kept_changes_nothing_else(keep, backend):
    args = net((118, 512, 128, 32, 1), 100)
    y, a, bits, h, g = xa.ops.mlp_attribute(*args, *args.everything)
    y2, a2, bits2, h2, g2 = xa.ops.mlp_attribute(*args, *keep)
    for got, want in zip([y2, a2, *bits2], [y, a, *bits], strict=True):
        assert torch.equal(got, want)
    assert all(torch.equal(got, h[k - 1]) for got, k in zip(h2, keep[0], strict=True))
    assert all(torch.equal(got, g[k]) for got, k in zip(g2, keep[1], strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_results_do_not_depend_on_the_number_of_threads(threads, backend):
    args = net((64, 96, 48, 1), 300)
    before = torch.get_num_threads()

    def run(count):
        torch.set_num_threads(count)
        bits, g, h = swept(args)
        found, _, _ = xa.ops.mlp_attribute_backward(
            *started(args.x), args.u, args.weights, args.slopes, bits, g, h, [1, 2, 3], False, False
        )
        return [*bits, *g, *h, *found]

    try:
        for got, want in zip(run(threads), run(1), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert all(torch.equal(a, b) for a, b in zip(run(threads), run(threads), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("strided", [False, True])
def test_strided_arguments_and_none_is_changed(strided, backend):
    args = net((64, 96, 48, 10), 70)
    if strided:
        args = Net(
            args.x.T.contiguous().T,
            [w.T.contiguous().T for w in args.weights],
            args.slopes,
            args.u[:, :1].expand(70, 10),
        )
    before = [args.x.clone(), args.u.clone(), *(w.clone() for w in args.weights)]
    bits, g, h = swept(args)
    contiguous = Net(args.x.contiguous(), [w.contiguous() for w in args.weights], args.slopes, args.u.contiguous())
    for got, want in zip([*bits, *g, *h], [t for part in swept(contiguous) for t in part], strict=True):
        torch.testing.assert_close(got, want)
    found = xa.ops.mlp_attribute_backward(
        *(*started(args.x), args.u, args.weights, args.slopes, [b.T.contiguous().T for b in bits]),
        *(g, [t.T.contiguous().T for t in h], [1, 2, 3], True, True),
    )
    want = xa.ops.mlp_attribute_backward(
        *started(args.x), args.u, args.weights, args.slopes, bits, g, h, [1, 2, 3], True, True
    )
    torch.testing.assert_close(found, want)
    assert all(torch.equal(a, b) for a, b in zip([args.x, args.u, *args.weights], before, strict=True))


def test_nan_reaches_what_it_reaches_in_pytorch(backend):
    args = net((32, 48, 16, 1), 64)
    args.x[3, 5] = float("nan")
    args.slopes[:] = [0.0, 0.0]
    y, a, *_ = xa.ops.mlp_attribute(*args, [], [])
    h = args.x
    for weight in args.weights[:-1]:
        h = torch.relu(h @ weight.T)
    assert torch.equal(y.isnan(), (h @ args.weights[-1].T).isnan())
    assert a[3].isnan().any()
    assert not a[[0, 1, 2, 4]].isnan().any()


def test_gradcheck(backend):
    """Away from the kinks: no pre-activation changes its sign when an argument moves a little."""
    for _ in range(100):
        args = net((4, 5, 3, 2), 3, torch.float64)
        z1 = args.x @ args.weights[0].T
        z2 = torch.relu(z1) @ args.weights[1].T
        if min(z1.abs().min(), z2.abs().min()) > 1e-3:
            break

    def of(x, u, *weights):
        return xa.ops.mlp_attribute(x, list(weights), [0.0, 0.5], u, [], [])[:2]

    assert gradcheck(of, [t.requires_grad_() for t in (args.x, args.u, *args.weights)])


@by_shape
@by_dtype
def test_a_forward_sweep_alone_has_the_same_bits(widths, rows, dtype, backend):
    args = net(widths, rows, dtype)
    keep_h, _ = args.everything
    y, _, bits, h, _ = xa.ops.mlp_attribute(*args, keep_h, [])
    y2, none, bits2, h2, g2 = xa.ops.mlp_attribute(*args[:3], None, keep_h, [])
    for got, want in zip([y2, *bits2, *h2], [y, *bits, *h], strict=True):
        if backend in ("reference", "cpu"):
            assert torch.equal(got, want)
        else:  # where no kernel serves it, the reference does
            assert got.shape == want.shape
    assert none.shape == (0,)
    assert none.dtype == dtype
    assert g2 == []


def test_the_derivative_of_a_forward_sweep_alone():
    args = net((7, 9, 5, 3), 4, torch.float64)
    leaves = [t.requires_grad_() for t in (args.x, *args.weights)]
    assert gradcheck(lambda x, *ws: xa.ops.mlp_attribute(x, list(ws), args.slopes, None, [], [])[0], leaves)


@pytest.mark.parametrize("rows", [0, 3, 40])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(rows, requires_grad):
    args = net((20, 33, 18, 2), rows)
    bits, g, h = swept(args)
    leaves = Net(args.x, args.weights, args.slopes, args.u)
    for t in (leaves.x, leaves.u, *leaves.weights):
        t.requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.xattr.mlp_attribute.default, (*leaves, [1, 2], [0, 2]))
    torch.library.opcheck(torch.ops.xattr.mlp_attribute.default, (*leaves[:3], None, [1, 2], []))
    v, delta = torch.randn(rows, 20), torch.randn(rows, 2)
    weights = [w.detach() for w in args.weights]
    for one in ((v, None), (None, delta), (v, delta)):
        pairs = ([] if one[0] is None else g[1:], [] if one[1] is None else h[1:])
        ends = (one[0] is not None, one[1] is not None)
        torch.library.opcheck(
            torch.ops.xattr.mlp_attribute_backward.default,
            (
                *started(one[0]),
                one[1],
                weights,
                args.slopes,
                bits,
                *([t.detach() for t in part] for part in pairs),
                [2, 3],
                *ends,
            ),
        )


def test_the_backward_pass_has_no_derivative():
    args = net((20, 33, 2), 5)
    bits, g, _ = swept(args)
    found, _, _ = xa.ops.mlp_attribute_backward(
        *started(args.x.requires_grad_()), None, args.weights, args.slopes, bits, g, [], [1, 2]
    )
    with pytest.raises(NotImplementedError, match="engine='autograd'"):
        found[0].sum().backward()


def attribute_args(**changed):
    args = net((20, 33, 2), 5)
    valid = {"x": args.x, "weights": args.weights, "slopes": args.slopes, "u": args.u, "keep_h": [1], "keep_g": [0, 1]}
    return {**valid, **changed}


MISUSES = {
    "no layer": (lambda: {"weights": []}, "`weights` is empty"),
    "slopes": (lambda: {"slopes": []}, "`slopes` has 0 numbers for 2 weights"),
    "x": (lambda: {"x": torch.randn(5, 19)}, "`x` is .*[5, 19].*wanted .*[5, 20]"),
    "dimensions of x": (lambda: {"x": torch.randn(5, 1, 20)}, "`x` is "),
    "dtype of x": (lambda: {"x": torch.ones(5, 20, dtype=torch.int64)}, "`x` has dtype .*wanted fp32"),
    "u": (lambda: {"u": torch.randn(4, 2)}, "`u` is .*wanted .*[5, 2]"),
    "dtype of u": (lambda: {"u": torch.randn(5, 2).double()}, "`u` is "),
    "weights": (lambda: {"weights": [torch.randn(33, 20), torch.randn(2, 32)]}, r"`weights\[1\]` is "),
    "dtype of weights": (
        lambda: {"weights": [torch.randn(33, 20).double(), torch.randn(2, 33)]},
        r"`weights\[0\]` is ",
    ),
    "keep_h": (lambda: {"keep_h": [2]}, "`keep_h` is .*from 1 to 1"),
    "keep_g": (lambda: {"keep_g": [1, 0]}, "`keep_g` is .*ascending"),
    "keep_g without u": (lambda: {"u": None, "keep_g": [0]}, "`keep_g` is .*`u` is None"),
}
"""What is wrong, made on the device of the back end, and what is said of it."""


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_refused_by_name(name, backend):
    changed, message = MISUSES[name]
    with pytest.raises(ValueError) as error:
        xa.ops.mlp_attribute(**attribute_args(**changed()))
    assert "xattr::mlp_attribute" in str(error.value)
    assert re.search(message.replace("[5", r"\[5"), str(error.value)), str(error.value)


def test_misuse_of_the_backward_pass_is_refused_by_name(backend):
    args = net((20, 33, 2), 5)
    bits, g, h = swept(args)
    net_args = (args.weights, args.slopes)
    delta, trained = args.u, [1, 2]
    x, own, task = args.x, started(args.x), (None, None, None, None)
    for call, message in (
        ((*task, None, *net_args, bits, [], [], trained), "`x` and `delta` are both None"),
        ((x, None, None, None, delta, *net_args, bits, g, h, trained), "`a` and `s` are both None"),
        ((x, x[:4], None, None, None, *net_args, bits, g, [], trained), "`a` is "),
        ((x, None, x, None, None, *net_args, bits, g, [], trained), r"`s` is .*wanted .*\[5, 1\]"),
        ((x, x, None, x[:, 0], None, *net_args, bits, g, [], trained), r"`c` is .*wanted .*\[5, 1\]"),
        ((*own, None, *net_args, [], g, [], trained), "`bits` has 0 masks"),
        ((*own, None, *net_args, [bits[0][:4]], g, [], trained), "`bits` is "),
        ((*own, None, *net_args, bits, g[:1], [], trained), "`g` has 1 tensors; wanted 2"),
        ((*own, delta, *net_args, bits, g, h[1:], trained), "`h` has 1 tensors; wanted 2"),
        ((*own, None, *net_args, bits, [g[1], g[0]], [], trained), "`g` is "),
        ((*started(x[:4]), delta, *net_args, bits, g, h, trained), "xattr::mlp_attribute_backward: "),
        ((*own, None, *net_args, bits, g, [], [0, 1]), "`trained` is .*from 1 to 2"),
        ((*own, None, *net_args, bits, g, [], trained, False, True), "the end of a chain"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            xa.ops.mlp_attribute_backward(*call)
        assert "xattr::mlp_attribute_backward" in str(error.value)
