"""Arguments of CUDA kernels that are structures: filled in Python, for the shim and for the executor of PTX alike.

The classes mirror those of kernels/cuda; their sizes are compared with what the compiler says.
"""

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

MOST_LAYERS = 16


class Pointer(ctypes.c_uint64):
    """A place in a structure for a tensor."""


def by_layer(kind: Any) -> Any:
    """An array of the layers 0 .. MOST_LAYERS."""
    return kind * (MOST_LAYERS + 1)


class Network(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_int32),
        ("widths", by_layer(ctypes.c_int32)),
        ("weights", by_layer(Pointer)),
        ("slopes", by_layer(ctypes.c_float)),
    )


class SharedPlan(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int32),
        ("pitches", ctypes.c_int32 * 2),
        ("tiles", ctypes.c_int32 * 2),
        ("masks", by_layer(ctypes.c_int32)),
        ("masks_end", ctypes.c_int32),
        ("stages", ctypes.c_int32),
        ("bytes", ctypes.c_int32),
    )


class Matrix(ctypes.Structure):
    _fields_ = (("values", Pointer), ("stride", ctypes.c_int64))


class AttributeArguments(ctypes.Structure):
    _fields_ = (
        ("net", Network),
        ("plan", SharedPlan),
        ("x", Matrix),
        ("u", Matrix),
        ("y", Pointer),
        ("a", Pointer),
        ("bits", by_layer(Pointer)),
        ("h", by_layer(Pointer)),
        ("g", by_layer(Pointer)),
        ("rows", ctypes.c_int64),
    )


class Pair(ctypes.Structure):
    _fields_ = (("left", Matrix), ("right", Matrix))


class PairArguments(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_int32),
        ("widths", by_layer(ctypes.c_int32)),
        ("task", by_layer(Pair)),
        ("own", by_layer(Pair)),
        ("tiles", ctypes.c_int32 * (MOST_LAYERS + 2)),
        ("places", ctypes.c_int64 * (MOST_LAYERS + 2)),
        ("gradients", by_layer(Pointer)),
        ("partials", Pointer),
        ("done", Pointer),
        ("rows", ctypes.c_int64),
        ("parts", ctypes.c_int32),
        ("part_rows", ctypes.c_int32),
    )


class BackwardArguments(ctypes.Structure):
    _fields_ = (
        ("net", Network),
        ("plan", SharedPlan),
        ("x", Matrix),
        ("a", Matrix),
        ("s", Matrix),
        ("c", Matrix),
        ("delta", Matrix),
        ("v_end", Pointer),
        ("delta_end", Pointer),
        ("bits", by_layer(Pointer)),
        ("v", by_layer(Pointer)),
        ("deltas", by_layer(Pointer)),
        ("rows", ctypes.c_int64),
        ("up", ctypes.c_int32),
        ("down", ctypes.c_int32),
        ("sweeps", ctypes.c_int32),
        ("tickets", Pointer),
        ("pairs", PairArguments),
    )


class Record:
    """A structure, and the tensors that its pointers lead to."""

    def __init__(self, structure: ctypes.Structure, **values: Any) -> None:
        self.structure, self.buffers = structure, {}
        _fill(structure, values, 0, self.buffers)

    def bytes_with(self, address: Callable[[Tensor], int]) -> bytes:
        """The structure, its pointers being what `address` says of their tensors."""
        found = bytearray(self.structure)
        for place, tensor in self.buffers.items():
            found[place : place + 8] = address(tensor).to_bytes(8, "little")
        return bytes(found)

    def for_shim(self) -> Iterator[Any]:
        """Arguments of a program that calls `structure_of` (shim/main.h)."""
        tensors = {id(tensor): tensor for tensor in self.buffers.values()}
        numbers = {key: i for i, key in enumerate(tensors)}
        yield np.frombuffer(bytes(self.structure), np.uint8).copy()
        yield np.array([(place, numbers[id(tensor)]) for place, tensor in self.buffers.items()], np.int64)
        yield from tensors.values()


def _fill(structure: Any, values: Any, start: int, buffers: dict[int, Tensor]) -> None:
    """Write values into the fields of a structure or the elements of an array; None leaves zero."""
    if isinstance(structure, ctypes.Array):
        kind = structure._type_
        places = [(i, kind, i * ctypes.sizeof(kind), value) for i, value in enumerate(values)]
    else:
        kinds = dict(structure._fields_)
        places = [(n, kinds[n], getattr(type(structure), n).offset, value) for n, value in values.items()]
    for name, kind, offset, value in places:
        if value is None:
            continue
        if kind is Pointer:
            buffers[start + offset] = value
        elif issubclass(kind, (ctypes.Structure, ctypes.Array)):
            part = structure[name] if isinstance(name, int) else getattr(structure, name)
            _fill(part, value, start + offset, buffers)
        elif isinstance(name, int):
            structure[name] = value
        else:
            setattr(structure, name, value)
