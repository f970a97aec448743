"""What the parts of the emulator share: the state of a run, and access to its registers.

Every value is an array over all threads of the blocks that run side by side. A handler `i_<op>(x, active)` executes
instruction x and writes registers of the active threads alone.
"""

import numpy as np

from .formats import Array
from .ptx import SINT, UINT, Kernel, PtxError, dtype, width


class Machine:
    """State of a run.

    count: threads; block, warp, lane: of every thread, counted over all blocks; warps: in all. parameters: values;
    structures: addresses of those passed by value. The base of the mixins that hold the handlers.
    """

    kernel: Kernel
    count: int
    blocks: int
    warps: int
    block: Array
    warp: Array
    lane: Array
    state: Array
    values: dict[str, Array]
    special: dict[str, Array]
    parameters: dict[str, np.generic]
    structures: dict[str, int]

    RUNNING, EXITED, WAITING, ASLEEP = 0, 1, 2, 3

    def get(self, name: str, kind: str) -> Array:
        """An operand (register, number or symbol) over all threads, viewed as PTX type `kind`."""
        if name[0] == "!":
            return ~self.get(name[1:], "pred")
        bits = width(kind)
        declared = self.kernel.registers.get(name)
        if declared is not None:
            value = self.values.get(name)
            if value is None:  # never written
                value = np.zeros(self.count, bool if declared == "pred" else UINT[width(declared)])
                self.values[name] = value
        elif name in self.special:
            value = self.special[name]
        else:
            value = self._constant(name, kind, bits)
        if kind == "pred":
            return value.astype(bool)
        return (value if value.itemsize * 8 == bits else value.astype(UINT[bits])).view(dtype(kind))

    def _constant(self, name: str, kind: str, bits: int) -> Array:
        if name[:2] in ("0f", "0F"):
            return np.full(self.count, int(name[2:], 16), np.uint32)
        if name[:2] in ("0d", "0D"):
            double = np.full(self.count, int(name[2:], 16), np.uint64)
            return double.view(np.float64).astype(np.float32).view(np.uint32) if bits == 32 else double
        if name in self.structures:
            return np.full(self.count, self.structures[name], UINT[bits])
        if name in self.kernel.shared:
            return np.full(self.count, self.kernel.shared[name], UINT[bits])
        if name in self.parameters:
            return np.full(self.count, self.parameter_place(name), UINT[bits])
        if name == "WARP_SZ":
            return np.full(self.count, 32, UINT[bits])
        try:
            number = int(name.rstrip("U"), 0)
        except ValueError:
            raise PtxError(f"not emulated: operand {name}") from None
        if kind == "pred":
            return np.full(self.count, bool(number))
        return np.full(self.count, number & (2**bits - 1), UINT[bits])

    def parameter_place(self, name: str) -> int:
        """The address of a parameter: every one has eight bytes in a space of their own."""
        return 8 * list(self.parameters).index(name)

    def put(self, name: str, value: Array, active: Array) -> None:
        """Write a register of the active threads. No array is ever changed in place, so registers may share one."""
        if name == "_":
            return
        declared = self.kernel.registers[name]
        value = np.asarray(value)
        value = value.astype(bool, copy=False) if declared == "pred" else _fitted(value, width(declared))
        value = value if value.shape == (self.count,) else np.array(np.broadcast_to(value, self.count))
        if active.all():
            self.values[name] = value
        else:
            old = self.values.get(name)
            self.values[name] = np.where(active, value, np.zeros(1, value.dtype) if old is None else old)


def _fitted(value: Array, bits: int) -> Array:
    """The bits of a value as unsigned integers of a register's width; signed integers are sign-extended."""
    unsigned = UINT[bits]
    if value.dtype == bool:
        value = value.astype(unsigned)
    if value.itemsize * 8 != bits:
        value = value if value.dtype.kind in "iu" else value.view(UINT[value.itemsize * 8])
        value = value.astype(SINT[bits] if value.dtype.kind == "i" else unsigned)
    return np.ascontiguousarray(value).view(unsigned)
