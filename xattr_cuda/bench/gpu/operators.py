"""Every operator on the device: the back end in force against the reference, and its share of the device's peak."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ... import ops
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

Arguments = tuple[Any, ...]


def _bits(rows: int, columns: int, device: str) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (rows, (columns + 31) // 32), dtype=torch.int32, device=device)


def _elementwise(op: str, sizes: Sizes, dtype: torch.dtype, device: str) -> Arguments:
    t = torch.randn(sizes.elementwise, dtype=dtype, device=device)
    if op == "relu_mask":
        return (t,)
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
    return x, None, *network, masks, [*cotangents, u], [], [*kept, len(weights)]


def _vector(op: str, sizes: Sizes, dtype: torch.dtype, device: str) -> Arguments:
    return (torch.rand(sizes.numbers, dtype=dtype, device=device),)


ARGUMENTS: dict[str, Callable[[str, Sizes, torch.dtype, str], Arguments]] = {
    **dict.fromkeys(("relu_mask", "mask_mul", "add_relu_mask"), _elementwise),
    **dict.fromkeys(("linear_relu_mask", "matmul_mask", "dual_weight_grad"), _products),
    **dict.fromkeys(("max_pool", "pool_pull", "pool_push"), _pooling),
    **dict.fromkeys(("mlp_attribute", "mlp_attribute_backward"), _perceptron),
    "gini": _vector,
}
"""From an operator's name, sizes, dtype and device to the arguments that it is timed with."""


def moved_bytes(arguments: Arguments, results: Any) -> int:
    """Bytes of all tensors among them, each once: the least that an operator reads and writes."""
    return sum(t.nbytes for t in tree_leaves((arguments, results)) if isinstance(t, Tensor))


def shares(op: str, arguments: Arguments, results: Any, seconds: float, peaks: dict[str, float]) -> tuple[float, str]:
    """The larger of the shares of bandwidth and of products that a call in so many seconds attains, and its name."""
    found = {"of copy": moved_bytes(arguments, results) / seconds / peaks[COPY]}
    if op in FORMULAS:
        dtype = next(t.dtype for t in tree_leaves(arguments) if isinstance(t, Tensor))
        name, peak = product_peak(peaks, dtype)
        found[f"of {name}"] = FORMULAS[op](*arguments) / seconds / peak
    of = max(found, key=lambda name: found[name])
    return found[of], of


def _calls(op: str, arguments: Arguments) -> dict[str, Call]:
    function = getattr(ops, op)

    def on_reference() -> object:
        with ops.use_backend("reference"):
            return function(*arguments)

    return {"reference": on_reference, "fused": lambda: function(*arguments)}


def _agree(op: str, got: Any, want: Any) -> str:
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


def measure(op: str, dtype: torch.dtype, peaks: dict[str, float], rounds: int, device: str) -> list[Row]:
    """The rows of an operator at a dtype: its reference on the device, and what runs there by default."""
    short = str(dtype).removeprefix("torch.")
    rows = {name: Row("operator", op, short, name) for name in ("reference", "fused")}
    if op not in ARGUMENTS:
        return [Row("operator", op, short, "fused", failed="it has no arguments in bench/gpu/operators.py")]
    with torch.no_grad():
        torch.manual_seed(0)
        arguments = ARGUMENTS[op](op, SMALL if device == "cpu" else FULL, dtype, device)
        calls = _calls(op, arguments)
        results = {name: call() for name, call in calls.items()}
        if why := _agree(op, results["fused"], results["reference"]):
            rows["fused"].failed = why
            del calls["fused"]
        time_rows(rows, calls, rounds, device, REPEATS)
        for name in calls:
            row = rows[name]
            seconds = row.graph_seconds or row.seconds
            if seconds:
                row.share, row.of = shares(op, arguments, results[name], seconds, peaks)
    return list(rows.values())
