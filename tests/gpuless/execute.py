"""The executor: program counters, branches and barriers of a few blocks that run side by side.

The threads at the lowest program counter run first, so that threads which parted meet again where their paths join. A
barrier opens when all threads of its block that are still alive wait at one. A thread that sleeps (nanosleep) lets all
others go first, so that blocks may wait for one another.
"""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from .arithmetic import Arithmetic
from .conversions import Conversions, reject_modifiers
from .formats import Array
from .moves import Moves
from .ptx import UINT, Instruction, Kernel, Parameter, PtxError
from .warp import WarpWide

TRITON_SCRATCH = 2  # pointers to scratch memory that Triton adds to the parameters; left out, they are null

Dim3 = tuple[int, int, int]


class Run(Arithmetic, Conversions, Moves, WarpWide):
    """Blocks of a kernel, from their start to their end."""

    def __init__(
        self,
        kernel: Kernel,
        args: Sequence[Any],
        grid: Dim3,
        block: Dim3,
        dynamic_bytes: int,
        blocks: Sequence[Dim3],
        races: bool,
    ) -> None:
        self.kernel = kernel
        self.block_threads = block[0] * block[1] * block[2]
        self.blocks, self.count = len(blocks), len(blocks) * self.block_threads
        thread = np.arange(self.count)
        self.block, self.linear = thread // self.block_threads, thread % self.block_threads
        per_block = (self.block_threads + 31) // 32
        self.warps = self.blocks * per_block
        self.warp, self.lane = self.block * per_block + self.linear // 32, self.linear % 32
        self.special = self._special_registers(grid, block, np.array(blocks))
        self.values = {}
        self.pc = np.zeros(self.count, np.int64)
        self.state = np.zeros(self.count, np.int8)
        self.init_memory(dynamic_bytes, races)
        self.structures = {}
        self.parameters = self._parameter_values(args)

    def _special_registers(self, grid: Dim3, block: Dim3, blocks: Array) -> dict[str, Array]:
        found = {"%laneid": self.lane, "%warpid": self.linear // 32}
        stride = 1
        for i, axis in enumerate("xyz"):
            found["%tid." + axis] = self.linear // stride % block[i]
            found["%ctaid." + axis] = blocks[self.block, i]
            found["%ntid." + axis] = np.full(self.count, block[i])
            found["%nctaid." + axis] = np.full(self.count, grid[i])
            stride *= block[i]
        return {name: value.astype(np.uint32) for name, value in found.items()}

    def _parameter_values(self, args: Sequence[Any]) -> dict[str, np.generic]:
        declared, given = self.kernel.parameters, list(args)
        missing = len(declared) - len(given)
        if not 0 <= missing <= TRITON_SCRATCH:
            raise PtxError(f"{self.kernel.name} takes {len(declared)} parameters, got {len(given)}")
        values = {}
        for parameter, value in zip(declared, [*given, *[0] * missing], strict=True):
            if parameter.structure:
                self.structures[parameter.name] = self._structure(parameter, value)
                continue
            if hasattr(value, "data_ptr") or isinstance(value, np.ndarray):
                value = self.map_buffer(value)
            if parameter.is_float or isinstance(value, float):
                raw = struct.pack("<d" if parameter.bits == 64 else "<f", value)
            else:
                raw = int(value & (2**parameter.bits - 1)).to_bytes(8, "little")
            values[parameter.name] = np.frombuffer(raw, UINT[parameter.bits])[0]
        return values

    def _structure(self, parameter: Parameter, value: Any) -> int:
        """Where a structure (a Record of records.py) lies; its pointers lead to the windows of their tensors."""
        found = np.frombuffer(value.bytes_with(self.map_buffer), np.uint8)
        if found.size != parameter.structure:
            raise PtxError(f"{self.kernel.name} takes a structure of {parameter.structure} bytes, got {found.size}")
        return self.map_buffer(found)

    def go(self, max_steps: int) -> int:
        """Run to the end; returns the number of instructions stepped through."""
        steps = 0
        while True:
            running = self.state == self.RUNNING
            if running.any():
                steps += self._run_lowest(running, max_steps - steps)
            elif not self._open_barriers() | self._wake():
                return steps

    def _run_lowest(self, running: Array, budget: int) -> int:
        """Advance the threads at the lowest program counter until they part, stop, or meet others."""
        code = self.kernel.code
        here = int(self.pc[running].min())
        active = running & (self.pc == here)
        others = self.pc[running & ~active]
        limit = int(others.min()) if others.size else len(code)
        steps = 0
        while here < limit:
            x = code[here]
            steps += 1
            if steps > budget:
                raise PtxError("too many steps")
            on = active if x.predicate is None else active & (self.get(x.predicate, "pred") ^ x.negated)
            if x.op[0] == "bra" and here < x.target <= limit and (on == active).all():
                here = x.target
            elif self._ends_stretch(x, here, active, on):
                return steps
            else:
                here += 1
        self.pc[active] = here
        if here >= len(code):
            self.state[active] = self.EXITED
        return steps

    def _ends_stretch(self, x: Instruction, here: int, active: Array, on: Array) -> bool:
        """Execute x; whether the threads may now differ in where they are or whether they run."""
        op = x.op[0]
        if op == "bra":
            self.pc[active] = here + 1
            self.pc[on] = x.target
            return True
        if op in ("ret", "exit"):
            self.pc[active] = here + 1
            self.state[on] = self.EXITED
            return True
        if op == "nanosleep":
            self.pc[active] = here + 1
            self.state[on] = self.ASLEEP
            return True
        if op in ("bar", "barrier") and "warp" not in x.modifiers:
            if "sync" not in x.modifiers or x.args not in (["0"], ["0", str(self.block_threads)]):
                raise PtxError("not emulated (a named or partial barrier, bar.red, bar.arrive): " + x.text)
            self.pc[active] = here + 1
            self.state[on] = self.WAITING
            return True
        if on.any() and op != "bar":  # bar.warp.sync: lanes run in lockstep as it is
            self._step(x, on)
        return False

    def _step(self, x: Instruction, active: Array) -> None:
        handler = getattr(self, "i_" + x.op[0], None)
        if handler is None:
            raise PtxError("not emulated: " + x.text)
        reject_modifiers(x)
        handler(x, active)

    def _wake(self) -> bool:
        """Nothing can run: those that sleep look again. False when none does."""
        asleep = self.state == self.ASLEEP
        self.state[asleep] = self.RUNNING
        return bool(asleep.any())

    def _open_barriers(self) -> bool:
        """Nothing can run: release the blocks that wait, and of which nobody sleeps. False when there is none."""
        waiting, asleep = self.state == self.WAITING, self.state == self.ASLEEP
        if asleep.any():
            waiting &= ~np.isin(self.block, self.block[asleep])
        if not waiting.any():
            return False
        # All threads of a warp must be at the same barrier; whole warps may have exited.
        low, high = np.full(self.warps, 2**62), np.full(self.warps, -1)
        where = np.where(waiting, self.pc, -1)
        np.minimum.at(low, self.warp, where)
        np.maximum.at(high, self.warp, where)
        if (low != high).any():
            warp = int(np.argmax(low != high))
            text = self.kernel.code[int(high[warp]) - 1].text
            raise PtxError(f"divergent barrier: only part of a warp waits at {text}")
        self.epoch[np.unique(self.block[waiting])] += 1
        self.state[waiting] = self.RUNNING
        return True
