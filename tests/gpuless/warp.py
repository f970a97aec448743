"""Warp-wide instructions of the PTX emulator: shuffles, votes, ldmatrix, mma.

All of them require every live lane of their member mask to be executing them; if not, that is an error.
"""

import re

import numpy as np

from .operations import bf16_to_f32
from .ptx import PtxError

U32 = np.uint32
LANE_BIT = np.uint64(1) << np.arange(32, dtype=np.uint64)
ALL_LANES = 2**32 - 1


class WarpOps:
    """Mixin; the Run class provides get(), put(), warp, lane, nwarps, state."""

    def by_warp(self, v, fill=0):
        """(threads, ...) -> (warps, 32, ...)."""
        m = np.full((self.nwarps, 32) + v.shape[1:], fill, v.dtype)
        m[self.warp, self.lane] = v
        return m

    def lane_bits(self, flags):
        """Per thread, the bit mask of its warp's lanes for which flags is set."""
        return (self.by_warp(flags, False) * LANE_BIT).sum(1).astype(np.uint64)[self.warp]

    def require_converged(self, x, act, mask):
        missing = mask.astype(np.uint64) & self.lane_bits(self.state != self.EXITED) & ~self.lane_bits(act)
        if missing[act].any():
            raise PtxError(f"divergent warp collective: {x.text}")

    def whole_warp(self, x, act):
        self.require_converged(x, act, np.full(self.T, ALL_LANES, np.uint64))

    def i_shfl(self, x, act):
        """shfl.sync.mode d[|p], a, b, c, mask"""
        self.require_converged(x, act, self.get(x.args[4], "u32"))
        v = self.get(x.args[1], "u32")
        b, c = (self.get(o, "u32").astype(np.int64) for o in x.args[2:4])
        segment, clamp, lane, mode = (c >> 8) & 31, c & 31, self.lane, x.op[2]
        last = (lane & segment) | (clamp & ~segment)  # for .up this is the lowest lane allowed
        src = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": (lane & segment) | (b & ~segment)}[mode]
        ok = src >= last if mode == "up" else src <= last
        src = np.where(ok, src, lane) & 31
        for d, value in zip(x.args[0].split("|"), (self.by_warp(v)[self.warp, src], ok)):
            self.put(d, value, act)

    def i_vote(self, x, act):
        mask = self.get(x.args[2], "u32")
        self.require_converged(x, act, mask)
        if not x.mods & {"ballot", "any", "all"}:
            raise PtxError("not emulated: " + x.text)
        bits = self.lane_bits(self.get(x.args[1], "pred") & act).astype(U32) & mask
        everyone = self.lane_bits(act).astype(U32) & mask
        if "ballot" in x.mods:
            result = bits
        else:
            result = bits != 0 if "any" in x.mods else bits == everyone
        self.put(x.args[0], result, act)

    def i_activemask(self, x, act):
        self.put(x.args[0], self.lane_bits(act).astype(U32), act)

    def i_redux(self, x, act):
        mask = self.get(x.args[2], "u32")
        self.require_converged(x, act, mask)
        if (mask[act] != ALL_LANES).any() or (self.lane_bits(act)[act] != ALL_LANES).any():
            raise PtxError("not emulated with a partial mask: " + x.text)
        f = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[x.op[2]]
        v = self.get(x.args[1], x.ty)
        self.put(x.args[0], f.reduce(self.by_warp(v), axis=1).astype(v.dtype)[self.warp], act)

    def i_elect(self, x, act):
        first = np.argmax(self.by_warp(act, False), 1)[self.warp]
        for d, value in zip(x.args[0].split("|"), (first.astype(U32), self.lane == first)):
            self.put(d, value, act)

    def i_ldmatrix(self, x, act):
        """Lanes 8i..8i+7 give the rows of matrix i; lane l receives row l/4, columns 2(l%4) and +1."""
        self.whole_warp(x, act)
        k = int(next((q[1] for q in x.op if q in ("x1", "x2", "x4")), 0))
        if not k or "m8n8" not in x.mods:
            raise PtxError("not emulated: " + x.text)
        need = act & (self.lane < 8 * k)
        ix = self.shared_index(self.addr(x.args[1]), 16, need, x)
        self.check_race(ix, np.nonzero(need)[0], False, x)
        rows = np.zeros((self.T, 8), np.uint16)
        rows[need] = np.ascontiguousarray(self.shared[ix]).view(np.uint16)
        m = self.by_warp(rows).reshape(-1, 4, 8, 8)
        if "trans" in x.mods:
            m = m.swapaxes(-1, -2)
        m = np.ascontiguousarray(m).reshape(-1, 4, 32, 2).astype(U32)
        words = m[..., 0] | (m[..., 1] << 16)
        dst = x.args[0] if isinstance(x.args[0], list) else [x.args[0]]
        for i in range(k):
            self.put(dst[i], words[self.warp, i, self.lane], act)

    def i_mma(self, x, act):
        """m16n8kK, f16 / bf16 / tf32 inputs, f32 accumulators; summed in float64 and rounded once."""
        self.whole_warp(x, act)
        shape = next((q for q in x.op if re.match(r"m\d+n\d+k\d+$", q)), "")
        ti, td = x.op[-2], x.op[-4]
        if not shape.startswith("m16n8k") or td != "f32" or ti not in ("f16", "bf16", "tf32"):
            raise PtxError("not emulated: " + x.text)
        k = int(shape[6:])
        a, b = self.fragment(x.args[1], 2, k, ti), self.fragment(x.args[2], 1, k, ti)
        c = self.by_warp(np.stack([self.get(q, "f32") for q in x.args[3]], 1))
        d = np.einsum("wik,wjk->wij", a, b)
        group, quad = np.arange(32) >> 2, np.arange(32) & 3
        for i in range(4):
            r = d[:, group + 8 * (i >> 1), 2 * quad + (i & 1)] + c[:, :, i]
            self.put(x.args[0][i], r.astype(np.float32)[self.warp, self.lane], act)

    def fragment(self, regs, row_blocks, k, ty):
        """(warps, 8 * row_blocks, k) float64 matrix that the lanes' registers hold (PTX fragment layout)."""
        r = self.by_warp(np.stack([self.get(q, "u32") for q in regs], 1))
        if ty == "tf32":  # the hardware ignores the low 13 bits
            e = (r & U32(0xFFFFE000)).view(np.float32)[..., None]
        else:
            h = np.stack([r & U32(0xFFFF), r >> U32(16)], -1).astype(np.uint16)
            e = h.view(np.float16) if ty == "f16" else bf16_to_f32(h)
        per = e.shape[-1]  # elements per register
        group, quad = np.arange(32) >> 2, np.arange(32) & 3
        m = np.zeros((r.shape[0], 8 * row_blocks, k), np.float64)
        for j in range(len(regs)):
            for q in range(per):
                row, column = group + 8 * (j % row_blocks), (j // row_blocks * 4 + quad) * per + q
                m[:, row, column] = e[:, :, j, q]
        return m
