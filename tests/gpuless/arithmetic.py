"""Arithmetic on integers and floating numbers, and on bits."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .formats import Array, bf16_to_f32, canonical, f32_to_bf16, is_float
from .machine import Machine
from .ptx import PACKED, UINT, Instruction, PtxError, dtype, width

U32, U64 = np.uint32, np.uint64


def fused(a: Array, b: Array, c: Array) -> Array:
    """A * b + c, rounded once more than the hardware does where float64 cannot hold it."""
    return (a.astype(np.float64) * b + c).astype(a.dtype)


def _truncated_quotient(a: Array, b: Array) -> Array:
    whole, by = a.astype(object), b.astype(object)  # Python's own integers: the least one has no positive twin
    quotient = np.abs(whole) // np.maximum(np.abs(by), 1) * np.sign(whole) * np.sign(by)
    return np.where(b == 0, -1, quotient.astype(a.dtype))


class Arithmetic(Machine):
    """Handlers of arithmetic and of operations on bits."""

    def _apply(self, x: Instruction, active: Array, function: Callable[..., Any]) -> None:
        """Target = function(sources); bfloat16 and packed pairs are computed in float32 and rounded once."""
        target, sources, kind = x.args[0], x.args[1:], x.kind
        if kind in PACKED:
            halves = [np.ascontiguousarray(self.get(s, kind)).view(np.uint16).reshape(-1, 2) for s in sources]
            if kind == "f16x2":
                found = function(*[half.view(np.float16).astype(np.float32) for half in halves])
                found = found.astype(np.float16).view(np.uint16)
            else:
                found = f32_to_bf16(function(*[bf16_to_f32(half) for half in halves]))
            self.put(target, np.ascontiguousarray(found).view(U32)[:, 0], active)
        elif kind == "bf16":
            self.put(target, f32_to_bf16(function(*[bf16_to_f32(self.get(s, kind)) for s in sources])), active)
        else:
            found = np.asarray(function(*[self.get(s, kind) for s in sources])).astype(dtype(kind), copy=False)
            self.put(target, canonical(found) if is_float(kind) else found, active)

    def i_add(self, x: Instruction, active: Array) -> None:
        self._apply(x, active, np.add)

    def i_sub(self, x: Instruction, active: Array) -> None:
        self._apply(x, active, np.subtract)

    def i_min(self, x: Instruction, active: Array) -> None:  # without .NaN a number wins over NaN
        self._apply(x, active, np.fmin if is_float(x.kind) and "NaN" not in x.modifiers else np.minimum)

    def i_max(self, x: Instruction, active: Array) -> None:
        self._apply(x, active, np.fmax if is_float(x.kind) and "NaN" not in x.modifiers else np.maximum)

    def i_and(self, x: Instruction, active: Array) -> None:
        self._apply(x, active, np.bitwise_and)

    def i_or(self, x: Instruction, active: Array) -> None:
        self._apply(x, active, np.bitwise_or)

    def i_xor(self, x: Instruction, active: Array) -> None:
        self._apply(x, active, np.bitwise_xor)

    def i_not(self, x: Instruction, active: Array) -> None:
        self._apply(x, active, np.invert)

    def i_neg(self, x: Instruction, active: Array) -> None:
        self._apply(x, active, np.negative)

    def i_abs(self, x: Instruction, active: Array) -> None:
        self._apply(x, active, np.abs)

    def i_fma(self, x: Instruction, active: Array) -> None:
        self._apply(x, active, fused)

    def i_div(self, x: Instruction, active: Array) -> None:
        self._apply(x, active, np.divide if is_float(x.kind) else _truncated_quotient)

    def i_rem(self, x: Instruction, active: Array) -> None:
        self._apply(x, active, lambda a, b: np.fmod(a, np.where(b == 0, 1, b)))

    def i_mul(self, x: Instruction, active: Array) -> None:
        if is_float(x.kind):
            self._apply(x, active, np.multiply)
        else:
            self.put(x.args[0], self._product(x)[0], active)

    def i_mad(self, x: Instruction, active: Array) -> None:
        if is_float(x.kind):
            self.i_fma(x, active)
        else:
            product, kind = self._product(x)
            self.put(x.args[0], product + self.get(x.args[3], kind), active)

    def _product(self, x: Instruction) -> tuple[Array, str]:
        """(product, its type) of mul.lo, mul.hi and mul.wide on integers."""
        a, b, bits = self.get(x.args[1], x.kind), self.get(x.args[2], x.kind), width(x.kind)
        if "wide" in x.modifiers:
            wide = x.kind[0] + str(2 * bits)
            return a.astype(dtype(wide)) * b.astype(dtype(wide)), wide
        if "hi" not in x.modifiers:
            return a * b, x.kind
        if bits == 64:
            high = np.array([(int(i) * int(j)) >> 64 for i, j in zip(a, b, strict=True)])
        else:
            long = dtype(x.kind[0] + "64")
            high = (a.astype(long) * b.astype(long)) >> long.type(bits)
        return high.astype(dtype(x.kind)), x.kind

    def i_shl(self, x: Instruction, active: Array) -> None:
        bits = width(x.kind)
        value, by = self.get(x.args[1], f"u{bits}"), self.get(x.args[2], "u32").astype(np.int64)
        shifted = value << np.minimum(by, bits - 1).astype(value.dtype)
        self.put(x.args[0], np.where(by >= bits, value.dtype.type(0), shifted).astype(value.dtype), active)

    def i_shr(self, x: Instruction, active: Array) -> None:
        bits = width(x.kind)
        value, by = self.get(x.args[1], x.kind), self.get(x.args[2], "u32").astype(np.int64)
        shifted = value >> np.minimum(by, bits - 1).astype(value.dtype)
        gone = (by >= bits) & (value.dtype.kind == "u")  # the sign fills what a signed shift leaves
        self.put(x.args[0], np.where(gone, value.dtype.type(0), shifted).astype(value.dtype), active)

    def i_shf(self, x: Instruction, active: Array) -> None:
        low, high, by = (self.get(operand, "u32").astype(U64) for operand in x.args[1:])
        by = np.minimum(by, U64(32)) if "clamp" in x.modifiers else by & U64(31)
        both = (high << U64(32)) | low
        self.put(x.args[0], ((both << by) >> U64(32) if "l" in x.modifiers else both >> by).astype(U32), active)

    def i_bfe(self, x: Instruction, active: Array) -> None:
        bits = width(x.kind)
        value = self.get(x.args[1], x.kind).view(UINT[bits])
        place, count = ((self.get(operand, "u32") & 255).astype(np.int64) for operand in x.args[2:4])
        found = np.where(place >= bits, 0, value >> np.minimum(place, bits - 1).astype(UINT[bits])).astype(U64)
        mask = np.where(count >= bits, U64(2**bits - 1), (U64(1) << np.minimum(count, 63).astype(U64)) - U64(1))
        field = found & mask
        if x.kind[0] == "s":
            last = np.maximum(np.minimum(place + count - 1, bits - 1), 0).astype(U64)
            sign = (value.astype(U64) >> last) & U64(1)
            field = np.where((sign == 1) & (count > 0), field | ~mask, field)
        self.put(x.args[0], field.astype(UINT[bits]), active)

    def i_bfi(self, x: Instruction, active: Array) -> None:
        bits = width(x.kind)
        source, base = (self.get(operand, f"u{bits}").astype(U64) for operand in x.args[1:3])
        place, count = (np.minimum(self.get(operand, "u32") & 255, 63).astype(U64) for operand in x.args[3:5])
        mask = ((U64(1) << count) - U64(1)) << place
        self.put(x.args[0], ((base & ~mask) | ((source << place) & mask)).astype(UINT[bits]), active)

    def i_prmt(self, x: Instruction, active: Array) -> None:
        if x.kind != "b32":  # the modes .f4e, .b4e and so on
            raise PtxError("not emulated: " + x.text)
        low, high, selector = (self.get(operand, "u32").astype(U64) for operand in x.args[1:4])
        both, found = (high << U64(32)) | low, np.zeros(self.count, U64)
        for i in range(4):
            which = (selector >> U64(4 * i)) & U64(15)
            byte = (both >> ((which & U64(7)) * U64(8))) & U64(255)
            sign = np.where(byte & U64(128), 255, 0).astype(U64)
            found |= np.where(which & U64(8), sign, byte) << U64(8 * i)
        self.put(x.args[0], found.astype(U32), active)

    def i_lop3(self, x: Instruction, active: Array) -> None:
        a, b, c = (self.get(operand, "u32") for operand in x.args[1:4])
        table, found = int(x.args[4], 0), np.zeros(self.count, U32)
        for i in range(8):
            if table >> i & 1:
                found |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        self.put(x.args[0], found, active)

    def i_popc(self, x: Instruction, active: Array) -> None:
        bits = self.get(x.args[1], x.kind)
        ones = np.unpackbits(np.ascontiguousarray(bits).view(np.uint8).reshape(self.count, -1), axis=1)
        self.put(x.args[0], ones.sum(1).astype(U32), active)

    def i_clz(self, x: Instruction, active: Array) -> None:
        bits = width(x.kind)
        value, zeros = self.get(x.args[1], f"u{bits}"), np.full(self.count, bits, U32)
        for bit in range(bits):
            zeros[(value >> value.dtype.type(bit)) & value.dtype.type(1) != 0] = bits - 1 - bit
        self.put(x.args[0], zeros, active)

    def i_brev(self, x: Instruction, active: Array) -> None:
        bits = width(x.kind)
        value = self.get(x.args[1], f"u{bits}")
        found, one = np.zeros_like(value), value.dtype.type(1)
        for i in range(bits):
            found |= ((value >> value.dtype.type(i)) & one) << value.dtype.type(bits - 1 - i)
        self.put(x.args[0], found, active)
