"""Launches, bytes and FLOPs of a case's training step as a GPU takes it, counted without one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cases import Case
from .contestants import CONTESTANTS, double_backward, network, sweeps
from .count import Count, layer_flops, least_flops
from .launches import record
from .problem import Problem, pose
from .traffic import layers_of, least_bytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WHOLE = "mlp_attribute_kernel"  # what sweeps a perceptron in one launch


def _output(p: Problem) -> tuple[Tensor]:
    return (p.model(p.x),)


RESULTS: dict[str, Callable[[Problem], tuple[Tensor, ...]]] = {
    "plain": _output,
    "double backward": double_backward,
    "attribute": sweeps,
}
"""Whose steps are counted: what the network's part of each returns."""
BY_LAYER = "attribute, by layer"


@dataclass(frozen=True)
class OnGpu:
    """A case at a dtype, by who takes the step; `attribute, by layer` runs each layer on the package's own kernels.

    whole: `attribute` sweeps the network in one launch. network: the step without the criterion, the prior and their
    derivatives; step: all of it. least: bytes that the network's part moves at least, layer by layer; library: likewise
    where convolutions are a library's. flops: the least, of either part.
    """

    dtype: str
    whole: bool
    network: dict[str, Count]
    step: dict[str, Count]
    least: int
    library: int
    flops: int

    def over_least(self, who: str) -> float:
        """Bytes of the network's part over the least."""
        return self.network[who].bytes / self.least

    def over_library(self, who: str) -> float:
        """The same over the least with convolutions of a library."""
        return self.network[who].bytes / self.library

    def over_flops(self, who: str) -> float | None:
        """FLOPs of the network's part over the least; None where an operator has no formula."""
        one = self.network[who]
        return None if one.unknown else one.flops / self.flops

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and words."""
        counts = {
            who: {part: _numbers(getattr(self, part)[who]) for part in ("network", "step")} for who in self.network
        }
        return {
            "sweeps": "whole" if self.whole else "layers",
            "least bytes": self.least,
            "least bytes, convolutions of a library": self.library,
            "least FLOPs": self.flops,
            "counts": counts,
        }


def _numbers(one: Count) -> dict[str, int]:
    flops = {} if one.unknown else {"flops": one.flops}
    return {**flops, "bytes": one.bytes, "launches": one.launches}


def on_gpu(case: Case, dtype: str) -> OnGpu:
    """Count a case at a dtype, `fp32` or `bf16`; RuntimeError where there are no Triton kernels."""
    p = pose(case, DTYPES[dtype], device="meta")
    parts, steps, whole = {}, {}, False
    takers = [(who, who, results, False) for who, results in RESULTS.items()]
    for name, who, results, by_layer in [*takers, (BY_LAYER, "attribute", sweeps, True)]:
        parts[name], launches = record(network(results)(p), by_layer)
        steps[name], _ = record(CONTESTANTS[who].make(p), by_layer)
        whole |= any(one.name == WHOLE for one in launches)
    layers, size = layers_of(p), p.x.element_size()
    least, library = (least_bytes(layers, size, p.chains, kinds) for kinds in ((), ("convolution",)))
    return OnGpu(dtype, whole, parts, steps, least, library, least_flops(layer_flops(p), p.chains))


def counted(case: Case) -> list[OnGpu]:
    """The case at every dtype."""
    return [on_gpu(case, dtype) for dtype in DTYPES]
