"""Instructions of a whole warp: shuffles, votes, ldmatrix, mma.

Every live lane that takes part must be executing the instruction; otherwise that is an error.
"""

import re

import numpy as np

from .formats import Array, bf16_to_f32
from .memory import Memory
from .moves import as_list
from .ptx import Instruction, PtxError

U32 = np.uint32
LANE_BIT = np.uint64(1) << np.arange(32, dtype=np.uint64)
ALL_LANES = 2**32 - 1
_REDUCTIONS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


class WarpWide(Memory):
    """Handlers of collectives and of tensor cores."""

    def by_warp(self, value: Array, fill: float = 0) -> Array:
        """(threads, ...) to (warps, 32, ...)."""
        found = np.full((self.warps, 32, *value.shape[1:]), fill, value.dtype)
        found[self.warp, self.lane] = value
        return found

    def lane_bits(self, flags: Array) -> Array:
        """By thread, the lanes of its warp for which a flag is set, as the bits of a mask."""
        return (self.by_warp(flags, False) * LANE_BIT).sum(1).astype(np.uint64)[self.warp]

    def _require_converged(self, x: Instruction, active: Array, mask: Array) -> None:
        live = self.lane_bits(self.state != self.EXITED)
        missing = mask.astype(np.uint64) & live & ~self.lane_bits(active)
        if missing[active].any():
            raise PtxError(f"divergent warp collective: {x.text}")

    def _require_all(self, x: Instruction, active: Array) -> None:
        self._require_converged(x, active, np.full(self.count, ALL_LANES, np.uint64))

    def i_shfl(self, x: Instruction, active: Array) -> None:
        """shfl.sync.mode d[|p], a, b, c, mask."""
        self._require_converged(x, active, self.get(x.args[4], "u32"))
        value = self.get(x.args[1], "u32")
        b, c = (self.get(operand, "u32").astype(np.int64) for operand in x.args[2:4])
        segment, clamp, lane, mode = (c >> 8) & 31, c & 31, self.lane, x.op[2]
        last = (lane & segment) | (clamp & ~segment)  # for .up the lowest lane allowed
        own = (lane & segment) | (b & ~segment)
        source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": own}[mode]
        inside = source >= last if mode == "up" else source <= last
        source = np.where(inside, source, lane) & 31
        results = (self.by_warp(value)[self.warp, source], inside)
        for target, result in zip(x.args[0].split("|"), results, strict=False):
            self.put(target, result, active)

    def i_vote(self, x: Instruction, active: Array) -> None:
        mask = self.get(x.args[2], "u32")
        self._require_converged(x, active, mask)
        bits = self.lane_bits(self.get(x.args[1], "pred") & active).astype(U32) & mask
        if "ballot" in x.modifiers:
            result = bits
        elif "any" in x.modifiers:
            result = bits != 0
        elif "all" in x.modifiers:
            result = bits == self.lane_bits(active).astype(U32) & mask
        else:
            raise PtxError("not emulated: " + x.text)
        self.put(x.args[0], result, active)

    def i_activemask(self, x: Instruction, active: Array) -> None:
        self.put(x.args[0], self.lane_bits(active).astype(U32), active)

    def i_redux(self, x: Instruction, active: Array) -> None:
        mask = self.get(x.args[2], "u32")
        self._require_converged(x, active, mask)
        if (mask[active] != ALL_LANES).any() or (self.lane_bits(active)[active] != ALL_LANES).any():
            raise PtxError("not emulated with a partial mask: " + x.text)
        value = self.get(x.args[1], x.kind)
        total = _REDUCTIONS[x.op[2]].reduce(self.by_warp(value), axis=1).astype(value.dtype)
        self.put(x.args[0], total[self.warp], active)

    def i_elect(self, x: Instruction, active: Array) -> None:
        first = np.argmax(self.by_warp(active, False), 1)[self.warp]
        for target, value in zip(x.args[0].split("|"), (first.astype(U32), self.lane == first), strict=False):
            self.put(target, value, active)

    def i_ldmatrix(self, x: Instruction, active: Array) -> None:
        """Lanes 8 i to 8 i + 7 name the rows of matrix i; lane l gets row l / 4, columns 2 (l % 4) and the next."""
        self._require_all(x, active)
        count = int(next((q[1] for q in x.op if q in ("x1", "x2", "x4")), 0))
        if not count or "m8n8" not in x.modifiers:
            raise PtxError("not emulated: " + x.text)
        naming = active & (self.lane < 8 * count)
        ix = self.shared_index(self.address(x.args[1]), 16, naming, x)
        self.check_race(ix, np.nonzero(naming)[0], False, x)
        rows = np.zeros((self.count, 8), np.uint16)
        rows[naming] = np.ascontiguousarray(self.shared[ix]).view(np.uint16)
        matrices = self.by_warp(rows).reshape(-1, 4, 8, 8)
        if "trans" in x.modifiers:
            matrices = matrices.swapaxes(-1, -2)
        pairs = np.ascontiguousarray(matrices).reshape(-1, 4, 32, 2).astype(U32)
        words = pairs[..., 0] | (pairs[..., 1] << 16)
        for i, target in enumerate(as_list(x.args[0])[:count]):
            self.put(target, words[self.warp, i, self.lane], active)

    def i_mma(self, x: Instruction, active: Array) -> None:
        """m16n8kK of f16, bf16 or tf32 into f32: summed in float64 and rounded once."""
        self._require_all(x, active)
        shape = next((q for q in x.op if re.match(r"m\d+n\d+k\d+$", q)), "")
        kind, result_kind = x.op[-2], x.op[-4]
        if not shape.startswith("m16n8k") or result_kind != "f32" or kind not in ("f16", "bf16", "tf32"):
            raise PtxError("not emulated: " + x.text)
        depth = int(shape[6:])
        a, b = self._fragment(x.args[1], 2, depth, kind), self._fragment(x.args[2], 1, depth, kind)
        c = self.by_warp(np.stack([self.get(name, "f32") for name in x.args[3]], 1))
        product = a @ b.swapaxes(1, 2)
        group, quad = np.arange(32) >> 2, np.arange(32) & 3
        for i in range(4):
            total = product[:, group + 8 * (i >> 1), 2 * quad + (i & 1)] + c[:, :, i]
            self.put(x.args[0][i], total.astype(np.float32)[self.warp, self.lane], active)

    def _fragment(self, names: list[str], row_blocks: int, depth: int, kind: str) -> Array:
        """The float64 matrix (warps, 8 * row_blocks, depth) that the registers of the lanes hold."""
        bits = self.by_warp(np.stack([self.get(name, "u32") for name in names], 1))
        if kind == "tf32":  # the hardware ignores the 13 low bits
            elements = (bits & U32(0xFFFFE000)).view(np.float32)[..., None]
        else:
            halves = np.stack([bits & U32(0xFFFF), bits >> U32(16)], -1).astype(np.uint16)
            elements = halves.view(np.float16) if kind == "f16" else bf16_to_f32(halves)
        each = elements.shape[-1]  # elements of a register
        group, quad = np.arange(32) >> 2, np.arange(32) & 3
        matrix = np.zeros((bits.shape[0], 8 * row_blocks, depth), np.float64)
        for j in range(len(names)):
            for q in range(each):
                row, column = group + 8 * (j % row_blocks), (j // row_blocks * 4 + quad) * each + q
                matrix[:, row, column] = elements[:, :, j, q]
        return matrix
