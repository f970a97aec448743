"""From PTX text to a flat list of instructions, and PTX's scalar types as numpy has them.

Understood is what compilers emit for one kernel: `.entry` with its parameters, `.shared` arrays, `.reg` declarations,
labels and predicated instructions. Anything else raises PtxError.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

UINT = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SINT = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}
_KINDS = {"u": UINT, "b": UINT, "s": SINT, "f": FLOAT}
_RAW_BITS = {"bf16": 16, "f16x2": 32, "bf16x2": 32, "tf32": 32}  # numpy has no such types: registers hold their bits
PACKED = ("f16x2", "bf16x2")


class PtxError(RuntimeError):
    """The kernel did something wrong, or used something that is not emulated; the message says which."""


@functools.cache
def width(kind: str) -> int:
    """Bits of a PTX type such as `u32`, `bf16x2` or `pred`."""
    if kind == "pred":
        return 1
    if kind in _RAW_BITS:
        return _RAW_BITS[kind]
    found = re.fullmatch(r"[usbf](8|16|32|64)", kind)
    if not found:
        raise PtxError(f"not emulated: type .{kind}")
    return int(found[1])


@functools.cache
def dtype(kind: str) -> np.dtype:
    """The numpy dtype that holds a PTX type."""
    bits = width(kind)
    if bits == 1:
        return np.dtype(bool)
    return np.dtype(UINT[bits] if kind in _RAW_BITS else _KINDS[kind[0]][bits])


Operand = str | list[str]


@dataclass
class Instruction:
    """`@predicate op[0].op[1]... args`; an operand that is a vector is a list of names.

    negated: of the predicate. target: index that a branch leads to. kind: the last suffix, mostly the type.
    """

    text: str
    predicate: str | None
    negated: bool
    op: list[str]
    args: list[Operand]
    target: int | None = None
    kind: str = field(init=False)
    modifiers: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.kind, self.modifiers = self.op[-1], frozenset(self.op[1:])


@dataclass
class Parameter:
    """A parameter of a kernel. structure: its bytes, where it is a structure passed by value, else zero."""

    name: str
    is_float: bool
    bits: int
    structure: int


@dataclass
class Kernel:
    """registers: name to type. shared: symbol to its place in bytes; dynamic shared memory starts at shared_bytes.

    threads: of a block, where the kernel demands a number (.reqntid or .maxntid).
    """

    name: str
    parameters: list[Parameter]
    registers: dict[str, str]
    shared: dict[str, int]
    shared_bytes: int
    code: list[Instruction]
    threads: int | None


def parse(text: str, entry: str | None = None) -> Kernel:
    """The kernel called `entry`, or whose mangled name alone contains it; the only one if there is no name."""
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    head = _find_entry(text, entry)
    registers, code = _statements(_body(text, head.end()))
    shared, shared_bytes = _shared_layout(text)
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", head[3])
    parameters = _parameters(head[2])
    return Kernel(head[1], parameters, registers, shared, shared_bytes, code, int(threads[1]) if threads else None)


def _find_entry(text: str, entry: str | None) -> re.Match[str]:
    heads = list(re.finditer(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{", text, re.DOTALL))
    found = [head for head in heads if entry is None or head[1] == entry]
    found = found or [head for head in heads if entry is not None and entry in head[1]]
    if len(found) != 1:
        raise PtxError(f"entry {entry!r} matches {len(found)} of {[head[1] for head in heads]}")
    return found[0]


def _body(text: str, start: int) -> str:
    end, depth = start, 1
    while depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    return re.sub(r"^\s*\.(loc|file|pragma)\b[^\n]*$", "", text[start : end - 1], flags=re.MULTILINE)


def _parameters(text: str) -> list[Parameter]:
    one = r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr[^,\n]*?\s)?([\w$]+)(?:\[(\d+)\])?\s*(?:,|$)"
    found = re.findall(one, text.strip())
    return [Parameter(name, kind[0] == "f", width(kind), int(size or 0)) for kind, name, size in found]


def _shared_layout(text: str) -> tuple[dict[str, int], int]:
    """Static variables lie in their order; every extern array starts after them, aligned to 16 bytes."""
    places: dict[str, int] = {}
    size = 0
    static = r"^\s*\.(?:visible |weak )?shared\s+\.align\s+(\d+)\s+\.[a-z](\d+)\s+([\w$]+)(?:\[(\d+)\])?;"
    for align, bits, name, count in re.findall(static, text, re.MULTILINE):
        size = -(-size // int(align)) * int(align)
        places.setdefault(name, size)
        size += int(count or 1) * int(bits) // 8
    size = -(-size // 16) * 16
    for name in re.findall(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]", text):
        places[name] = size
    return places, size


def _statements(body: str) -> tuple[dict[str, str], list[Instruction]]:
    registers: dict[str, str] = {}
    labels: dict[str, int] = {}
    code: list[Instruction] = []
    for raw in body.split(";"):
        statement = _strip_labels(raw.strip(), labels, len(code))
        if not statement or statement.startswith((".shared", ".section")):
            continue
        if statement.startswith(".reg"):
            registers.update(_registers(statement))
        elif statement.startswith("."):
            raise PtxError("not emulated: directive " + statement)
        else:
            code.append(_instruction(statement))
    for x in code:
        if x.op[0] == "bra":
            x.target = labels[str(x.args[0])]
    return registers, code


def _strip_labels(statement: str, labels: dict[str, int], here: int) -> str:
    while found := re.match(r"[{}]\s*|([\w$]+):(?!:)\s*", statement):
        if found[1]:
            labels[found[1]] = here
        statement = statement[found.end() :]
    return statement


def _registers(statement: str) -> Iterator[tuple[str, str]]:
    found = re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.DOTALL)
    if not found:
        raise PtxError("not emulated: " + statement)
    for name in (one.strip() for one in found[2].split(",")):
        many = re.match(r"([%\w$]+)<(\d+)>", name)
        for one in [f"{many[1]}{j}" for j in range(int(many[2]))] if many else [name]:
            yield one, found[1]


def _instruction(statement: str) -> Instruction:
    guarded = re.match(r"@(!?)([%\w$]+)\s+(.*)", statement, re.DOTALL)
    predicate, negated = (guarded[2], bool(guarded[1])) if guarded else (None, False)
    found = re.match(r"([\w.:]+)\s*(.*)", guarded[3] if guarded else statement, re.DOTALL)
    if not found:
        raise PtxError("not emulated: " + statement)
    operands = [one.strip() for one in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", found[2])]
    args: list[Operand] = [
        [part.strip() for part in one[1:-1].split(",")] if one[0] == "{" else one for one in operands
    ]
    return Instruction(" ".join(statement.split()), predicate, negated, found[1].replace("::", "_").split("."), args)
