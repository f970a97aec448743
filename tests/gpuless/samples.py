"""Small Triton kernels on which the tools themselves are tested; some are wrong on purpose."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def linear_relu_mask(
    x_ptr,
    w_ptr,
    y_ptr,
    bits_ptr,
    M,
    N,
    K,
    stride_x,
    stride_w,
    stride_y,
    stride_bits,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Y = relu(x @ w.T) and its packed mask, for x [M, K] and w [N, K] with columns side by side."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        here = k + depth
        x = tl.load(x_ptr + rows[:, None] * stride_x + here[None, :], (rows[:, None] < M) & (here[None, :] < K), 0.0)
        w = tl.load(
            w_ptr + columns[None, :] * stride_w + here[:, None], (columns[None, :] < N) & (here[:, None] < K), 0.0
        )
        total = tl.dot(x, w, total, input_precision=PRECISION)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    mask = (total > 0) & inside
    y = tl.where(mask, total, 0.0).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + rows[:, None] * stride_y + columns[None, :], y, inside)
    places = mask.to(tl.int32).reshape(BM, BN // 32, 32) << tl.arange(0, 32)[None, None, :]
    words = tl.program_id(1) * (BN // 32) + tl.arange(0, BN // 32)
    target = bits_ptr + rows[:, None] * stride_bits + words[None, :]
    tl.store(target, tl.sum(places, axis=2), (rows[:, None] < M) & (words[None, :] < (N + 31) // 32))


@triton.jit
def scale(x_ptr, y_ptr, n, factor, BLOCK: tl.constexpr):
    """Y = factor * x, for n numbers."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, factor * tl.load(x_ptr + i, i < n), i < n)


@triton.jit
def scale_without_a_mask(x_ptr, y_ptr, n, factor, BLOCK: tl.constexpr):
    """Wrong: it writes whole blocks."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, factor * tl.load(x_ptr + i, i < n))


@triton.jit
def column_sums(x_ptr, y_ptr, M, N, BM: tl.constexpr, BN: tl.constexpr):
    """Y += the sums of the columns of x [M, N], by atomic additions."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    x = tl.load(x_ptr + rows[:, None] * N + columns[None, :], (rows[:, None] < M) & (columns[None, :] < N), 0.0)
    tl.atomic_add(y_ptr + columns, tl.sum(x.to(tl.float32), axis=0), columns < N)


@triton.jit
def described_product(x_ptr, w_ptr, y_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Y = x @ w.T through tensor descriptors made in the kernel: TMA from sm_90 on, plain accesses before."""
    m, n = tl.program_id(0) * BM, tl.program_id(1) * BN
    xs = tl.make_tensor_descriptor(x_ptr, [M, K], [K, 1], [BM, BK])
    ws = tl.make_tensor_descriptor(w_ptr, [N, K], [K, 1], [BN, BK])
    ys = tl.make_tensor_descriptor(y_ptr, [M, N], [N, 1], [BM, BN])
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        total = tl.dot(xs.load([m, k]), ws.load([n, k]).T, total)
    ys.store([m, n], total.to(y_ptr.dtype.element_ty))


@triton.jit
def combine(x_ptr, y_ptr, out_ptr, N: tl.constexpr, OP: tl.constexpr):
    """One operation of OPERATIONS on two vectors, at their own dtype."""
    i = tl.arange(0, N)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    if OP == "add":
        out = x + y
    elif OP == "mul":
        out = x * y
    elif OP == "max":
        out = tl.maximum(x, y)
    elif OP == "where":
        out = tl.where(x > y, x, y)
    elif OP == "relu":
        out = tl.where(x > 0, x, 0.0)
    elif OP == "neg":
        out = -x
    elif OP == "abs":
        out = tl.abs(x)
    elif OP == "widened":
        out = (x.to(tl.float32) + y.to(tl.float32)).to(x.dtype)
    elif OP == "sum":
        out = x * 0 + tl.sum(x.to(tl.float32), axis=0).to(x.dtype)
    elif OP == "largest":
        out = x * 0 + tl.max(x, axis=0)
    tl.store(out_ptr + i, out)


OPERATIONS: dict[str, Any] = {
    "add": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
    "max": torch.maximum,
    "where": torch.maximum,
    "relu": lambda x, y: x.relu(),
    "neg": lambda x, y: -x,
    "abs": lambda x, y: x.abs(),
    "widened": lambda x, y: x + y,
    "sum": lambda x, y: torch.full_like(x, x.float().sum().to(x.dtype).item()),
    "largest": lambda x, y: torch.full_like(x, x.max().item()),
}
"""What `combine` computes, by PyTorch."""

LINEAR_TYPES = {"x_ptr": "*fp16", "w_ptr": "*fp16", "y_ptr": "*fp16", "bits_ptr": "*i32"} | dict.fromkeys(
    ("M", "N", "K", "stride_x", "stride_w", "stride_y", "stride_bits"), "i32"
)
LINEAR_DIVISIBLE = ("x_ptr", "w_ptr", "y_ptr", "bits_ptr", "K", "stride_x", "stride_w", "stride_y")


def linear_tensors(m: int, n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, w, and what `linear_relu_mask` writes: y full of NaN, and the mask's words, all ones."""
    x, w = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    return x, w, torch.full((m, n), float("nan")).to(dtype), torch.full((m, (n + 31) // 32), -1, dtype=torch.int32)


def linear_args(x: Tensor, w: Tensor, y: Tensor, bits: Tensor) -> tuple[Any, ...]:
    """The arguments of `linear_relu_mask` in order."""
    strides = (t.stride(0) for t in (x, w, y, bits))
    return x, w, y, bits, x.shape[0], w.shape[0], x.shape[1], *strides
