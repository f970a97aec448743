"""Memory of the emulator, and what is checked at every access.

Global memory: the storage of every argument has a window of 4 GiB of an address space of its own, so that running off
either end is always noticed; a view that runs into the rest of its own storage is not. Races are not looked for.

Shared memory: one array a block, at first full of 0xFF (NaN in floating numbers). Every byte remembers the warps that
last wrote and read it, and how many barriers of its block there had been. Two warps that touch a byte between the same
two barriers, one of them writing, race: this is found on the path that was taken, in whatever order the warps ran.
Storing the value that is there already is allowed, as layouts that hold values twice do it. Lanes of one warp against
each other and atomics are not checked.

cp.async: what it copies is visible as late as the instructions that wait for it allow. Until then its bytes are
poisoned, and any access to them is an error.
"""

import ctypes
import functools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from .formats import Array
from .machine import Machine
from .ptx import Instruction, PtxError

SHARED = frozenset({"shared", "shared_cta"})
_SEVERAL = -2  # in place of a warp: more than one
_WINDOW, _FIRST = 32, 0x101  # bits of a window's addresses; number of the first window


def as_bytes(buffer: Any) -> tuple[Array, int]:
    """(the storage of a CPU tensor or numpy array as uint8, offset in bytes of its first element)."""
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.c_contiguous:
            raise PtxError("numpy arguments must be C-contiguous")
        return buffer.reshape(-1).view(np.uint8), 0
    storage = buffer.untyped_storage()
    size = storage.nbytes()
    if not size:
        return np.zeros(0, np.uint8), 0
    flat = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(storage.data_ptr()))
    return flat, buffer.storage_offset() * buffer.element_size()


