"""What the device itself can do, measured: the yardsticks of every share."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .clock import Call, seconds_in_turn

COPIED, SIDE = 2**28, 8192  # 1 GiB of float32, far beyond any cache; a product that fills every GPU
SMALL_COPY, SMALL_SIDE = 2**20, 128  # of a rehearsal on the CPU
ROUNDS = 10
COPY = "copy"


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """torch.set_float32_matmul_precision inside a `with` block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _seconds(call: Call, device: str) -> float:
    return statistics.median(seconds_in_turn({"": call}, ROUNDS, device)[""])


def _copy(device: str) -> float:
    source = torch.empty(SMALL_COPY if device == "cpu" else COPIED, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)


def _product(dtype: torch.dtype, precision: str, device: str) -> float:
    side = SMALL_SIDE if device == "cpu" else SIDE
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    with matmul_precision(precision):
        return 2 * side**3 / _seconds(lambda: torch.mm(a, b, out=out), device)


def measure(device: str) -> dict[str, float]:
    """Bytes a second of a copy, and FLOPs a second of square products, by the name of their precision."""
    return {
        COPY: _copy(device),
        "bf16": _product(torch.bfloat16, "highest", device),
        "fp16": _product(torch.float16, "highest", device),
        "tf32": _product(torch.float32, "high", device),
        "fp32": _product(torch.float32, "highest", device),
    }


def product_peak(peaks: dict[str, float], dtype: torch.dtype) -> tuple[str, float]:
    """The name and the FLOPs a second that products of a dtype may reach at the precision now in force.

    Infinite where no peak was measured, so that shares are zero.
    """
    if dtype == torch.float32:
        name = "fp32" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    else:
        name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    return name, peaks.get(name, float("inf"))
