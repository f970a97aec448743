"""The CUDA kernels of a whole perceptron as functions of tensors, by the shim."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from xattr_cuda.kernels.reference.bits import words

from . import shim
from .records import AttributeArguments, BackwardArguments, Record, ReductionArguments

MATHS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""The dtype of every way to multiply."""

STRUCTS = {"fp32": "Fp32", "tf32": "Tf32", "bf16": "Bf16", "fp16": "Fp16"}

ATTRIBUTE = """
#include "cuda/mlp_attribute.cuh"
using namespace xattr;
void run(const cuemu::Arguments& a) {
  auto args = cuemu::structure_of<AttributeArguments<MATH::Value>>(a);
  args.plan = attribute_plan(args.net, ROWS);
  const int blocks = static_cast<int>((args.rows + ROWS - 1) / ROWS);
  cuemu::launch(blocks, kThreads, args.plan.bytes, [&] { mlp_attribute_kernel<MATH, ROWS>(args); });
}
"""

BACKWARD = """
#include "cuda/mlp_attribute_backward.cuh"
using namespace xattr;
void run(const cuemu::Arguments& a) {
  auto args = cuemu::structure_of<BackwardArguments<MATH::Value>>(a);
  args.plan = backward_plan(args.net, ROWS);
  const int blocks = static_cast<int>(a.integer(a.all.size() - 1));
  cuemu::launch(blocks, kThreads, args.plan.bytes, [&] { mlp_attribute_backward_kernel<MATH, ROWS>(args); });
}
"""
REDUCTION = """
#include "cuda/mlp_attribute_backward.cuh"
using namespace xattr;
void run(const cuemu::Arguments& a) {
  const auto args = cuemu::structure_of<ReductionArguments<MATH::Value>>(a);
  const int blocks = static_cast<int>((args.places[args.layers + 1] + kThreads - 1) / kThreads);
  cuemu::launch(blocks, kThreads, 0, [&] { add_partials_kernel<MATH::Value>(args); });
}
"""


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


@dataclass(frozen=True)
class Backward:
    """mlp_attribute_backward in two launches: their arguments, and where their results will be."""

    record: Record
    reduction: Record | None
    results: tuple[list[Tensor], Tensor, Tensor]

    @classmethod
    def of(
        cls,
        blocks: int,
        span_rows: int,
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
        v_places, delta_places, size = [-1] * (last + 1), [-1] * (last + 1), 0
        for k in trained:
            if x is not None:
                v_places[k - 1], size = size, size + span_rows * -(-widths[k - 1] // 8) * 8
            if delta is not None and k < last:
                delta_places[k], size = size, size + span_rows * -(-widths[k] // 8) * 8
        gradients = by_layer(trained, [poison(*weights[k - 1].shape, like=like) for k in trained], last)
        places = [0, 0, *itertools.accumulate(0 if t is None else t.numel() for t in gradients[1:])]
        partials = poison(blocks, places[-1], like=like, dtype=torch.float32)
        record = Record(
            BackwardArguments(),
            net=network,
            **{name: matrix(t) for name, t in (("x", x), ("a", a), ("s", s), ("c", c), ("delta", delta))},
            v_end=v_end,
            delta_end=delta_end,
            bits=[None, *bits],
            g=by_layer(trained[: len(g)], [matrix(t) for t in g], last),
            h=by_layer(trained[: len(h)], [matrix(t) for t in h], last),
            scratch=poison(blocks, size, like=like),
            v_places=v_places,
            delta_places=delta_places,
            scratch_size=size,
            partials=partials,
            places=places,
            rows=rows,
            span_rows=span_rows,
            up=0 if x is None else last if output_tangent else max(trained, default=1) - 1,
            down=0 if delta is None else last if input_cotangent else last - min(trained, default=last),
        )
        shared = {"partials": partials, "places": places, "gradients": gradients}
        reduction = Record(ReductionArguments(), blocks=blocks, layers=last, **shared) if trained else None
        ends = (like.new_empty(0) if end is None else end for end in (v_end, delta_end))
        return cls(record, reduction, ([gradients[k] for k in trained], *ends))


@dataclass(frozen=True)
class OnShim:
    """The operators by kernels under g++. math: of MATHS; rows, blocks, span_rows: of a launch."""

    math: str
    rows: int = 32
    blocks: int = 2
    span_rows: int = 64
    mode: str = "plain"
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    kernels: Path = shim.KERNELS

    def _run(self, driver: str, record: Record, *more: int) -> None:
        text = driver.replace("MATH", STRUCTS[self.math]).replace("ROWS", str(self.rows))
        shim.build(text, self.mode, self.kernels).run(*record.for_shim(), *more, environment=self.environment)

    def mlp_attribute(self, *args: Any) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """As in kernels/reference."""
        call = Attribute.of(*args)
        if len(args[0]):
            self._run(ATTRIBUTE, call.record)
        return call.results

    def mlp_attribute_backward(self, *args: Any) -> tuple[list[Tensor], Tensor, Tensor]:
        """As in kernels/reference."""
        rows = len(args[0] if args[0] is not None else args[4])
        blocks = min(self.blocks, -(-rows // self.span_rows))
        call = Backward.of(blocks, self.span_rows, *args)
        self._run(BACKWARD, call.record, blocks)
        if call.reduction is not None:
            self._run(REDUCTION, call.reduction)
        return call.results
