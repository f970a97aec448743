"""Rules of the layers that lay tensors side by side: cat, stack and their relatives."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..layer import Frame, Layer, Residual, not_homogeneous
from .maps import register
from .registry import Call, Value


def check_dtypes(layer: Layer, tensors: Sequence[Tensor]) -> None:
    """Raise ValueError unless the inputs of a layer have one dtype: a cotangent keeps the dtype of its tensor."""
    dtypes = {t.dtype: None for t in tensors}
    if len(dtypes) > 1:
        raise ValueError(f"{layer.where} joins tensors of {' and '.join(map(str, dtypes))}; convert them to one dtype")


class CatRule(Layer):
    """cat; with `lift`, of tensors that are first made to have that many dimensions at least."""

    apart = True
    recomputes = True
    joins = True

    def __init__(self, dim: Any, lift: int = 0) -> None:
        self.dim, self.lift = dim, lift

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        lifted = [t.reshape(self._lifted(t.shape)) if self.lift else t for t in tensors]
        return torch.cat(lifted, self._dim(lifted[0].dim()))

    def _lifted(self, shape: Sequence[int]) -> Sequence[int]:
        return [*[1] * (self.lift - len(shape)), *shape]

    def _dim(self, dims: int) -> Any:
        return min(self.dim, dims - 1) if self.lift else self.dim

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        check_dtypes(self, inputs)
        return self.join(inputs), ()

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return self.join(tangents)

    def cotangent(self, frame: Frame, g: Tensor) -> tuple[Tensor, ...]:
        dims = g.dim()
        dim, shapes = self._dim(dims), [self._lifted(shape) for shape in frame.shapes]
        # cat passes over empty vectors among tensors of more dimensions.
        sizes = [shape[dim] if len(shape) == dims else 0 for shape in shapes]
        pieces = g.split_with_sizes(sizes, dim)
        return tuple(piece.reshape(shape) for piece, shape in zip(pieces, frame.shapes, strict=True))


class StackRule(Layer):
    """stack: along a new dimension."""

    apart = True
    recomputes = True
    joins = True

    def __init__(self, dim: Any) -> None:
        self.dim = dim

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        check_dtypes(self, inputs)
        return torch.stack(inputs, self.dim), ()

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return torch.stack(tangents, self.dim)

    def cotangent(self, frame: Frame, g: Tensor) -> tuple[Tensor, ...]:
        return g.unbind(self.dim)


def _joined(tensors: Sequence[Any], layer: Layer) -> Call:
    if not all(isinstance(t, Value) for t in tensors):
        reason = (
            "it joins a constant to what depends on the network's input, so its output does not scale with the input"
        )
        raise not_homogeneous(reason, "Leave the constant out, or make it an input of the network")
    return Call(layer, tuple(tensors))


def _cat(tensors: Any, dim: Any = 0) -> Call:
    return _joined(tensors, CatRule(dim))


def _stack(tensors: Any, dim: Any = 0) -> Call:
    return _joined(tensors, StackRule(dim))


def _lifted_cat(dim: int, lift: int) -> Callable[..., Call]:
    return lambda tensors: _joined(tensors, CatRule(dim, lift))


register(torch.cat, torch.concat, torch.concatenate, build=_cat)
register(torch.stack, build=_stack)
register(torch.hstack, build=_lifted_cat(1, 1))
register(torch.vstack, build=_lifted_cat(0, 2))
