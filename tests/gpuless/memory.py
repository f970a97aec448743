"""Memory of the PTX emulator, and the checks made on every access.

Global memory: each argument buffer owns one 4 GiB window of a made-up address space, so running off
either end of a buffer is always noticed.  The unit is the storage: a view that overruns into the rest of
its own storage is not.  Global accesses are not race-checked.

Shared memory: one array per block, poisoned with 0xFF (NaN for floats).  For each byte the last writing
and reading warp is kept together with the block's barrier count ("epoch").  Two warps touching one byte
in the same epoch, at least one of them writing, is a race -- found on the path taken whatever the order of
execution.  Storing the value already there is allowed (replicated layouts do that).  Not checked: lanes of
one warp against each other (a missing __syncwarp), shared-memory atomics.

cp.async: data becomes visible as late as the wait instructions allow; until then the bytes are poisoned
and any access to them is an error.
"""

import ctypes
import re

import numpy as np

from .ptx import PtxError

SHARED = {"shared", "shared_cta"}
_MANY = -2  # "more than one warp"


def as_bytes(buffer):
    """(flat uint8 view of the storage, byte offset of the first element) of a CPU tensor or numpy array."""
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.c_contiguous:
            raise PtxError("numpy arguments must be C-contiguous")
        return buffer.reshape(-1).view(np.uint8), 0
    storage = buffer.untyped_storage()
    n = storage.nbytes()
    if not n:
        return np.zeros(0, np.uint8), 0
    flat = np.ctypeslib.as_array((ctypes.c_uint8 * n).from_address(storage.data_ptr()))
    return flat, buffer.storage_offset() * buffer.element_size()


