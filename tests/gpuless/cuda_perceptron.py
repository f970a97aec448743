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
from .records import AttributeArguments, Record

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
            x={"values": x, "stride": x.stride(0)},
            u={"values": u, "stride": u.stride(0)},
            y=y,
            a=a,
            bits=[None, *bits],
            h=by_layer(keep_h, h, last),
            g=by_layer(keep_g, g, last),
            rows=rows,
        )
        return cls(record, (y, a, bits, h, g))


@dataclass(frozen=True)
class OnShim:
    """The operators by kernels under g++. math: of MATHS; rows: of a block."""

    math: str
    rows: int = 32
    mode: str = "plain"
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    kernels: Path = shim.KERNELS

    def _run(self, driver: str, record: Record) -> None:
        text = driver.replace("MATH", STRUCTS[self.math]).replace("ROWS", str(self.rows))
        shim.build(text, self.mode, self.kernels).run(*record.for_shim(), environment=self.environment)

    def mlp_attribute(self, *args: Any) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """As in kernels/reference."""
        call = Attribute.of(*args)
        if len(args[0]):
            self._run(ATTRIBUTE, call.record)
        return call.results


def network(widths: Sequence[int], rows: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """Arguments of mlp_attribute that keep everything."""
    weights = [(torch.randn(n, k) * (2 / k) ** 0.5).to(dtype) for k, n in itertools.pairwise(widths)]
    slopes = [(0.0, 0.3)[i % 2] for i in range(len(weights) - 1)]
    keep = list(range(len(weights)))
    x, u = torch.randn(rows, widths[0]).to(dtype), torch.randn(rows, widths[-1]).to(dtype)
    return x, weights, slopes, u, keep[1:], keep
