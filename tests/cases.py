"""Shapes and sample inputs that the tests and the benchmarks share. Random values come from torch's own generator."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xattr_cuda.bench.cases import NETWORKS as NETWORKS
from xattr_cuda.bench.cases import PAPER as PAPER
from xattr_cuda.ops.schemas import SCHEMAS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


LAYER_OPS = tuple(op for op in SCHEMAS if not op.startswith("mlp_"))
"""The operators of one layer; those of a whole network take lists of tensors and have tests of their own."""

SHAPES = ((1,), (33,), (1, 1), (3, 31), (2, 32), (5, 33), (4, 70), (2, 3, 40), (0, 33), (3, 0))
"""[..., N] of the elementwise operators: around the word of 32 bits, ragged, one to three dimensions, and empty."""

SLOPES = ("no slope", "one slope", "slopes")


class Sample(NamedTuple):
    """One call of an operator."""

    name: str
    args: tuple[Any, ...]


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a boolean mask [..., N] into int32 [..., ceil(N / 32)] with numpy, independently of the package."""
    rows = np.packbits(mask.cpu().numpy(), axis=-1, bitorder="little")  # [..., ceil(N / 8)]
    words = (mask.shape[-1] + 31) // 32
    rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, 4 * words - rows.shape[-1])])
    return torch.from_numpy(np.ascontiguousarray(rows).view("<i4").copy()).to(mask.device)


def unpack_bits(bits: Tensor, elements: int) -> Tensor:
    """Inverse of `pack_bits`: bool [..., N]."""
    rows = np.ascontiguousarray(bits.cpu().numpy()).view(np.uint8)
    unpacked = np.unpackbits(rows, axis=-1, bitorder="little", count=elements)
    return torch.from_numpy(unpacked).to(bits.device, torch.bool)


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(device, dtype)


