"""Executor of the PTX emulator: register file, program counters, barriers.  Entry point: ptx_emu.run().

A register is one array over all threads of a few blocks.  The lowest program counter runs first, so diverged
threads meet again at the join; a block barrier opens when every live thread of the block waits at one.
"""

import struct

import numpy as np

from .memory import Memory
from .operations import Ops, reject_modifiers
from .ptx import SINT, UINT, PtxError, dtype, width
from .warp import WarpOps

TRITON_SCRATCH = 2  # Triton appends two scratch pointers that callers may leave out (passed as null)


class Run(Ops, WarpOps, Memory):
    RUNNING, EXITED, WAITING = 0, 1, 2

    def __init__(self, kernel, args, grid, block, dynamic_shared, blocks, races):
        self.kernel = kernel
        self.nthreads = block[0] * block[1] * block[2]
        self.B, self.T = len(blocks), len(blocks) * self.nthreads
        t = np.arange(self.T)
        self.blk, self.linear = t // self.nthreads, t % self.nthreads
        per_block = (self.nthreads + 31) // 32
        self.nwarps = self.B * per_block
        self.warp, self.lane = self.blk * per_block + self.linear // 32, self.linear % 32
        self.special_regs = self._special_registers(grid, block, np.array(blocks))
        self.regs = {}
        self.pc = np.zeros(self.T, np.int64)
        self.state = np.zeros(self.T, np.int8)
        self.init_memory(dynamic_shared, races)
        self.params = self._parameters(args)

    def _special_registers(self, grid, block, blocks):
        regs = {"%laneid": self.lane, "%warpid": self.linear // 32}
        stride = 1
        for i, c in enumerate("xyz"):
            regs["%tid." + c] = self.linear // stride % block[i]
            regs["%ctaid." + c] = blocks[self.blk, i]
            regs["%ntid." + c] = np.full(self.T, block[i])
            regs["%nctaid." + c] = np.full(self.T, grid[i])
            stride *= block[i]
        return {name: v.astype(np.uint32) for name, v in regs.items()}

    def _parameters(self, args):
        declared, args = self.kernel.params, list(args)
        missing = len(declared) - len(args)
        if not 0 <= missing <= TRITON_SCRATCH:
            raise PtxError(f"{self.kernel.name} takes {len(declared)} parameters, got {len(args)}")
        values = {}
        for p, v in zip(declared, args + [0] * missing):
            if p.is_array:
                raise PtxError(f"not emulated: parameter {p.name} passed by value as a struct")
            if hasattr(v, "data_ptr") or isinstance(v, np.ndarray):
                v = self.map_buffer(v)
            if p.is_float or isinstance(v, float):
                raw = struct.pack("<d" if p.bits == 64 else "<f", v)
            else:
                raw = int(v & (2**p.bits - 1)).to_bytes(8, "little")
            values[p.name] = np.frombuffer(raw, UINT[p.bits])[0]
        return values

    # ---- registers ----
    def get(self, name, ty):
        """Value of an operand (register, immediate, symbol) over all threads, viewed as PTX type `ty`."""
        w = width(ty)
        if name[0] == "!":
            return ~self.get(name[1:], "pred")
        if name in self.kernel.regs:
            r = self.regs.get(name)
            if r is None:  # never written: zeros
                rt = self.kernel.regs[name]
                r = self.regs[name] = np.zeros(self.T, bool if rt == "pred" else UINT[width(rt)])
        elif name in self.special_regs:
            r = self.special_regs[name]
        else:
            r = self._constant(name, ty, w)
        if ty == "pred":
            return r.astype(bool)
        return (r if r.itemsize * 8 == w else r.astype(UINT[w])).view(dtype(ty))

    def _constant(self, name, ty, w):
        if name[:2] in ("0f", "0F"):
            return np.full(self.T, int(name[2:], 16), np.uint32)
        if name[:2] in ("0d", "0D"):
            r = np.full(self.T, int(name[2:], 16), np.uint64)
            return r.view(np.float64).astype(np.float32).view(np.uint32) if w == 32 else r
        if name in self.kernel.shared:
            return np.full(self.T, self.kernel.shared[name], UINT[w])
        if name == "WARP_SZ":
            return np.full(self.T, 32, UINT[w])
        try:
            v = int(name.rstrip("U"), 0)
        except ValueError:
            raise PtxError(f"not emulated: operand {name}") from None
        return np.full(self.T, bool(v)) if ty == "pred" else np.full(self.T, v & (2**w - 1), UINT[w])

    def put(self, name, v, act):
        if name == "_":
            return
        rt = self.kernel.regs[name]
        v = np.asarray(v)
        if rt == "pred":
            v = v.astype(bool)
        else:
            v = self._fit(v, width(rt))
        if act.all():
            self.regs[name] = np.array(np.broadcast_to(v, self.T))
        else:
            old = self.regs.get(name)
            new = np.zeros(self.T, v.dtype) if old is None else old.copy()
            new[act] = np.broadcast_to(v, self.T)[act]
            self.regs[name] = new

    def _fit(self, v, bits):
        """Bits of v as an unsigned integer of the register's width; signed integers are sign-extended."""
        unsigned = UINT[bits]
        if v.dtype == bool:
            v = v.astype(unsigned)
        if v.itemsize * 8 != bits:
            v = v if v.dtype.kind in "iu" else v.view(UINT[v.itemsize * 8])
            v = v.astype(SINT[bits] if v.dtype.kind == "i" else unsigned)
        return np.ascontiguousarray(v).view(unsigned)

    # ---- control ----
    def go(self, maxsteps):
        """Run to completion; returns the number of instructions stepped through."""
        steps = 0
        while True:
            run = self.state == self.RUNNING
            if run.any():
                steps += self._run_lowest(run, maxsteps - steps)
            elif not self._open_barriers():
                return steps

    def _run_lowest(self, run, budget):
        """Advance the threads at the lowest pc until they branch apart, stop, or meet other running ones."""
        code, pc, state = self.kernel.code, self.pc, self.state
        c = int(pc[run].min())
        act = run & (pc == c)
        others = pc[run & ~act]
        limit = int(others.min()) if others.size else len(code)
        steps = 0
        while True:
            if c >= len(code):
                state[act] = self.EXITED
                return steps
            x = code[c]
            steps += 1
            if steps > budget:
                raise PtxError("too many steps")
            on = act if x.pred is None else act & (self.get(x.pred, "pred") ^ x.neg)
            op = x.op[0]
            if op == "bra":
                pc[act] = c + 1
                pc[on] = x.target
                if c < x.target <= limit and (on == act).all():
                    c = x.target
                    continue
                return steps
            if op in ("ret", "exit"):
                state[on] = self.EXITED
                pc[act] = c + 1
                return steps
            if op in ("bar", "barrier") and "warp" not in x.mods:
                if "sync" not in x.mods or x.args not in (["0"], ["0", str(self.nthreads)]):
                    raise PtxError("not emulated (named or partial barrier, bar.red, bar.arrive): " + x.text)
                pc[act] = c + 1
                state[on] = self.WAITING
                return steps
            if on.any() and op != "bar":  # bar.warp.sync: lanes already run in lockstep
                self._step(x, on)
            c += 1
            if c >= limit:
                pc[act] = c
                return steps

    def _step(self, x, act):
        handler = getattr(self, "i_" + x.op[0], None)
        if handler is None:
            raise PtxError("not emulated: " + x.text)
        reject_modifiers(x)
        handler(x, act)

    def _open_barriers(self):
        """Nothing can run: release the blocks that wait.  False when every thread has exited."""
        waiting = self.state == self.WAITING
        if not waiting.any():
            return False
        # bar.sync is .aligned: all threads of a warp must be at the same one (whole warps may have exited).
        low, high = np.full(self.nwarps, 2**62), np.full(self.nwarps, -1)
        where = np.where(waiting, self.pc, -1)
        np.minimum.at(low, self.warp, where)
        np.maximum.at(high, self.warp, where)
        if (low != high).any():
            w = int(np.argmax(low != high))
            text = self.kernel.code[int(high[w]) - 1].text
            raise PtxError(f"divergent barrier: only part of a warp waits at {text}")
        self.epoch[np.unique(self.blk[waiting])] += 1
        self.state[waiting] = self.RUNNING
        return True
