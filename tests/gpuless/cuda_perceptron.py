"""The CUDA kernels of a whole perceptron as functions of CPU tensors: from their source, or as nvcc compiles them."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xattr_cuda.kernels.reference.bits import words

from . import emulator, nvcc, ptx, shim
from .records import AttributeArguments, BackwardArguments, Record

MATHS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""The dtype of every way to multiply."""

STRUCTS = {"fp32": "Fp32", "tf32": "Tf32", "bf16": "Bf16", "fp16": "Fp16"}

_HEAD = """
#define XATTR_LAUNCH(kernel, grid, block, shared, stream, ...) \\
  cuemu::launch(grid, block, shared, [&] { kernel(__VA_ARGS__); })
#include "cuda/HEADER.cuh"
using namespace xattr::cuda;
void run(const cuemu::Arguments& a) {
"""
ATTRIBUTE = f"""{_HEAD.replace("HEADER", "mlp_attribute")}
  auto args = cuemu::structure_of<AttributeArguments<MATH::Value>>(a);
  args.plan = shared_plan(args.net, ROWS);
  auto* kernel = mlp_attribute_kernel<MATH, ROWS>;
  LAUNCH(blocks_of(args.rows, ROWS), args.plan.bytes)
}}
"""
BACKWARD = f"""{_HEAD.replace("HEADER", "mlp_attribute_backward")}
  auto args = cuemu::structure_of<BackwardArguments<MATH::Value>>(a);
  const unsigned blocks = planned(ROWS, args);
  auto* kernel = mlp_attribute_backward_kernel<MATH, ROWS>;
  LAUNCH(blocks, args.plan.bytes)
}}
"""
DRIVERS = {"mlp_attribute": ATTRIBUTE, "mlp_attribute_backward": BACKWARD}
LAUNCH = "#define LAUNCH(grid, shared) cuemu::launch(grid, kThreads, shared, [&] { kernel(args); });\n"
RECORD = """
#define LAUNCH(grid, shared) \\
  (void)kernel, std::memcpy(a.pointer<char>(0), &args, sizeof args), \\
      a.pointer<int64_t>(a.all.size() - 1)[0] = grid, a.pointer<int64_t>(a.all.size() - 1)[1] = shared;
"""
"""What drivers do in the end: run the kernel, or write down what it would be given."""

INSTANCES = """
#include "cuda/HEADER.cuh"
using namespace xattr::cuda;
void* kernels[] = {KERNELS};
"""
"""For nvcc: all that is pointed to is compiled."""

KERNELS = {
    "mlp_attribute": "mlp_attribute_kernel<MATH, ROWS>",
    "mlp_attribute_backward": "mlp_attribute_backward_kernel<MATH, ROWS>",
}
"""By header."""


def instances(header: str, *wanted: tuple[str, int]) -> str:
    """A source for nvcc with a kernel for each way to multiply and number of rows."""
    kernels = (_filled(f"reinterpret_cast<void*>({KERNELS[header]})", *one) for one in wanted)
    return INSTANCES.replace("HEADER", header).replace("KERNELS", ", ".join(kernels))


def _filled(text: str, math: str, rows: int) -> str:
    return text.replace("MATH", STRUCTS[math]).replace("ROWS", str(rows))


