"""The least bytes that a training step with a prior moves layer by layer: a formula of the shapes of its layers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .problem import Problem

PRODUCTS = ("mm", "convolution")
SUMS = ("add", "add_")
ACTIVATIONS = ("relu", "relu_")
POOLS = ("max_pool2d_with_indices",)
AVERAGES = ("mean", "_adaptive_avg_pool2d")
FREE = ("_unsafe_view", "detach", "clone")  # what reads an image may read it in any order


@dataclass(eq=False)
class Layer:
    """A layer of the forward sweep. kind: PyTorch's operator. given, made, weight: elements taken, returned, its own.

    reads: the layers that made what it takes, None for the network's input.
    """

    kind: str
    given: int
    made: int
    weight: int
    reads: "tuple[Layer | None, ...]"


class _Layers(TorchDispatchMode):
    """Notes the layers that run below it; ValueError for an operator that none of the kinds above is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = {_memory(p) for p in model.parameters()}
        self.found: list[Layer] = []
        self.makers: dict[int, Layer | None] = {}
        self.alive: list[Tensor] = []  # so that no memory is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        name, out = func._schema.name.rpartition("::")[2], result[0] if isinstance(result, tuple) else result
        values = [t for t in args if isinstance(t, Tensor) and _memory(t) not in self.weights]
        weight = sum(t.numel() for t in args if isinstance(t, Tensor) and _memory(t) in self.weights)
        reads = tuple(self.makers.get(_memory(t)) for t in values)
        layer = reads[0]
        if name in (*PRODUCTS, *SUMS, *ACTIVATIONS, *POOLS, *AVERAGES):
            layer = Layer(name, values[0].numel(), out.numel(), weight, reads)
            self.found.append(layer)
        elif name not in FREE:
            raise ValueError(f"there is no least traffic of operator {name!r}")
        self.makers[_memory(out)] = layer
        self.alive += [*values, out]
        return result


def _memory(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def layers_of(p: Problem) -> list[Layer]:
    """The layers of the model as PyTorch runs it, in order."""
    with torch.no_grad(), _Layers(p.model) as mode:
        p.model(p.x)
    return mode.found


def _mask(elements: int) -> int:
    return elements // 8


def _pass(layer: Layer, pooled: "dict[Layer | None, Layer]", size: int, library: Sequence[str]) -> int:
    """Bytes of a layer in one sweep, up or down."""
    if layer.kind in ACTIVATIONS:
        if layer in pooled:
            return _mask(pooled[layer].made)
        apart = layer.reads[0] is not None and layer.reads[0].kind in library
        return _mask(layer.made) + (2 * size * layer.made if apart else 0)
    if layer.kind in SUMS:
        return size * layer.made * (3 if "convolution" in library else 1)
    return size * (layer.given + layer.made + layer.weight) + (layer.made if layer.kind in POOLS else 0)


def least_bytes(layers: Sequence[Layer], size: int, chains: int, library: Sequence[str] = ()) -> int:
    """Bytes of the network's part of a step, of values of `size` bytes, in one chain or two.

    The sweeps are those of section 2 of the design, and every product of them is one kernel that reads its factors and
    writes its result once. What can be done to a result on its way out costs no more than what it needs beside it: a
    mask, a bit for each element, written by the forward sweep and read by all others; and the other summand of a sum.
    So a sweep moves, for

        a product       what it takes, what it returns, and its weight
        a max pool      what it takes and what it returns, and a byte for each maximum
        an average      what it takes and what it returns
        a sum           one summand (on the way down: where a value was read twice, one of two cotangents)
        an activation   its mask; behind a pool, which loses nothing, where the pool alone reads it

    no matter which way it goes. A step of one chain has three sweeps: forward; attribution, which ends by reading x and
    g_0 and writing A; tangent, which starts by reading a and x and writing v_0, and stops before the last product, as
    nobody asks for the output's tangent. Two chains have the cotangent sweep, too, which stops before the first
    product. Then each product has its weight gradient, which reads its pair of factors for each chain and writes a
    weight.

    library: the kinds of products that are a library's, out of which nothing else comes: the activations behind them
    and, behind convolutions, the sums read and write their values once more.
    """
    readers = Counter(read for layer in layers for read in layer.reads)
    pooled = {layer.reads[0]: layer for layer in layers if layer.kind in POOLS and readers[layer.reads[0]] == 1}
    products = [layer for layer in layers if layer.kind in PRODUCTS]
    first, last = products[0], products[-1]
    sweep = sum(_pass(layer, pooled, size, library) for layer in layers)
    forward, attribution = sweep, sweep + 3 * size * first.given
    tangent = sweep + 3 * size * first.given - _pass(last, pooled, size, library)
    cotangent = 0 if chains == 1 else sweep - _pass(first, pooled, size, library)
    gradients = sum(size * (chains * (layer.given + layer.made) + layer.weight) for layer in products)
    return forward + attribution + tangent + cotangent + gradients
