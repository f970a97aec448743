"""Rules of the layers that rename, move or drop elements: shapes, orders of dimensions, parts."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import leaves
from ..layer import Frame, Layer, Pair, Residual, unsupported
from .maps import NUMPY, CopyRule, IdentityRule, MapRule, MethodRule, by_numbers, of_one, register, zeros
from .registry import Call, Constant, Size, Value, register_module


class LayoutRule(IdentityRule):
    """contiguous, or a copy, in a memory format."""

    def __init__(self, memory_format: torch.memory_format) -> None:
        self.memory_format = memory_format

    def apply(self, t: Tensor) -> Tensor:
        return t.contiguous(memory_format=self.memory_format)


class ReshapeRule(MethodRule):
    """flatten, view, reshape, squeeze, unsqueeze, unflatten: the elements stay in order."""

    apart = True

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return tangents[0].reshape(frame.out_shape)  # where strides forbid a view it copies

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        return g.reshape(shape)


class FlattenRule(ReshapeRule):
    """The module Flatten, of any dimensions but the batch."""

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        out, shape = self.apply(*inputs), inputs[0].shape
        if out.dim() == 0 or out.shape[0] != shape[0]:
            reason = f"it merges the batch with other dimensions ({list(shape)} to {list(out.shape)})"
            raise unsupported(reason, "Use start_dim=1").at(self.name, self.kind)
        return out, ()


class SwapRule(MethodRule):
    """transpose and t: their own inverse."""

    apart = True

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        return self.apply(g)


class ReverseRule(MapRule):
    """T: all dimensions in reverse order."""

    apart = True
    aliases = True

    def apply(self, t: Tensor) -> Tensor:
        return t.permute(*reversed(range(t.dim())))

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        return self.apply(g)


class PermuteRule(MethodRule):
    """permute."""

    apart = True

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        order = [d % g.dim() for d in self.args[0]]
        return g.permute([order.index(d) for d in range(g.dim())])


class MoveRule(MethodRule):
    """movedim."""

    apart = True

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        source, destination = self.args
        return g.movedim(destination, source)


class FlipRule(SwapRule):
    """flip."""

    apart = False  # it may turn the batch round
    aliases = False


class RollRule(MethodRule):
    """roll."""

    aliases = False

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        shifts, dims = self.args
        back = tuple(-s for s in shifts) if isinstance(shifts, (tuple, list)) else -shifts
        return g.roll(back, dims)


class PartRule(MethodRule):
    """narrow, select and indexing by integers and slices: a view that shows each element once at most."""

    apart = True

    def transposed(self, g: Tensor, shape: torch.Size) -> Tensor:
        out = zeros(shape, g)
        self.apply(out).copy_(g)
        return out


class PieceRule(PartRule):
    """One of the tensors that chunk, split, tensor_split or unbind returns."""

    def __init__(self, method: str, index: int, *args: Any) -> None:
        super().__init__(method, *args)
        self.index = index

    def apply(self, t: Tensor) -> Tensor:
        out: Tensor = getattr(t, self.method)(*self.args)[self.index]
        return out


class IndexRule(Layer):
    """index_select along a dimension. The index is a parameter without a gradient."""

    apart = True
    recomputes = True

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def forward(self, params: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, Residual]:
        (h,), (index,) = inputs, params
        return h.index_select(self.dim, index), ()

    def tangent(self, frame: Frame, *tangents: Tensor) -> Tensor:
        return tangents[0].index_select(self.dim, frame.params[0])

    def cotangent(self, frame: Frame, g: Tensor) -> Tensor:
        return zeros(frame.shapes[0], g).index_add_(self.dim, frame.params[0], g)

    def parameter_gradients(self, frame: Frame, pairs: Sequence[Pair]) -> tuple[Tensor | None, ...]:
        return (None,)


def piece(target_name: str, args: Sequence[Any], kwargs: dict[str, Any], index: int) -> Call:
    """The call that makes one of the tensors of chunk, split, tensor_split or unbind, given the call's arguments."""
    return _PIECES[target_name](index, *args, **{NUMPY.get(name, name): a for name, a in kwargs.items()})


def _chunk(index: int, input: Any, chunks: Any, dim: Any = 0) -> Call:  # noqa: A002
    return Call(PieceRule("chunk", index, chunks, dim), (input,))


def _split(
    index: int, tensor: Any, split_size_or_sections: Any = None, dim: Any = 0, *, split_size: Any = None
) -> Call:
    size = split_size_or_sections if split_size is None else split_size
    return Call(PieceRule("split", index, size, dim), (tensor,))


def _tensor_split(
    index: int,
    input: Any,  # noqa: A002
    indices_or_sections: Any = None,
    dim: Any = 0,
    *,
    indices: Any = None,
    sections: Any = None,
) -> Call:
    where = next((a for a in (indices_or_sections, indices, sections) if a is not None), None)
    if isinstance(where, (Value, Constant)):
        raise unsupported("it splits at places that a tensor holds", "Give them as a tuple of integers")
    return Call(PieceRule("tensor_split", index, where, dim), (input,))