def poison(*shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """New memory of what no kernel would leave there: NaN, or bits that are all set."""
    dtype = dtype or like.dtype
    return torch.full(shape, torch.nan if dtype.is_floating_point else -1, dtype=dtype)


def layers_of(weights: Sequence[Tensor], slopes: Sequence[float]) -> dict[str, Any]:
    """The fields of Network; a slope is what the dtype holds of it."""
    held = torch.tensor([*slopes], dtype=weights[0].dtype).tolist()
    return {
        "layers": len(weights),
        "widths": [weights[0].shape[1], *(w.shape[0] for w in weights)],
        "weights": [None, *weights],
        "slopes": [0.0, *held],
    }


def matrix(t: Tensor | None) -> dict[str, Any] | None:
    """The fields of Matrix."""
    return None if t is None else {"values": t, "stride": t.stride(0)}


def by_layer(layers: Sequence[int], tensors: Sequence[Any], count: int) -> list[Any]:
    """The tensors in the places 0 .. count of their layers."""
    found = [None] * (count + 1)
    for layer, t in zip(layers, tensors, strict=True):
        found[layer] = t
    return found


@dataclass(frozen=True)
class Attribute:
    """mlp_attribute in one launch: its arguments, and where its results will be."""

    record: Record
    results: tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]

    @classmethod
    def of(
        cls,
        x: Tensor,
        weights: Sequence[Tensor],
        slopes: Sequence[float],
        u: Tensor,
        keep_h: Sequence[int],
        keep_g: Sequence[int],
    ) -> "Attribute":
        last, rows = len(weights), len(x)
        network = layers_of(weights, slopes)
        widths = network["widths"]
        y, a = poison(rows, widths[-1], like=x), poison(rows, widths[0], like=x)
        bits = [poison(rows, words(n), like=x, dtype=torch.int32) for n in widths[1:-1]]
        h, g = ([poison(rows, widths[k], like=x) for k in keep] for keep in (keep_h, keep_g))
        record = Record(
            AttributeArguments(),
            net=network,
            x=matrix(x),
            u=matrix(u),
            y=y,
            a=a,
            bits=[None, *bits],
            h=by_layer(keep_h, h, last),
            g=by_layer(keep_g, g, last),
            rows=rows,
        )
        return cls(record, (y, a, bits, h, g))


