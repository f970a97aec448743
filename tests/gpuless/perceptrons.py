"""Perceptrons, and what their kernels should compute by plain PyTorch operations with given masks."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from cases import pack_bits, unpack_bits
from helpers import assert_within
from torch import Tensor
from xattr_cuda.kernels.reference.mlp_attribute_backward import start_of_tangents

CHAINS = ("own", "task", "both")
TF32 = 2.0**-10  # the largest relative error of a number cut to TF32

Factor = Callable[[Tensor], Tensor]
"""What a product takes of a value."""


def exact(t: Tensor) -> Tensor:
    return t


def cut(t: Tensor) -> Tensor:
    """fp32 without the bits that TF32 lacks."""
    return t.view(torch.int32).bitwise_and(-(2**13)).view(torch.float32) if t.dtype == torch.float32 else t


def nearest(t: Tensor) -> Tensor:
    """fp32 as the nearest TF32."""
    return cut((t.view(torch.int32) + 2**12).view(torch.float32)) if t.dtype == torch.float32 else t


class Net(NamedTuple):
    """Arguments of the forward operator that keep everything."""

    x: Tensor
    weights: list[Tensor]
    slopes: list[float]
    u: Tensor
    keep_h: list[int]
    keep_g: list[int]

    def to(self, dtype: torch.dtype) -> "Net":
        return self._replace(x=self.x.to(dtype), weights=[w.to(dtype) for w in self.weights], u=self.u.to(dtype))


def net(widths: Sequence[int], rows: int, dtype: torch.dtype) -> Net:
    weights = [torch.randn(n, k) * (2 / k) ** 0.5 for k, n in itertools.pairwise(widths)]
    slopes = [(0.0, 0.25)[i % 2] for i in range(len(weights) - 1)]
    keep = list(range(len(weights)))
    found = Net(torch.randn(rows, widths[0]), weights, slopes, torch.randn(rows, widths[-1]), keep[1:], keep)
    return found.to(dtype)


def selected(t: Tensor, bits: Tensor, slope: float) -> Tensor:
    return torch.where(unpack_bits(bits, t.shape[1]), t, slope * t if slope else torch.zeros_like(t))


def up(start: Tensor, net: Net, bits: Sequence[Tensor], factor: Factor) -> list[Tensor]:
    """The values of all layers from `start` [B, N_0] on, with these masks."""
    found = [start]
    for k, weight in enumerate(net.weights):
        t = factor(found[-1]) @ factor(weight).T
        found.append(selected(t, bits[k], net.slopes[k]) if k < len(bits) else t)
    return found


def down(start: Tensor, net: Net, bits: Sequence[Tensor], factor: Factor) -> list[Tensor]:
    """The cotangents of all layers, that of the output being `start` [B, N_L]."""
    found = [start]
    for k in reversed(range(len(net.weights))):
        t = factor(found[0]) @ factor(net.weights[k])
        found.insert(0, selected(t, bits[k - 1], net.slopes[k - 1]) if k else t)
    return found


def gradients(
    chain: Sequence[Tensor | None],
    net: Net,
    bits: Sequence[Tensor],
    g: Sequence[Tensor],
    h: Sequence[Tensor],
    dtype: torch.dtype,
    factor: Factor,
) -> list[Any]:
    """All results of the backward operator in a dtype; g and h as it takes them."""
    net, (x, a, s, c, delta) = net.to(dtype), (t if t is None else t.to(dtype) for t in chain)
    found, v_end, delta_end = [0] * len(net.weights), torch.zeros(0, dtype=dtype), torch.zeros(0, dtype=dtype)
    if delta is not None:
        delta_end, *deltas = down(delta, net, bits, factor)
        found = [factor(d).T @ factor(t.to(dtype)) for d, t in zip(deltas, h, strict=True)]
    if x is not None:
        *tangents, v_end = up(start_of_tangents(x, a, s, c), net, bits, factor)
        found = [w + factor(t.to(dtype)).T @ factor(v) for w, t, v in zip(found, g, tangents, strict=True)]
    return [*found, v_end, delta_end]


def assert_as_good(got: Tensor, plain: Tensor, truth: Tensor, what: str, unit: float = 0.0) -> None:
    """Within twice the error of PyTorch on the same factors, and a unit in the last place of these.

    The largest error of exact sums through many layers is a matter of luck; so of these it is the root of the mean
    square, over which luck evens out, and the largest may be twice as far again.
    """
    if not got.numel():
        assert got.shape == truth.shape, what
        return
    error, sums_exactly = plain.double() - truth, got.dtype == torch.float32 and not unit
    if sums_exactly:
        spread = (got.double() - truth).norm()
        allowed = 2 * error.norm() + torch.finfo(got.dtype).eps * truth.norm()
        assert spread <= allowed, f"{what}: error {spread:.3g}, allowed are {allowed:.3g}"
    slack = unit * float(truth.abs().max()) / 2
    assert_within(got, truth, (2 if sums_exactly else 1) * float(error.abs().max()) + slack, what)


def chain_of(chains: str, net: Net) -> tuple[Tensor | None, ...]:
    """x, a, s, c and delta."""
    rows, dtype = len(net.x), net.x.dtype
    own = (net.x, torch.randn_like(net.x), torch.randn(rows, 1).to(dtype), torch.randn(rows, 1).to(dtype))
    return (*(own if chains != "task" else [None] * 4), torch.randn_like(net.u) if chains != "own" else None)


class Operators(NamedTuple):
    """Both operators of a back end, and what its products take of a value."""

    mlp_attribute: Callable[..., Any]
    mlp_attribute_backward: Callable[..., Any]
    factor: Factor = exact

    def backward(
        self,
        chain: Sequence[Tensor | None],
        net: Net,
        bits: Sequence[Tensor],
        g: Sequence[Tensor],
        h: Sequence[Tensor],
        trained: Sequence[int] | None = None,
        ends: bool = True,
    ) -> list[Tensor]:
        """All results, given what it takes of the cotangents g_1 .. g_L and the inputs h_0 .. h_{L-1}."""
        trained = list(range(1, len(net.weights) + 1)) if trained is None else trained
        own, task = chain[0] is not None, chain[-1] is not None
        g = [g[k - 1] for k in trained] if own else []
        h = [h[k - 1] for k in trained] if task else []
        found, v_end, delta_end = self.mlp_attribute_backward(
            *chain, net.weights, net.slopes, bits, g, h, trained, own and ends, task and ends
        )
        return [*found, v_end, delta_end]

    def swept(self, net: Net) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """(masks, g_1 .. g_L, h_0 .. h_{L-1})."""
        _, _, bits, h, g = self.mlp_attribute(*net)
        return bits, [*g[1:], net.u], [net.x, *h]

    def unit(self, dtype: torch.dtype) -> float:
        """What a factor may be off."""
        return TF32 if dtype == torch.float32 and self.factor is not exact else 0.0


def assert_sweeps_right(ops: Operators, args: Net) -> None:
    y, a, bits, h, g = ops.mlp_attribute(*args)
    exactly, unit = args.to(torch.float64), ops.unit(args.x.dtype)
    plain, truth = up(args.x, args, bits, ops.factor), up(exactly.x, exactly, bits, exact)
    for k, (got, p, t) in enumerate(zip([*h, y], plain[1:], truth[1:], strict=True)):
        assert_as_good(got, p, t, f"h_{k + 1}", unit)
    for k, mask in enumerate(bits):
        assert torch.equal(mask, pack_bits(h[k] > 0)), f"the mask of h_{k + 1} is not that of the value beside it"
    plain, truth = down(args.u, args, bits, ops.factor), down(exactly.u, exactly, bits, exact)
    for k, (got, p, t) in enumerate(zip(g, plain[:-1], truth[:-1], strict=True)):
        assert_as_good(got, p, t, f"g_{k}", unit)
    assert_as_good(a, args.x * plain[0], exactly.x * truth[0], "attribution", unit)


def assert_gradients_right(ops: Operators, args: Net, chains: str) -> None:
    swept, chain = ops.swept(args), chain_of(chains, args)
    plain = gradients(chain, args, *swept, args.x.dtype, ops.factor)
    truth = gradients(chain, args, *swept, torch.float64, exact)
    for k, (got, p, t) in enumerate(zip(ops.backward(chain, args, *swept), plain, truth, strict=True)):
        assert_as_good(got, p, t, f"result {k}", ops.unit(args.x.dtype))