class Memory:
    """Mixin; the Run class provides B, T, blk, warp, get() and kernel."""

    def init_memory(self, dynamic_shared, races):
        self.races = races
        self.buffers = []
        self.shared_bytes = self.kernel.shared_size + dynamic_shared
        n = self.B * self.shared_bytes
        self.shared = np.full(n, 0xFF, np.uint8)
        self.write_epoch, self.write_warp = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
        self.read_epoch, self.read_warp = np.full(n, -1, np.int32), np.full(n, -1, np.int32)
        self.in_flight = np.zeros(n, bool)  # target of a cp.async nobody has waited for
        self.epoch = np.zeros(self.B, np.int32)
        self.copies = []  # cp.async: (threads, shared index, data, group)
        self.committed = np.zeros(self.T, np.int64)  # cp.async groups committed so far, per thread

    def map_buffer(self, buffer):
        """Give a buffer its window; returns its device address."""
        flat, offset = as_bytes(buffer)
        self.buffers.append(flat)
        return ((0x100 + len(self.buffers)) << 32) + offset

    # ---- addresses ----
    def addr(self, operand):
        m = re.match(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
        offset = int(m[2], 0) if m[2] else 0
        reg = self.kernel.regs.get(m[1])
        if reg is None:
            return np.full(self.T, self.kernel.shared.get(m[1], 0) + offset, np.uint64)
        bits = 64 if reg.endswith("64") else 32
        return self.get(m[1], f"u{bits}").astype(np.uint64) + np.uint64(offset % 2**bits)

    def shared_index(self, a, n, act, x):
        """(active threads, n) byte indices into self.shared."""
        a = a[act] & np.uint64(0xFFFFFFFF)
        if (a + n > self.shared_bytes).any():
            raise PtxError(f"shared out of bounds: {int(a.max())}+{n} > {self.shared_bytes}: {x.text}")
        if (a % n).any():
            raise PtxError(f"shared misaligned: {x.text}")
        return (self.blk[act] * self.shared_bytes + a.astype(np.int64))[:, None] + np.arange(n)

    def global_split(self, a, n, act, x):
        """Yield (buffer, thread indices, byte offsets) for each buffer that is touched."""
        threads = np.nonzero(act)[0]
        a = a[threads]
        which = (a >> np.uint64(32)).astype(np.int64) - 0x101
        offset = (a & np.uint64(0xFFFFFFFF)).astype(np.int64)
        if (offset % n).any():
            raise PtxError(f"global misaligned: {x.text}")
        for b in np.unique(which):
            mine = which == b
            if not 0 <= b < len(self.buffers):
                raise PtxError(f"bad global address {int(a[mine][0]):#x}: {x.text}")
            top, size = int(offset[mine].max()), self.buffers[b].size
            if top + n > size:
                raise PtxError(f"global out of bounds: buffer {b} offset {top}+{n} of {size}: {x.text}")
            yield self.buffers[b], threads[mine], offset[mine]

    # ---- race check ----
    def check_race(self, ix, threads, write, x, data=None):
        """Compare with, then update, the shadow state of the bytes ix[thread, byte]."""
        if not self.races:
            return
        if self.in_flight[ix].any():
            raise PtxError(f"touches cp.async data still in flight: {x.text}")
        warp, epoch = self.warp[threads][:, None], self.epoch[self.blk[threads]][:, None]
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
            self.read_epoch[ix] = np.broadcast_to(epoch, ix.shape)
            self.read_warp[ix] = np.where(read_by_other, _MANY, warp)
            # Several warps may read one byte in this very instruction; the last one then hid the others.
            hidden = self.read_warp[ix] != np.where(read_by_other, _MANY, warp)
            self.read_warp[ix[hidden]] = _MANY

    # ---- loads and stores ----
    def load(self, shared, a, n, act, x):
        """(T, n) bytes; rows of inactive threads are zero."""
        out = np.zeros((self.T, n), np.uint8)
        if shared:
            ix = self.shared_index(a, n, act, x)
            self.check_race(ix, np.nonzero(act)[0], False, x)
            out[act] = self.shared[ix]
        else:
            for buf, threads, offset in self.global_split(a, n, act, x):
                out[threads] = buf[offset[:, None] + np.arange(n)]
        return out

    def store(self, shared, a, data, act, x):
        n = data.shape[1]
        if not shared:
            for buf, threads, offset in self.global_split(a, n, act, x):
                buf[offset[:, None] + np.arange(n)] = data[threads]
            return
        ix = self.shared_index(a, n, act, x)
        mine = data[act]
        self.check_race(ix, np.nonzero(act)[0], True, x, mine)
        self.shared[ix] = mine
        if self.races and (self.shared[ix] != mine).any():
            raise PtxError(f"shared race (threads store different values to one address): {x.text}")

    # ---- cp.async ----
    def i_cp(self, x, act):
        if "async" not in x.mods or x.mods & {"bulk", "mbarrier"}:
            raise PtxError("not emulated: " + x.text)
        if "commit_group" in x.mods:
            self.committed[act] += 1
        elif "wait_all" in x.mods:
            self.committed[act] += 1
            self.land(act, 0)
        elif "wait_group" in x.mods:
            self.land(act, int(x.args[0], 0))
        else:
            self.issue_copy(x, act)

    def issue_copy(self, x, act):
        """cp.async dst, src, size[, src_size]: bytes beyond src_size are zero-filled."""
        n = int(x.args[2], 0)
        src_size = self.get(x.args[3], "u32").astype(np.int64) if len(x.args) > 3 else np.full(self.T, n)
        ix = self.shared_index(self.addr(x.args[0]), n, act, x)
        threads = np.nonzero(act)[0]
        self.check_race(ix, threads, True, x)
        data = np.zeros((self.T, n), np.uint8)
        src = self.addr(x.args[1])
        for size in np.unique(src_size[act]):
            if size:
                part = act & (src_size == size)
                data[part, :size] = self.load(False, src, int(size), part, x)[part]
        self.shared[ix] = 0xFF
        self.in_flight[ix] = True
        self.copies.append((threads, ix, data[act], self.committed[threads]))

    def land(self, act, keep):
        """Each active thread's own copies land, except those of its `keep` most recent groups."""
        left = []
        for threads, ix, data, group in self.copies:
            due = act[threads] & (group < self.committed[threads] - keep)
            if due.any():
                now, who = ix[due], threads[due]
                self.shared[now] = data[due]
                self.in_flight[now] = False
                self.write_epoch[now] = self.epoch[self.blk[who]][:, None]
                self.write_warp[now] = self.warp[who][:, None]
            if not due.all():
                left.append((threads[~due], ix[~due], data[~due], group[~due]))
        self.copies = left