class Pairs:
    """The pairs of the trained layers: memory [rows, pitch] for what the sweeps keep of them, and the tiles."""

    def __init__(self, widths: Sequence[int], trained: Sequence[int], like: Tensor, rows: int) -> None:
        self.widths, self.trained, self.like, self.rows = widths, trained, like, rows
        last = len(widths) - 1
        self.v, self.deltas = [None] * (last + 1), [None] * (last + 1)
        self.task, self.own = [None] * (last + 1), [None] * (last + 1)
        self.gradients = by_layer(trained, [poison(widths[k], widths[k - 1], like=like) for k in trained], last)

    def _kept(self, layer: int) -> Tensor:
        return poison(self.rows, -(-self.widths[layer] // 8) * 8, like=self.like)

    def keep(self, delta: Tensor | None, g: Sequence[Tensor], h: Sequence[Tensor]) -> None:
        """Of the own chain if there are g, of the task's if there is a delta."""
        for i, layer in enumerate(self.trained):
            if g:
                self.v[layer - 1] = self._kept(layer - 1)
                self.own[layer] = {"left": matrix(g[i]), "right": matrix(self.v[layer - 1])}
            if delta is not None:
                top = layer == len(self.widths) - 1
                self.deltas[layer] = None if top else self._kept(layer)
                left = delta if top else self.deltas[layer]
                self.task[layer] = {"left": matrix(left), "right": matrix(h[i])}

    def arguments(self, part_rows: int) -> dict[str, Any]:
        """The fields of PairArguments; none where nothing is trained."""
        if not self.trained:
            return {}
        sizes = [0 if t is None else t.numel() for t in self.gradients[1:]]
        tiles = [
            0 if t is None else -(-n // 64) * -(-k // 128)
            for t, (k, n) in zip(self.gradients[1:], itertools.pairwise(self.widths), strict=True)
        ]
        places = [0, 0, *itertools.accumulate(sizes)]
        parts = -(-self.rows // part_rows)
        return {
            "layers": len(self.widths) - 1,
            "widths": self.widths,
            "task": self.task,
            "own": self.own,
            "tiles": [0, 0, *itertools.accumulate(tiles)],
            "places": places,
            "gradients": self.gradients,
            "partials": poison(parts, places[-1], like=self.like, dtype=torch.float32),
            "done": torch.zeros(sum(tiles), dtype=torch.int32),
            "rows": self.rows,
            "parts": parts,
            "part_rows": part_rows,
        }


@dataclass(frozen=True)
class Backward:
    """mlp_attribute_backward in one launch: its arguments, and where its results will be."""

    record: Record
    results: tuple[list[Tensor], Tensor, Tensor]

    @classmethod
    def of(
        cls,
        part_rows: int,
        x: Tensor | None,
        a: Tensor | None,
        s: Tensor | None,
        c: Tensor | None,
        delta: Tensor | None,
        weights: Sequence[Tensor],
        slopes: Sequence[float],
        bits: Sequence[Tensor],
        g: Sequence[Tensor],
        h: Sequence[Tensor],
        trained: Sequence[int],
        output_tangent: bool = False,
        input_cotangent: bool = False,
    ) -> "Backward":
        like, network = weights[0], layers_of(weights, slopes)
        last, widths, rows = len(weights), network["widths"], len(x if x is not None else delta)
        v_end = poison(rows, widths[-1], like=like) if output_tangent else None
        delta_end = poison(rows, widths[0], like=like) if input_cotangent else None
        pairs = Pairs(widths, trained, like, rows)
        pairs.keep(delta, g, h)
        fields = pairs.arguments(part_rows)
        record = Record(
            BackwardArguments(),
            net=network,
            **{name: matrix(t) for name, t in (("x", x), ("a", a), ("s", s), ("c", c), ("delta", delta))},
            v_end=v_end,
            delta_end=delta_end,
            bits=[None, *bits],
            v=pairs.v,
            deltas=pairs.deltas,
            rows=rows,
            up=0 if x is None else last if output_tangent else max(trained, default=1) - 1,
            down=0 if delta is None else last if input_cotangent else last - min(trained, default=last),
            tickets=torch.zeros(1 + fields.get("parts", 0), dtype=torch.int32),
            pairs=fields,
        )
        ends = (like.new_empty(0) if end is None else end for end in (v_end, delta_end))
        return cls(record, ([pairs.gradients[k] for k in trained], *ends))


@dataclass(frozen=True)
class OnShim:
    """The operators by kernels under g++. math: of MATHS; rows: of a block; part_rows: of the batch's parts."""

    math: str
    rows: int = 32
    part_rows: int = 64
    mode: str = "plain"
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    kernels: Path = shim.KERNELS

    def _run(self, header: str, record: Record) -> None:
        text = _filled(LAUNCH + DRIVERS[header], self.math, self.rows)
        shim.build(text, self.mode, self.kernels).run(*record.for_shim(), environment=self.environment)

    def mlp_attribute(self, *args: Any) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """As in kernels/reference."""
        call = Attribute.of(*args)
        if len(args[0]):
            self._run("mlp_attribute", call.record)
        return call.results

    def mlp_attribute_backward(self, *args: Any) -> tuple[list[Tensor], Tensor, Tensor]:
        """As in kernels/reference."""
        call = Backward.of(self.part_rows, *args)
        self._run("mlp_attribute_backward", call.record)
        return call.results


class Compiled(OnShim):
    """The same by nvcc's PTX for sm_80. The launchers run on the CPU and say what they would launch."""

    def _run(self, header: str, record: Record) -> None:
        structure, *rest = record.for_shim()
        launch = np.zeros(2, np.int64)  # blocks, and bytes of shared memory
        plan = _filled(RECORD + DRIVERS[header], self.math, self.rows)
        shim.build(plan, kernels=self.kernels).run(structure, *rest, launch)
        record.structure = type(record.structure).from_buffer_copy(structure)
        kernel = _kernel(header, self.math, self.rows, self.kernels)
        emulator.run(kernel, [record], int(launch[0]), shared_bytes=int(launch[1]))


@functools.cache
def _kernel(header: str, math: str, rows: int, kernels: Path) -> ptx.Kernel:
    return emulator.parse(nvcc.ptx(instances(header, (math, rows)), kernels))