def _unbind(index: int, input: Any, dim: Any = 0) -> Call:  # noqa: A002
    return Call(PieceRule("unbind", index, dim), (input,))


_PIECES: dict[str, Callable[..., Call]] = {
    "chunk": _chunk,
    "split": _split,
    "tensor_split": _tensor_split,
    "unbind": _unbind,
}


def _flatten(input: Any, start_dim: Any = 0, end_dim: Any = -1) -> Call:  # noqa: A002
    return Call(ReshapeRule("flatten", start_dim, end_dim), (input,))


def _unflatten(input: Any, dim: Any, sizes: Any) -> Call:  # noqa: A002
    return Call(ReshapeRule("unflatten", dim, sizes), (input,))


def _squeeze(input: Any, *dim: Any, **named: Any) -> Call:  # noqa: A002
    return Call(ReshapeRule("squeeze", *dim, *named.values()), (input,))


def _unsqueeze(input: Any, dim: Any) -> Call:  # noqa: A002
    return Call(ReshapeRule("unsqueeze", dim), (input,))


def _transpose(input: Any, dim0: Any = None, dim1: Any = None, *, axis0: Any = None, axis1: Any = None) -> Call:  # noqa: A002
    dims = (dim0 if axis0 is None else axis0, dim1 if axis1 is None else axis1)
    return Call(SwapRule("transpose", *dims), (input,))


def _movedim(input: Any, source: Any, destination: Any) -> Call:  # noqa: A002
    return Call(MoveRule("movedim", source, destination), (input,))


def _roll(input: Any, shifts: Any, dims: Any = ()) -> Call:  # noqa: A002
    return Call(RollRule("roll", shifts, () if dims is None else dims), (input,))


def _contiguous(input: Any, memory_format: Any = torch.contiguous_format) -> Call:  # noqa: A002
    return Call(LayoutRule(memory_format), (input,))


def _clone(input: Any, *, memory_format: Any = torch.preserve_format) -> Call:  # noqa: A002
    return Call(CopyRule() if memory_format == torch.preserve_format else LayoutRule(memory_format), (input,))


def _convert(*args: Any, **kwargs: Any) -> Call:
    raise unsupported(
        "it changes the dtype or the device within the network, and the sweeps keep one",
        "Convert the model and its inputs instead",
    )


def _narrow(input: Any, dim: Any, start: Any, length: Any) -> Call:  # noqa: A002
    if isinstance(start, (Value, Constant)):
        raise unsupported("it starts where a tensor says", "Give the start as an integer")
    return Call(PartRule("narrow", dim, start, length), (input,))


def _select(input: Any, dim: Any, index: Any) -> Call:  # noqa: A002
    return Call(PartRule("select", dim, index), (input,))


def _is_basic(part: Any) -> bool:
    """Whether part of an index picks a view: an integer, None, an ellipsis, or a slice of integers."""
    basic = (int, torch.SymInt, type(None), type(...), Size)
    return all(isinstance(a, basic) and not isinstance(a, bool) for a in leaves(part))


def _getitem(input: Any, index: Any) -> Call:  # noqa: A002
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, (list, tuple)) or not _is_basic(part) for part in parts):
        raise unsupported("it indexes with a tensor, a list or a truth value", "Use slices, or index_select")
    return Call(PartRule("__getitem__", index), (input,))


def _index_select(input: Any, dim: Any, index: Any) -> Call:  # noqa: A002
    if not isinstance(index, Constant):
        raise unsupported("its index depends on the network's input", "Use a buffer as the index")
    return Call(IndexRule(dim), (input,), (index,))


register_module(nn.Identity, build=lambda m: IdentityRule())
register_module(nn.Flatten, build=lambda m: FlattenRule("flatten", m.start_dim, m.end_dim))
register_module(nn.Unflatten, build=lambda m: ReshapeRule("unflatten", m.dim, m.unflattened_size))
register(torch.flatten, "flatten", build=_flatten)
register(torch.unflatten, "unflatten", build=_unflatten)
register("view", build=by_numbers("view", ReshapeRule))
register(torch.reshape, "reshape", build=by_numbers("reshape", ReshapeRule))
register(torch.squeeze, "squeeze", build=_squeeze)
register(torch.unsqueeze, "unsqueeze", build=_unsqueeze)
register(torch.permute, "permute", build=by_numbers("permute", PermuteRule))
register(torch.transpose, torch.swapaxes, torch.swapdims, "transpose", "swapaxes", "swapdims", build=_transpose)
register(torch.movedim, torch.moveaxis, "movedim", "moveaxis", build=_movedim)
register(torch.t, "t", build=of_one(lambda: SwapRule("t")))
register("T", build=of_one(ReverseRule))
register("mT", build=of_one(lambda: SwapRule("transpose", -2, -1)))
register(torch.flip, "flip", build=by_numbers("flip", FlipRule))
register(torch.roll, "roll", build=_roll)
register("contiguous", build=_contiguous)
register(torch.clone, "clone", build=_clone)
register("to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda", build=_convert)
register(torch.narrow, "narrow", build=_narrow)
register(torch.select, "select", build=_select)
register(operator.getitem, build=_getitem)
register(torch.index_select, "index_select", build=_index_select)
