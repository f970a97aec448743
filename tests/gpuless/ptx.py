"""Parse PTX text into a flat instruction list, and the scalar type tables shared by the emulator.

Only what compilers emit for one kernel is understood: `.entry` with parameters, `.shared` arrays (static and
extern), `.reg` declarations, labels, predicated instructions.  Anything else raises PtxError.
"""

import re
from dataclasses import dataclass, field

import numpy as np

UINT = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SINT = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}
_KIND = {"u": UINT, "b": UINT, "s": SINT, "f": FLOAT}
# Types numpy cannot compute with; their registers are handled as raw bits.
_RAW_BITS = {"bf16": 16, "f16x2": 32, "bf16x2": 32, "tf32": 32}
PACKED = ("f16x2", "bf16x2")


class PtxError(RuntimeError):
    """The kernel did something wrong, or used something that is not emulated (the message says which)."""


def width(ty):
    """Bits in a PTX type name such as 'u32', 'bf16x2' or 'pred'."""
    if ty == "pred":
        return 1
    if ty in _RAW_BITS:
        return _RAW_BITS[ty]
    m = re.fullmatch(r"[usbf](8|16|32|64)", ty)
    if not m:
        raise PtxError(f"not emulated: type .{ty}")
    return int(m[1])


def dtype(ty):
    """Numpy dtype used to hold a PTX type."""
    w = width(ty)
    if w == 1:
        return np.dtype(bool)
    return np.dtype(UINT[w] if ty in _RAW_BITS else _KIND[ty[0]][w])


@dataclass
class Ins:
    """One instruction: `@pred op[0].op[1]... args`; vector operands are lists of names."""

    text: str
    pred: str | None
    neg: bool
    op: list
    args: list
    target: int | None = None  # index of the branch target
    ty: str = field(init=False)  # last suffix, usually the operand type
    mods: frozenset = field(init=False)

    def __post_init__(self):
        self.ty, self.mods = self.op[-1], frozenset(self.op[1:])


@dataclass
class Param:
    name: str
    is_float: bool
    bits: int
    is_array: bool


@dataclass
class Kernel:
    name: str
    params: list
    regs: dict  # register name -> type
    shared: dict  # shared symbol -> byte offset
    shared_size: int  # static shared bytes; dynamic shared memory starts here
    code: list
    threads: int | None  # .reqntid / .maxntid, if the kernel has one


def parse(ptx, entry=None):
    """Return the Kernel named `entry` (exact name, or a substring of exactly one mangled name)."""
    ptx = re.sub(r"//[^\n]*", "", ptx)
    ptx = re.sub(r"/\*.*?\*/", "", ptx, flags=re.S)
    head = _find_entry(ptx, entry)
    body = _body(ptx, head.end())
    shared, shared_size = _shared_layout(ptx)
    regs, code = _statements(body)
    ntid = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", head[3])
    return Kernel(head[1], _params(head[2]), regs, shared, shared_size, code, int(ntid[1]) if ntid else None)


def _find_entry(ptx, entry):
    heads = list(re.finditer(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{", ptx, re.S))
    found = [m for m in heads if entry is None or m[1] == entry]
    found = found or [m for m in heads if entry in m[1]]
    if len(found) != 1:
        raise PtxError(f"entry {entry!r} matches {len(found)} of {[m[1] for m in heads]}")
    return found[0]


def _body(ptx, start):
    end, depth = start, 1
    while depth:
        depth += {"{": 1, "}": -1}.get(ptx[end], 0)
        end += 1
    return re.sub(r"^\s*\.(loc|file|pragma)\b[^\n]*$", "", ptx[start : end - 1], flags=re.M)


def _params(text):
    one = r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr[^,\n]*?\s)?([\w$]+)(\[\d+\])?\s*(?:,|$)"
    found = re.findall(one, text.strip())
    return [Param(name, ty[0] == "f", width(ty), bool(array)) for ty, name, array in found]


def _shared_layout(ptx):
    """Lay static arrays out in order; every extern array starts right after them, 16-byte aligned."""
    offsets, size = {}, 0
    static = r"^\s*\.(?:visible |weak )?shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]"
    for align, name, n in re.findall(static, ptx, re.M):
        size = -(-size // int(align)) * int(align)
        offsets.setdefault(name, size)
        size += int(n)
    size = -(-size // 16) * 16
    for name in re.findall(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]", ptx):
        offsets[name] = size
    return offsets, size


def _statements(body):
    regs, labels, code = {}, {}, []
    for st in body.split(";"):
        st = _strip_labels(st.strip(), labels, len(code))
        if not st or st.startswith((".shared", ".section")):
            continue
        if st.startswith(".reg"):
            regs.update(_registers(st))
        elif st.startswith("."):
            raise PtxError("not emulated: directive " + st)
        else:
            code.append(_instruction(st))
    for x in code:
        if x.op[0] == "bra":
            x.target = labels[x.args[0]]
    return regs, code


def _strip_labels(st, labels, here):
    while m := re.match(r"[{}]\s*|([\w$]+):(?!:)\s*", st):
        if m[1]:
            labels[m[1]] = here
        st = st[m.end() :]
    return st


def _registers(st):
    ty, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", st, re.S).groups()
    for name in names.split(","):
        name = name.strip()
        many = re.match(r"([%\w$]+)<(\d+)>", name)
        for n in [f"{many[1]}{j}" for j in range(int(many[2]))] if many else [name]:
            yield n, ty


def _instruction(st):
    text = " ".join(st.split())
    pm = re.match(r"@(!?)([%\w$]+)\s+(.*)", st, re.S)
    pred, neg = (pm[2], bool(pm[1])) if pm else (None, False)
    mnemonic, operands = re.match(r"([\w.:]+)\s*(.*)", pm[3] if pm else st, re.S).groups()
    op = mnemonic.replace("::", "_").split(".")
    args = [a.strip() for a in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", operands)]
    args = [[e.strip() for e in a[1:-1].split(",")] if a[0] == "{" else a for a in args]
    return Ins(text, pred, neg, op, args)
