"""Every operator on the device: against the nearest that PyTorch has, and its share of what the device can do."""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from ... import ops
from ...ops import gpu
from ..count import FORMULAS
from .clock import Call, time_rows
from .peaks import COPY, product_peak
from .rows import Row


@dataclass(frozen=True)
class Sizes:
    """elementwise: [rows, columns]; product: (B, K, N); images: [B, C, H, W]; widths and batch: of a perceptron that
    fits on the chip; numbers: of the vector whose Gini coefficient is taken.
    """

    elementwise: tuple[int, int] = (16_384, 4096)
    product: tuple[int, int, int] = (8192, 4096, 4096)
    images: tuple[int, int, int, int] = (64, 64, 112, 112)
    widths: tuple[int, ...] = (256, 256, 256, 256, 1)
    batch: int = 65_536
    numbers: int = 16 * 150_528


FULL = Sizes()  # beyond every cache
SMALL = Sizes((64, 100), (32, 48, 40), (2, 3, 8, 8), (16, 24, 24, 1), 64, 1000)  # of a rehearsal on the CPU
WINDOWS = ((2, 2), (2, 2), (0, 0), (1, 1))
REPEATS = 5  # calls of a graph
FUSED, CUDA, TRITON = "fused", "cuda", "triton"

Arguments = tuple[Any, ...]