def _tied(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Multiples of 1/4 with many ties and zeros, some of them negative: small products of them are exact."""
    return (torch.randn(shape, dtype=torch.float64) * 3).round().div(4).clamp(-2, 2).to(device, dtype)


def _transposed(t: Tensor) -> Tensor:
    return t.mT.contiguous().mT if t.dim() > 1 else t


def _sliced(t: Tensor) -> Tensor:
    return torch.stack([t, t + 1], -1).flatten(-2)[..., ::2]


def _expanded(t: Tensor) -> Tensor:
    return t[:1].expand(t.shape) if t.dim() > 1 else t


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": _transposed,
    "sliced": _sliced,
    "expanded": _expanded,
}


def _slope(kind: str, n: int, dtype: torch.dtype, device: str) -> Tensor | None:
    if kind == "no slope":
        return None
    return torch.linspace(0.125, 0.875, 1 if kind == "one slope" else n, dtype=torch.float64).to(device, dtype)


def _bits(shape: tuple[int, ...], device: str) -> Tensor:
    return pack_bits(torch.rand(shape) > 0.5).to(device)


Values = Callable[[tuple[int, ...], torch.dtype, str], Tensor]


def _variants(shapes: Any) -> Iterator[tuple[str, Any, str, Values, Callable[[Tensor], Tensor]]]:
    """(name, shape, kind of slope, values, layout): every shape x slope, and the last ragged one in every layout."""
    for shape in shapes:
        for slope in SLOPES:
            yield f"{shape}, {slope}", shape, slope, _random, lambda t: t
            yield f"{shape}, {slope}, ties", shape, slope, _tied, lambda t: t
    for layout, rearrange in LAYOUTS.items():
        for slope in SLOPES:
            yield f"{shapes[5]}, {slope}, {layout}", shapes[5], slope, _random, rearrange


def _relu_mask(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    for name, shape, slope, values, layout in _variants(SHAPES):
        yield Sample(name, (layout(values(shape, dtype, device)), _slope(slope, shape[-1], dtype, device)))


def _add_relu_mask(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    for name, shape, slope, values, layout in _variants(SHAPES):
        a, b = values(shape, dtype, device), values(shape, dtype, device)
        yield Sample(name, (layout(a), b, _slope(slope, shape[-1], dtype, device)))


def _mask_mul(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    for name, shape, slope, values, layout in _variants(SHAPES):
        bits = _sliced(_bits(shape, device)) if layout is _sliced else _bits(shape, device)
        yield Sample(name, (layout(values(shape, dtype, device)), bits, _slope(slope, shape[-1], dtype, device)))


PRODUCTS = (
    ((), 5, 33),
    ((1,), 1, 1),
    ((3,), 4, 31),
    ((2,), 33, 32),
    ((2, 3), 7, 40),
    ((17,), 19, 70),
    ((70,), 118, 33),
    ((0,), 4, 33),
    ((3,), 0, 5),
    ((3,), 4, 0),
)
"""(leading dimensions, K, N) of the matrix products."""


def _linear_relu_mask(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    for name, (rows, k, n), slope, values, layout in _variants(PRODUCTS):
        x, weight = values((*rows, k), dtype, device), values((n, k), dtype, device)
        yield Sample(name, (layout(x), layout(weight), _slope(slope, n, dtype, device)))


def _matmul_mask(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    for name, (rows, k, n), slope, values, layout in _variants(PRODUCTS):
        t, matrix, bits = values((*rows, k), dtype, device), values((k, n), dtype, device), _bits((*rows, n), device)
        yield Sample(name, (layout(t), layout(matrix), bits, _slope(slope, n, dtype, device)))


def _dual_weight_grad(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    for rows, k, n in PRODUCTS[1:]:
        for values in (_random, _tied):
            args = [values((*rows, width), dtype, device) for width in (n, k, n, k)]
            yield Sample(f"{rows} rows, {n} by {k}, {values.__name__[1:]}", tuple(args))
            yield Sample(f"{rows} rows, {n} by {k}, {values.__name__[1:]}, one pair", (*args[:2], None, None))
    for name, layout in LAYOUTS.items():
        args = [_random((17, width), dtype, device) for width in (70, 19, 70, 19)]
        yield Sample(name, (layout(args[0]), args[1], args[2], layout(args[3])))
        yield Sample(f"all {name}", tuple(layout(t) for t in args))
    args = [
        _random((*rows, width), dtype, device) for rows, width in (((17,), 5), ((17,), 4), ((2, 3), 5), ((2, 3), 4))
    ]
    yield Sample("pairs with other leading dimensions", tuple(args))


def _input_times_gradient(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    for shape in (*SHAPES, (2, 3, 5, 7), (70, 130)):
        for scaled in (False, True):
            x, g = _random(shape, dtype, device), _random(shape, dtype, device)
            scale = _random(shape[:1], dtype, device) if scaled else None
            yield Sample(f"{shape}{', scaled' if scaled else ''}", (x, g, scale))
    for name, layout in LAYOUTS.items():
        x, g = (layout(_random(SHAPES[5], dtype, device)) for _ in range(2))
        yield Sample(f"{SHAPES[5]}, {name}", (x, g, layout(_random(SHAPES[5][:1], dtype, device))))


def _gini(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    for n in (0, 1, 2, 31, 118, 1000):
        for values in (_random, _tied):
            yield Sample(f"{n}, {values.__name__[1:]}", (values((n,), dtype, device).abs(),))
    a = _random((118,), dtype, device).abs()
    yield Sample("sliced", (_sliced(a),))
    yield Sample("expanded", (a[:1].expand(118),))
    yield Sample("zeros", (torch.zeros_like(a),))


POOLS: tuple[tuple[Any, ...], ...] = (
    ((2, 3, 9), (3,), (2,), (1,), (1,), False),
    ((2, 1, 1), (1,), (1,), (0,), (1,), False),
    ((0, 2, 7), (2,), (2,), (0,), (1,), True),
    ((2, 3, 8, 6), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 5, 7, 8), (3, 2), (2, 1), (1, 1), (1, 2), True),
    ((1, 33, 6, 7), (3, 3), (1, 3), (1, 0), (2, 1), False),
    ((2, 4, 5, 5), (5, 5), (5, 5), (0, 0), (1, 1), False),
    ((1, 2, 18, 17), (16, 16), (2, 1), (8, 0), (1, 1), True),
    ((0, 3, 5, 4), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 3, 4, 5, 6), (2, 3, 2), (2, 2, 1), (1, 1, 0), (1, 1, 2), True),
    ((1, 2, 5, 4, 3), (1, 2, 3), (1, 2, 2), (0, 1, 1), (1, 1, 1), False),
)
"""(shape, kernel, stride, padding, dilation, ceil_mode) of max pooling: one to three dimensions, windows that overlap,
meet or leave gaps, one window alone, and the largest."""


def _channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


POOL_LAYOUTS = {"": lambda t: t, ", channels last": _channels_last}
POOL_DIMS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def pooled(shape: tuple[int, ...], *geometry: Any) -> tuple[int, ...]:
    """The shape that pooling an input of `shape` has."""
    kernel, stride, padding, dilation, ceil_mode = geometry
    out = POOL_DIMS[len(kernel)](torch.zeros(1, *shape[1:]), kernel, stride, padding, dilation, ceil_mode)
    return (*shape[:2], *out.shape[2:])


def _idx(shape: tuple[int, ...], kernel: tuple[int, ...], device: str) -> Tensor:
    """Any index into a window, and a few beyond it where the type leaves room."""
    return torch.randint(min(256, int(np.prod(kernel)) + 1), shape).to(device, torch.uint8)


def _pool_variants() -> Iterator[tuple[str, Any, Values, Callable[[Tensor], Tensor]]]:
    for pool in POOLS:
        for values in (_random, _tied):
            for layout, rearrange in POOL_LAYOUTS.items():
                yield f"{pool}, {values.__name__[1:]}{layout}", pool, values, rearrange
    yield f"{POOLS[4]}, sliced", POOLS[4], _random, _sliced


def _max_pool(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    for name, (shape, *geometry), values, layout in _pool_variants():
        yield Sample(name, (layout(values(shape, dtype, device)), *geometry))


def _pool_pull(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    for name, (shape, *geometry), values, layout in _pool_variants():
        out = pooled(shape, *geometry)
        idx = layout(_idx(out, geometry[0], device))
        yield Sample(name, (layout(values(out, dtype, device)), idx, shape, *geometry[:4]))


def _pool_push(dtype: torch.dtype, device: str) -> Iterator[Sample]:
    for name, (shape, *geometry), values, layout in _pool_variants():
        idx = layout(_idx(pooled(shape, *geometry), geometry[0], device))
        yield Sample(name, (layout(values(shape, dtype, device)), idx, *geometry[:4]))


SAMPLES: dict[str, Callable[[torch.dtype, str], Iterator[Sample]]] = {
    "relu_mask": _relu_mask,
    "mask_mul": _mask_mul,
    "add_relu_mask": _add_relu_mask,
    "linear_relu_mask": _linear_relu_mask,
    "matmul_mask": _matmul_mask,
    "dual_weight_grad": _dual_weight_grad,
    "max_pool": _max_pool,
    "pool_pull": _pool_pull,
    "pool_push": _pool_push,
    "input_times_gradient": _input_times_gradient,
    "gini": _gini,
}


def sample_inputs(op: str, dtype: torch.dtype, device: str = "cpu") -> list[Sample]:
    """Calls of an operator with finite arguments: every shape, slope and layout that it must serve."""
    return list(SAMPLES[op](dtype, device))


def non_finite(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Values among which every special one occurs, in random places where there is room."""
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.5, -1.5], dtype=dtype)
    count = torch.Size(shape).numel()
    return special.repeat(count // len(special) + 1)[torch.randperm(count)].view(shape).to(device)


def _activate(z: Tensor, slope: Tensor | None) -> Tensor:
    return F.relu(z) if slope is None else torch.where(z > 0, z, slope * z)


def _select(t: Tensor, bits: Tensor, slope: Tensor | None) -> Tensor:
    mask = unpack_bits(bits, t.shape[-1])
    return torch.where(mask, t, torch.zeros_like(t) if slope is None else slope * t)


def _pairwise_gini(a: Tensor) -> Tensor:
    if not a.any():
        return 0 * a.sum()
    return (a[:, None] - a[None, :]).abs().mean() / (2 * a.mean())


def _weight_gradient(delta: Tensor, h: Tensor, g: Tensor | None, v: Tensor | None) -> Tensor:
    gradient = delta.flatten(0, -2).T @ h.flatten(0, -2)
    return gradient if g is None or v is None else gradient + g.flatten(0, -2).T @ v.flatten(0, -2)


def _scaled_product(x: Tensor, g: Tensor, scale: Tensor | None) -> Tensor:
    return x * g if scale is None else x * g * scale.reshape(-1, *[1] * (x.dim() - 1))


def _window_places(idx: Tensor, size: Any, geometry: Any) -> tuple[Tensor, Tensor]:
    """Where the elements that idx names lie in the flattened input, [B, C, n], and which of them lie there at all."""
    k, inner = idx.long(), 1
    inside, flat = k < int(np.prod(geometry[0])), torch.zeros_like(k)
    for dim in reversed(range(len(size))):
        kernel, stride, padding, dilation = (numbers[dim] for numbers in geometry)
        start = torch.arange(idx.shape[2 + dim]).mul(stride).sub(padding).view(-1, *[1] * (len(size) - 1 - dim))
        place = start.to(idx.device) + k % kernel * dilation
        inside = inside & (place >= 0) & (place < size[dim])
        flat += place.clamp(0, size[dim] - 1) * inner
        k, inner = k // kernel, inner * size[dim]
    return flat.flatten(2), inside.flatten(2)


def _pull(g: Tensor, idx: Tensor, shape: Any, *geometry: Any) -> Tensor:
    flat, inside = _window_places(idx, shape[2:], geometry)
    total = g.new_zeros((*shape[:2], int(np.prod(shape[2:]))))
    return total.scatter_add(2, flat, torch.where(inside, g.flatten(2), 0)).view(shape)


def _push(v: Tensor, idx: Tensor, *geometry: Any) -> Tensor:
    flat, inside = _window_places(idx, v.shape[2:], geometry)
    return torch.where(inside, v.flatten(2).gather(2, flat), 0).view(idx.shape)


DEFINITIONS: dict[str, Callable[..., Tensor]] = {
    "relu_mask": _activate,
    "mask_mul": _select,
    "add_relu_mask": lambda a, b, slope: _activate(a + b, slope),
    "linear_relu_mask": lambda x, weight, slope: _activate(F.linear(x, weight), slope),
    "matmul_mask": lambda t, matrix, bits, slope: _select(t @ matrix, bits, slope),
    "dual_weight_grad": _weight_gradient,
    "max_pool": lambda h, kernel, *geometry: POOL_DIMS[len(kernel)](h, kernel, *geometry),
    "pool_pull": _pull,
    "pool_push": _push,
    "input_times_gradient": _scaled_product,
    "gini": _pairwise_gini,
}
"""The floating result of every operator by plain PyTorch operations: the truth in float64, the yardstick elsewhere."""


PRE_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "relu_mask": lambda z, slope: z,
    "add_relu_mask": lambda a, b, slope: a + b,
    "linear_relu_mask": lambda x, weight, slope: F.linear(x, weight),
}
"""The tensor whose sign the mask holds, for the operators that return one."""


def cast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """The arguments with every floating tensor in another dtype."""
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t for t in args)
