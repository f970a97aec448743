"""Comparisons, selections, conversions, special functions, and instructions without an effect here."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .formats import Array, bf16_to_f32, compare, f32_to_bf16, f32_to_tf32, is_float
from .machine import Machine
from .ptx import PACKED, Instruction, PtxError, dtype, width

U32 = np.uint32
_ROUNDINGS = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
_COMBINATIONS = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def reject_modifiers(x: Instruction) -> None:
    """Refuse what would silently change a result; all other modifiers are hints or known to the handlers."""
    bad: set[str] = set()
    if x.op[0] != "cvt":
        bad = {"sat"} | ({"rz", "rm", "rp"} if is_float(x.kind) else set())
    elif x.op[-2] not in PACKED:
        bad = {"rz", "rm", "rp", "relu"} | ({"sat"} if not is_float(x.kind) else set())
    if x.modifiers & bad or (x.op[0] in ("set", "ex2", "tanh") and x.kind in PACKED):
        raise PtxError("not emulated: " + x.text)


def _packed_pair(high: Array, low: Array, to: str) -> Array:
    half = f32_to_bf16 if to == "bf16x2" else lambda values: values.astype(np.float16).view(np.uint16)
    return (half(high).astype(U32) << 16) | half(low)


def _saturated(values: Array, to: str) -> Array:
    """Floating numbers as integers: clamped to their range, NaN as zero."""
    range_ = np.iinfo(dtype(to))
    values = np.clip(np.nan_to_num(values.astype(np.float64)), float(range_.min), float(range_.max))
    if width(to) == 64:  # float64 cannot hold the largest
        values = np.where(values >= float(range_.max), range_.max, values.astype(dtype(to)))
    return values


class Conversions(Machine):
    """Handlers of comparisons, selections, conversions and special functions."""

    def _compared(self, x: Instruction) -> Array:
        a, b = self.get(x.args[1], x.kind), self.get(x.args[2], x.kind)
        return compare(x.op[1], *((bf16_to_f32(a), bf16_to_f32(b)) if x.kind == "bf16" else (a, b)))

    def i_setp(self, x: Instruction, active: Array) -> None:
        """setp.comparison[.combination] p[|q], a, b[, c]: p of the comparison and c, q of its opposite and c.

        Of pairs, p of the low halves and q of the high ones.
        """
        if x.kind in PACKED:
            halves = [np.ascontiguousarray(self.get(name, x.kind)).view(np.uint16) for name in x.args[1:3]]
            values = [h.view(np.float16) if x.kind == "f16x2" else bf16_to_f32(h) for h in halves]
            found, other = compare(x.op[1], *values).reshape(-1, 2).T
        else:
            found = self._compared(x)
            other = ~found
        if len(x.args) > 3:
            combine, c = _COMBINATIONS[x.op[2]], self.get(x.args[3], "pred")
            found, other = combine(found, c), combine(other, c)
        for target, value in zip(x.args[0].split("|"), (found, other), strict=False):
            self.put(target, value, active)

    def i_set(self, x: Instruction, active: Array) -> None:
        true = U32(0x3F800000) if x.op[-2] == "f32" else U32(0xFFFFFFFF)
        self.put(x.args[0], np.where(self._compared(x), true, U32(0)), active)

    def i_selp(self, x: Instruction, active: Array) -> None:
        a, b = self.get(x.args[1], x.kind), self.get(x.args[2], x.kind)
        self.put(x.args[0], np.where(self.get(x.args[3], "pred"), a, b), active)

    def i_cvt(self, x: Instruction, active: Array) -> None:
        to, source = x.op[-2], x.op[-1]
        if to in PACKED:
            high, low = self.get(x.args[1], "f32"), self.get(x.args[2], "f32")
            if "relu" in x.modifiers:
                high, low = np.fmax(high, 0), np.fmax(low, 0)
            found = _packed_pair(high, low, to)
        else:
            values = self.get(x.args[1], source)
            found = self._converted(bf16_to_f32(values) if source == "bf16" else values, to, x)
        self.put(x.args[0], found, active)

    def _converted(self, values: Array, to: str, x: Instruction) -> Array:
        if to == "tf32":
            return f32_to_tf32(values)
        if to == "bf16":
            return f32_to_bf16(values.astype(np.float32))
        if values.dtype.kind == "f":
            for mode, rounded in _ROUNDINGS.items():
                values = rounded(values) if mode in x.modifiers else values
            if not is_float(to):
                values = _saturated(values, to)
            elif "sat" in x.modifiers:
                values = np.clip(np.nan_to_num(values), 0, 1)
        return values.astype(dtype(to))

    def _special(self, x: Instruction, active: Array, function: Callable[[Array], Any]) -> None:
        """The exact value, rounded."""
        if x.kind not in ("f16", "f32", "f64"):
            raise PtxError("not emulated: " + x.text)
        self.put(x.args[0], function(self.get(x.args[1], x.kind).astype(np.float64)).astype(dtype(x.kind)), active)

    def i_ex2(self, x: Instruction, active: Array) -> None:
        self._special(x, active, np.exp2)

    def i_lg2(self, x: Instruction, active: Array) -> None:
        self._special(x, active, np.log2)

    def i_rcp(self, x: Instruction, active: Array) -> None:
        self._special(x, active, np.reciprocal)

    def i_sqrt(self, x: Instruction, active: Array) -> None:
        self._special(x, active, np.sqrt)

    def i_rsqrt(self, x: Instruction, active: Array) -> None:
        self._special(x, active, lambda values: 1 / np.sqrt(values))

    def i_sin(self, x: Instruction, active: Array) -> None:
        self._special(x, active, np.sin)

    def i_cos(self, x: Instruction, active: Array) -> None:
        self._special(x, active, np.cos)

    def i_tanh(self, x: Instruction, active: Array) -> None:
        self._special(x, active, np.tanh)

    def _nothing(self, x: Instruction, active: Array) -> None:
        pass

    i_membar = i_fence = i_prefetch = i_createpolicy = i_discard = _nothing

    def i_trap(self, x: Instruction, active: Array) -> None:
        raise PtxError("trap (an assertion of the kernel)")