def _bits(rows: int, columns: int, device: str) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (rows, (columns + 31) // 32), dtype=torch.int32, device=device)


def _elementwise(op: str, sizes: Sizes, dtype: torch.dtype, device: str) -> Arguments:
    t = torch.randn(sizes.elementwise, dtype=dtype, device=device)
    if op == "relu_mask":
        return (t,)
    if op == "input_times_gradient":
        return t, t.flip(0), None
    return t, _bits(*sizes.elementwise, device) if op == "mask_mul" else t.flip(0)


def _products(op: str, sizes: Sizes, dtype: torch.dtype, device: str) -> Arguments:
    B, K, N = sizes.product
    wide, narrow = (torch.randn(B, n, dtype=dtype, device=device) for n in (N, K))
    weight = torch.randn(N, K, dtype=dtype, device=device) / K**0.5
    if op == "linear_relu_mask":
        return narrow, weight
    if op == "matmul_mask":
        return wide, weight, _bits(B, K, device)
    return wide, narrow, wide.flip(0), narrow.flip(0)


def _pooling(op: str, sizes: Sizes, dtype: torch.dtype, device: str) -> Arguments:
    image = torch.randn(sizes.images, dtype=dtype, device=device)
    if op == "max_pool":
        return image, *WINDOWS, False
    out, idx = ops.max_pool(image, *WINDOWS, False)
    return (out, idx, sizes.images, *WINDOWS) if op == "pool_pull" else (image, idx, *WINDOWS)


def _perceptron(op: str, sizes: Sizes, dtype: torch.dtype, device: str) -> Arguments:
    weights = [torch.randn(n, k, dtype=dtype, device=device) * (2 / k) ** 0.5 for k, n in pairwise(sizes.widths)]
    network = weights, [0.0] * (len(weights) - 1)
    x = torch.randn(sizes.batch, sizes.widths[0], dtype=dtype, device=device)
    u = torch.ones(sizes.batch, sizes.widths[-1], dtype=dtype, device=device)
    kept = list(range(1, len(weights)))
    if op == "mlp_attribute":
        return x, *network, u, [], kept
    _, _, masks, _, cotangents = ops.mlp_attribute(x, *network, u, [], kept)
    return x, x, u, None, None, *network, masks, [*cotangents, u], [], [*kept, len(weights)]


def _vector(op: str, sizes: Sizes, dtype: torch.dtype, device: str) -> Arguments:
    return (torch.rand(sizes.numbers, dtype=dtype, device=device),)


ARGUMENTS: dict[str, Callable[[str, Sizes, torch.dtype, str], Arguments]] = {
    **dict.fromkeys(("relu_mask", "mask_mul", "add_relu_mask", "input_times_gradient"), _elementwise),
    **dict.fromkeys(("linear_relu_mask", "matmul_mask", "dual_weight_grad"), _products),
    **dict.fromkeys(("max_pool", "pool_pull", "pool_push"), _pooling),
    **dict.fromkeys(("mlp_attribute", "mlp_attribute_backward"), _perceptron),
    "gini": _vector,
}
"""From an operator's name, sizes, dtype and device to the arguments that it is timed with."""


def _unpacked(bits: Tensor, columns: int) -> Tensor:
    """The mask as PyTorch would keep it, bool [rows, columns]."""
    places = torch.arange(32, device=bits.device, dtype=torch.int32)
    return ((bits.unsqueeze(-1) >> places) & 1).flatten(-2)[..., :columns].bool()


def _places(idx: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Places in the flattened image, int64 [B, C, n], of indices into windows of WINDOWS."""
    (kh, kw), (sh, sw) = WINDOWS[0], WINDOWS[1]
    k = idx.long()
    row = torch.arange(idx.shape[2], device=idx.device).view(-1, 1) * sh + k // kw % kh
    column = torch.arange(idx.shape[3], device=idx.device) * sw + k % kw
    return row * shape[3] + column


def _attribution_and_sums(a: Tensor) -> tuple[Tensor, ...]:
    return a, a.abs().mean(0), a.abs().sum(1), a.square().sum(1)


def pytorch(op: str, arguments: Arguments) -> Call | None:
    """The nearest that PyTorch has, masks as bool and indices of pooling as int64; None where it has nothing."""
    if op in ("relu_mask", "add_relu_mask"):
        return (lambda: F.relu(arguments[0])) if op == "relu_mask" else lambda: F.relu(arguments[0] + arguments[1])
    if op == "linear_relu_mask":
        return lambda: F.relu(F.linear(*arguments))
    if op == "dual_weight_grad":
        delta, h, g, v = arguments
        return lambda: torch.addmm(delta.T @ h, g.T, v)
    if op == "max_pool":
        return lambda: F.max_pool2d(arguments[0], *WINDOWS, return_indices=True)
    if op == "gini":
        return lambda: torch.sort(arguments[0])
    if op == "mask_mul":
        mask = _unpacked(arguments[1], arguments[0].shape[-1])
        return lambda: arguments[0] * mask
    if op == "matmul_mask":
        mask = _unpacked(arguments[2], arguments[1].shape[-1])
        return lambda: (arguments[0] @ arguments[1]) * mask
    if op == "input_times_gradient":
        x, g, _ = arguments
        return lambda: _attribution_and_sums(x * g)
    if op == "pool_pull":
        g, idx, shape = arguments[:3]
        places, like = _places(idx, shape), g.new_empty(shape)
        backward = torch.ops.aten.max_pool2d_with_indices_backward.default
        return lambda: backward(g, like, *WINDOWS, False, places)
    if op == "pool_push":
        v, idx = arguments[:2]
        places = _places(idx, v.shape).flatten(2)
        return lambda: v.flatten(2).gather(2, places)
    return None


def moved_bytes(arguments: Arguments, results: Any) -> int:
    """Bytes of all tensors among them, each once: the least that an operator reads and writes."""
    return sum(t.nbytes for t in tree_leaves((arguments, results)) if isinstance(t, Tensor))


def shares(op: str, arguments: Arguments, results: Any, seconds: float, peaks: dict[str, float]) -> tuple[float, str]:
    """The larger of the shares of bandwidth and of products that a call in so many seconds attains, and its name."""
    found = {"of copy": moved_bytes(arguments, results) / seconds / peaks.get(COPY, float("inf"))}
    if op in FORMULAS:
        dtype = next(t.dtype for t in tree_leaves(arguments) if isinstance(t, Tensor))
        name, peak = product_peak(peaks, dtype)
        found[f"of {name}"] = FORMULAS[op](*arguments) / seconds / peak
    of = max(found, key=lambda name: found[name])
    return found[of], of


def _disagreement(got: Any, want: Any) -> str:
    """Why two results of an operator cannot be those of one function; empty if they can.

    The tests hold the operators to their errors. Here a kernel that is wrong at this size alone is kept from a figure:
    no more than one element in a thousand is off by more than a hundredth of the largest.
    """
    for g, w in zip(tree_leaves(got), tree_leaves(want), strict=True):
        if not isinstance(g, Tensor) or not g.is_floating_point() or not g.numel():
            continue
        off = ((g.double() - w.double()).abs() > 0.01 * w.double().abs().max()) | g.isnan()
        if float(off.double().mean()) > 1e-3:
            return f"wrong values: {float(off.double().mean()):.1%} of the elements of a result"
    return ""


def on_reference(op: str) -> str:
    """Why an operator that has just run on a GPU ran on the reference there; empty if it did not."""
    if reason := gpu.failures.get(op) or gpu.unavailable():
        return f"it runs on the reference: {reason}"
    launchers = importlib.import_module("....kernels.triton", __name__)
    return "" if hasattr(launchers, op) else "it runs on the reference: it has no Triton kernel"


def measure(op: str, dtype: torch.dtype, peaks: dict[str, float], rounds: int, device: str) -> list[Row]:
    """The rows of an operator at a dtype: PyTorch's nearest, else the reference, and the kernels that there are."""
    short = str(dtype).removeprefix("torch.")
    if op not in ARGUMENTS:
        return [Row("operator", op, short, FUSED, failed="it has no arguments in bench/gpu/operators.py")]
    with torch.no_grad():
        torch.manual_seed(0)
        arguments, function = ARGUMENTS[op](op, SMALL if device == "cpu" else FULL, dtype, device), getattr(ops, op)

        def reference() -> Any:
            with ops.use_backend("reference"):
                return function(*arguments)

        near, kernels = pytorch(op, arguments), _kernels(op, function)
        calls: dict[str, Call] = {"reference": reference} if near is None else {"PyTorch": near}
        rows = {name: Row("operator", op, short, name) for name in (*calls, *kernels)}
        want = reference()
        for name, kernel in kernels.items():
            if why := _disagreement(kernel(*arguments), want):
                rows[name].failed = why
            else:
                calls[name] = functools.partial(kernel, *arguments)
        time_rows(rows, calls, rounds, device, REPEATS)
        for row in (rows[name] for name in kernels):
            row.note = "" if device == "cpu" or row.contestant == CUDA else on_reference(op)
            if seconds := row.graph_seconds or row.seconds:
                row.share, row.of = shares(op, arguments, want, seconds, peaks)
    return list(rows.values())


def _kernels(op: str, function: Call) -> dict[str, Call]:
    """What runs by default, and where that is a kernel in CUDA C++ what would run without it: one of them is idle."""
    native = op in gpu.NATIVE and not gpu.native_unavailable()
    return {CUDA: function, TRITON: gpu.below(op)} if native else {FUSED: function}
