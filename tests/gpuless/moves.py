"""Instructions that move values: between registers, from parameters, and to and from memory."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .formats import Array
from .memory import SHARED, Memory
from .ptx import PACKED, UINT, Instruction, Operand, PtxError, dtype, width


def as_list(operand: Operand) -> list[str]:
    """The names of an operand, which may be one or a vector."""
    return operand if isinstance(operand, list) else [operand]


_ATOMICS: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
}


class Moves(Memory):
    """Handlers of moves, loads, stores and atomics."""

    def i_mov(self, x: Instruction, active: Array) -> None:
        target, source = x.args
        bits = width(x.kind)
        if isinstance(source, list):  # pack
            part = bits // len(source)
            packed = np.zeros(self.count, UINT[bits])
            for i, name in enumerate(source):
                packed = packed | self.get(name, f"u{part}").astype(packed.dtype) << packed.dtype.type(i * part)
            self.put(str(target), packed, active)
        elif isinstance(target, list):  # unpack
            part = bits // len(target)
            whole = self.get(source, f"u{bits}")
            for i, name in enumerate(target):
                self.put(name, (whole >> whole.dtype.type(i * part)).astype(UINT[part]), active)
        else:
            self.put(target, self.get(source, x.kind), active)

    def i_cvta(self, x: Instruction, active: Array) -> None:
        self.put(x.args[0], self.get(x.args[1], x.kind), active)

    def i_ld(self, x: Instruction, active: Array) -> None:
        target, source = x.args
        if "param" in x.modifiers and self._are_parameters(source, active):
            self.put(target, self._parameter(source, active, x), active)
            return
        targets = as_list(target)
        size = width(x.kind) // 8
        raw = self.load(bool(x.modifiers & SHARED), self.address(source), size * len(targets), active, x)
        for i, name in enumerate(targets):
            part = np.ascontiguousarray(raw[:, i * size : (i + 1) * size])
            self.put(name, part.view(dtype(x.kind))[:, 0], active)

    def _are_parameters(self, source: str, active: Array) -> bool:
        """Whether these are addresses of parameters, and not of a structure."""
        return bool((self.address(source)[active] < np.uint64(8 * len(self.parameters))).all())

    def _parameter(self, source: str, active: Array, x: Instruction) -> Array:
        every = np.array([int(value) for value in self.parameters.values()], np.uint64)
        places = np.where(active, self.address(source), np.uint64(0))
        if (places % np.uint64(8)).any():
            raise PtxError("not emulated: a part of a parameter: " + x.text)
        return every[places // np.uint64(8)].astype(UINT[width(x.kind)]).view(dtype(x.kind))

    def i_st(self, x: Instruction, active: Array) -> None:
        target, source = x.args
        values = [np.ascontiguousarray(self.get(name, f"u{width(x.kind)}")) for name in as_list(source)]
        raw = np.concatenate([value.view(np.uint8).reshape(self.count, -1) for value in values], 1)
        self.store(bool(x.modifiers & SHARED), self.address(target), raw, active, x)

    def i_atom(self, x: Instruction, active: Array) -> None:
        self._atomic(x, active, x.args[0], x.args[1], x.args[2:])

    def i_red(self, x: Instruction, active: Array) -> None:
        self._atomic(x, active, None, x.args[0], x.args[1:])

    def _atomic(self, x: Instruction, active: Array, target: Any, place: str, operands: list[Any]) -> None:
        size, kind = width(x.kind) // 8, dtype(x.kind)
        name = next((q for q in x.op[1:] if q in _ATOMICS or q == "cas"), None)
        if name is None or x.kind in PACKED or x.kind == "bf16":
            raise PtxError("not emulated: " + x.text)
        address, values = self.address(place), [self.get(operand, x.kind) for operand in operands]
        old = np.zeros(self.count, kind)
        if x.modifiers & SHARED:
            parts = [(self.shared, np.nonzero(active)[0], self.shared_index(address, size, active, x)[:, 0])]
        else:
            parts = list(self.global_parts(address, size, active, x))
        for memory, threads, offset in parts:
            view = memory[: memory.size // size * size].view(kind)
            for thread, j in zip(threads, offset // size, strict=True):  # one at a time, in the order of threads
                old[thread] = view[j]
                if name == "cas":
                    view[j] = values[1][thread] if view[j] == values[0][thread] else view[j]
                else:
                    view[j] = _ATOMICS[name](view[j], values[0][thread])
        if target:
            self.put(target, old, active)