@functools.cache
def _address_parts(operand: str) -> tuple[str, int]:
    """Register or symbol, and offset, of `[name+offset]`."""
    found = re.match(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
    if not found:
        raise PtxError(f"not emulated: address {operand}")
    return found[1], int(found[2], 0) if found[2] else 0


class Memory(Machine):
    """Global and shared memory, and the asynchronous copies between them."""

    def init_memory(self, dynamic_bytes: int, races: bool) -> None:
        """races: whether shared memory is checked for missing barriers."""
        self.races = races
        self.buffers: list[Array] = []
        self.block_bytes = self.kernel.shared_bytes + dynamic_bytes
        size = self.blocks * self.block_bytes
        self.shared = np.full(size, 0xFF, np.uint8)
        self.write_epoch, self.write_warp = np.full(size, -1, np.int32), np.full(size, -1, np.int32)
        self.read_epoch, self.read_warp = np.full(size, -1, np.int32), np.full(size, -1, np.int32)
        self.in_flight = np.zeros(size, bool)  # target of a copy for which nobody has waited
        self.epoch = np.zeros(self.blocks, np.int32)  # barriers so far, by block
        self.copies: list[tuple[Array, Array, Array, Array]] = []  # threads, places in `shared`, data, groups
        self.committed = np.zeros(self.count, np.int64)  # groups of copies committed so far, by thread

    def map_buffer(self, buffer: Any) -> int:
        """Give a buffer its window; returns its address on the device."""
        flat, offset = as_bytes(buffer)
        self.buffers.append(flat)
        return ((_FIRST - 1 + len(self.buffers)) << _WINDOW) + offset

    # ---- addresses ----

    def address(self, operand: str) -> Array:
        """uint64 over all threads."""
        name, offset = _address_parts(operand)
        declared = self.kernel.registers.get(name)
        if declared is None:
            if name in self.parameters:
                symbol = self.parameter_place(name)
            else:
                symbol = self.structures.get(name, self.kernel.shared.get(name))
            if symbol is None:
                raise PtxError(f"no memory of this name: {operand}")
            return np.full(self.count, symbol + offset, np.uint64)
        bits = 64 if declared.endswith("64") else 32
        return self.get(name, f"u{bits}").astype(np.uint64) + np.uint64(offset % 2**bits)

    def shared_index(self, address: Array, size: int, active: Array, x: Instruction) -> Array:
        """(active threads, size) places of bytes in `shared`."""
        address = address[active] & np.uint64(0xFFFFFFFF)
        if (address + size > self.block_bytes).any():
            raise PtxError(f"shared out of bounds: {int(address.max())}+{size} > {self.block_bytes}: {x.text}")
        if (address % size).any():
            raise PtxError(f"shared misaligned: {x.text}")
        return (self.block[active] * self.block_bytes + address.astype(np.int64))[:, None] + np.arange(size)

    def global_parts(
        self, address: Array, size: int, active: Array, x: Instruction, alignment: int = 0
    ) -> Iterator[tuple[Array, Array, Array]]:
        """(buffer, threads, offsets in bytes) for every buffer that is touched. alignment: `size` if it is zero."""
        threads = np.nonzero(active)[0]
        address = address[threads]
        which = (address >> np.uint64(_WINDOW)).astype(np.int64) - _FIRST
        offset = (address & np.uint64(0xFFFFFFFF)).astype(np.int64)
        if (offset % (alignment or size)).any():
            raise PtxError(f"global misaligned: {x.text}")
        for number in np.unique(which):
            mine = which == number
            if not 0 <= number < len(self.buffers):
                raise PtxError(f"bad global address {int(address[mine][0]):#x}: {x.text}")
            top, end = int(offset[mine].max()), self.buffers[number].size
            if top + size > end:
                raise PtxError(f"global out of bounds: buffer {number} offset {top}+{size} of {end}: {x.text}")
            yield self.buffers[number], threads[mine], offset[mine]

    # ---- races ----

    def check_race(self, ix: Array, threads: Array, write: bool, x: Instruction, data: Array | None = None) -> None:
        """Compare with what the bytes ix[thread, byte] remember, then bring that up to date."""
        if not self.races:
            return
        if self.in_flight[ix].any():
            raise PtxError(f"touches cp.async data still in flight: {x.text}")
        warp, epoch = self.warp[threads][:, None], self.epoch[self.block[threads]][:, None]
        clash = (self.write_epoch[ix] == epoch) & (self.write_warp[ix] != warp)
        if data is not None:
            clash &= self.shared[ix] != data
        if clash.any():
            raise PtxError(f"shared race (after a write by another warp): {x.text}")
        read_by_other = (self.read_epoch[ix] == epoch) & (self.read_warp[ix] != warp)
        if write:
            if read_by_other.any():
                raise PtxError(f"shared race (write after read by another warp): {x.text}")
            self.write_epoch[ix] = epoch
            self.write_warp[ix] = warp
        else:
            reader = np.where(read_by_other, _SEVERAL, warp)
            self.read_epoch[ix] = np.broadcast_to(epoch, ix.shape)
            self.read_warp[ix] = reader
            # Several warps may read a byte in this very instruction, of which the last has hidden the others.
            self.read_warp[ix[self.read_warp[ix] != reader]] = _SEVERAL

    # ---- loads and stores ----

    def load(self, shared: bool, address: Array, size: int, active: Array, x: Instruction) -> Array:
        """(threads, size) bytes; rows of threads that are not active are zero."""
        found = np.zeros((self.count, size), np.uint8)
        if shared:
            ix = self.shared_index(address, size, active, x)
            self.check_race(ix, np.nonzero(active)[0], False, x)
            found[active] = self.shared[ix]
        else:
            for buffer, threads, offset in self.global_parts(address, size, active, x):
                found[threads] = buffer[offset[:, None] + np.arange(size)]
        return found

    def store(self, shared: bool, address: Array, data: Array, active: Array, x: Instruction) -> None:
        """Write (threads, size) bytes of the active threads."""
        size = data.shape[1]
        if not shared:
            for buffer, threads, offset in self.global_parts(address, size, active, x):
                buffer[offset[:, None] + np.arange(size)] = data[threads]
            return
        ix = self.shared_index(address, size, active, x)
        mine = data[active]
        self.check_race(ix, np.nonzero(active)[0], True, x, mine)
        self.shared[ix] = mine
        if self.races and (self.shared[ix] != mine).any():
            raise PtxError(f"shared race (threads store different values to one address): {x.text}")

    # ---- asynchronous copies ----

    def i_cp(self, x: Instruction, active: Array) -> None:
        """cp.async and what commits and awaits it."""
        if "async" not in x.modifiers or x.modifiers & {"bulk", "mbarrier"}:
            raise PtxError("not emulated: " + x.text)
        if "commit_group" in x.modifiers:
            self.committed[active] += 1
        elif "wait_all" in x.modifiers:
            self.committed[active] += 1
            self._land(active, 0)
        elif "wait_group" in x.modifiers:
            self._land(active, int(x.args[0], 0))
        else:
            self._issue(x, active)

    def _issue(self, x: Instruction, active: Array) -> None:
        """cp.async target, source, size[, source size]: bytes beyond the source's size are zero."""
        size = int(x.args[2], 0)
        taken = self.get(x.args[3], "u32").astype(np.int64) if len(x.args) > 3 else np.full(self.count, size)
        ix = self.shared_index(self.address(x.args[0]), size, active, x)
        threads = np.nonzero(active)[0]
        self.check_race(ix, threads, True, x)
        data = np.zeros((self.count, size), np.uint8)
        source = self.address(x.args[1])
        for part_size in np.unique(taken[active]):
            if part_size:
                part = active & (taken == part_size)
                for buffer, whose, offset in self.global_parts(source, int(part_size), part, x, alignment=size):
                    data[whose, :part_size] = buffer[offset[:, None] + np.arange(part_size)]
        self.shared[ix] = 0xFF
        self.in_flight[ix] = True
        self.copies.append((threads, ix, data[active], self.committed[threads]))

    def _land(self, active: Array, keep: int) -> None:
        """Every active thread's own copies land, but for those of its `keep` most recent groups."""
        left = []
        for threads, ix, data, group in self.copies:
            due = active[threads] & (group < self.committed[threads] - keep)
            if due.any():
                now, who = ix[due], threads[due]
                self.shared[now] = data[due]
                self.in_flight[now] = False
                self.write_epoch[now] = self.epoch[self.block[who]][:, None]
                self.write_warp[now] = self.warp[who][:, None]
            if not due.all():
                left.append((threads[~due], ix[~due], data[~due], group[~due]))
        self.copies = left
