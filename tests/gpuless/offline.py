"""Compile Triton kernels for GPUs that are not here, and read from the machine code what they need of them.

    compiled = compile_kernel(kernel, signature, constants, "90", divisible, num_warps=4, num_stages=3)
    (code,) = machine_code([(compiled, 4)], "90")  # registers, spills, shared memory, occupancy, instructions

This needs neither a driver nor a GPU: NVIDIA's disassembler comes with Triton, AMD's figures are in the assembly. It
proves that a kernel compiles, fits the register file and the shared memory, and which instructions the compiler chose;
nothing about results or speed.
"""

import itertools
import os
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # its default differs between releases

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
OPCODE = re.compile(r"^\s*(?:/\*[0-9a-f]{4,}\*/)?\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)*)", re.MULTILINE)
_AMD_OPCODE = re.compile(r"^\s+([vs]_\w+|(?:buffer|global|flat|ds|scratch)_\w+)", re.MULTILINE)
INSTRUCTION = 16  # bytes, on every chip here that is NVIDIA's
USAGE = re.compile(r"\b(REG|STACK|SHARED|LOCAL):(\d+)")


@dataclass(frozen=True)
class Chip:
    """What one multiprocessor (AMD: compute unit) holds, and what one block may have of it.

    shared_block, shared_unit: bytes of shared memory of a block, and of the unit; reserved: of the unit for each block.
    warps: resident at most. registers: 32-bit ones of the unit, for NVIDIA; of a lane of a SIMD, for AMD. simds: AMD's.
    """

    shared_block: int
    shared_unit: int
    reserved: int
    warps: int
    registers: int
    warp_size: int = 32
    simds: int = 0


CHIPS = {
    "80": Chip(166_912, 167_936, 1024, 64, 65_536),
    "86": Chip(101_376, 102_400, 1024, 48, 65_536),
    "90": Chip(232_448, 233_472, 1024, 64, 65_536),
    "100": Chip(232_448, 233_472, 1024, 64, 65_536),
    "gfx942": Chip(65_536, 65_536, 0, 32, 512, 64, 4),
}
"""By architecture as Triton names it: compute capability, or AMD's own name."""


def target(arch: str) -> GPUTarget:
    """Triton's target of an architecture of CHIPS."""
    return GPUTarget("hip" if arch.startswith("gfx") else "cuda", _number(arch), CHIPS[arch].warp_size)


def _number(arch: str) -> str | int:
    return arch if arch.startswith("gfx") else int(arch)


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, Any],
    constants: Mapping[str, Any],
    arch: str,
    divisible: Sequence[str] = (),
    **options: Any,
) -> Any:
    """Triton's compiled kernel.

    signature: argument to type, `*fp16` or `i32`, or to a tuple of types, in which None stands for a None; constants:
    argument to value; divisible: arguments that are multiples of 16, in a tuple all that are there; options: num_warps,
    num_stages and what else the back end takes.
    """
    names = kernel.arg_names
    types: dict[str, Any] = {name: "constexpr" if name in constants else signature[name] for name in names}
    constexprs: dict[Any, Any] = dict(constants)
    attributes = {}
    for place, (name, kind) in enumerate(types.items()):
        parts = {(place, i): one for i, one in enumerate(kind)} if isinstance(kind, tuple) else {(place,): kind}
        constexprs |= {path: None for path, one in parts.items() if one is None}
        if name in divisible:
            attributes |= {path: [["tt.divisibility", 16]] for path, one in parts.items() if one is not None}
        if isinstance(kind, tuple):
            types[name] = tuple("constexpr" if one is None else one for one in kind)
    source = ASTSource(fn=kernel, signature=types, constexprs=constexprs, attrs=attributes)
    return triton.compile(source, target=target(arch), options=options)


@dataclass(frozen=True)
class MachineCode:
    """registers: of a thread. spill_bytes, local_bytes: of a thread, in memory. shared_bytes: of a block, as asked for.
    occupancy: share of the resident warps that registers and shared memory leave room for. ops: opcode to count.
    """

    arch: str
    registers: int
    spill_bytes: int
    local_bytes: int
    shared_bytes: int
    occupancy: float
    ops: Counter[str]

    def count(self, pattern: str) -> int:
        """Instructions whose opcode this regular expression matches from its start, to a dot or its end."""
        return sum(n for op, n in self.ops.items() if re.match(rf"(?:{pattern})(?:\.|$)", op))

    @property
    def tensor_core_ops(self) -> int:
        """Matrix instructions: HMMA, HGMMA, those of tcgen05, MFMA."""
        return self.count(r"HMMA|HGMMA|UTC\w*MMA|v_mfma\w*")

    @property
    def wide_loads(self) -> int:
        """Loads from global memory of 16 bytes a thread or more, asynchronous ones included."""
        return self.count(r"LDG(?:STS)?(?:\.\w+)*\.(?:128|256)|UTMALDG|(?:global|buffer|flat)_load_dwordx4")

    @property
    def wide_stores(self) -> int:
        """Stores to global memory of 16 bytes a thread or more."""
        return self.count(r"STG(?:\.\w+)*\.(?:128|256)|UTMASTG|(?:global|buffer|flat)_store_dwordx4")

    @property
    def local_ops(self) -> int:
        """Instructions that touch memory of a thread's own: spills, or arrays that are not in registers."""
        return self.count(r"STL|LDL|scratch_(?:load|store)\w*")

    @property
    def in_registers(self) -> bool:
        """Whether nothing of a thread's own lies in memory."""
        return self.spill_bytes == self.local_bytes == self.local_ops == 0

    @property
    def fits(self) -> bool:
        """Whether a block may have so much shared memory."""
        return self.shared_bytes <= CHIPS[self.arch].shared_block


def machine_code(compiled: Sequence[tuple[Any, int]], arch: str) -> list[MachineCode]:
    """Read kernels that were compiled for an architecture, each given with its number of warps.

    Many at once cost little more than one: a disassembler takes longer to start than to disassemble.
    """
    binaries = [binary for binary, _ in compiled]
    if arch.startswith("gfx"):
        read = [_amd(binary.asm["amdgcn"]) for binary in binaries]
    else:
        read = _nvidia([binary.asm["cubin"] for binary in binaries], arch)
    found = []
    for (binary, num_warps), (registers, spill, local, ops) in zip(compiled, read, strict=True):
        shared = binary.metadata.shared
        share = occupancy(arch, registers, shared, num_warps)
        found.append(MachineCode(arch, registers, spill, local, shared, share, ops))
    return found


def occupancy(arch: str, registers: int, shared: int, num_warps: int) -> float:
    """Share of the warps of a multiprocessor that registers and shared memory leave room for."""
    chip = CHIPS[arch]
    granted = -(-max(registers, 1) // 8) * 8  # registers are given out by eights
    if chip.simds:
        warps = chip.simds * min(chip.warps // chip.simds, chip.registers // granted)
    else:
        warps = min(chip.warps, chip.registers // (granted * chip.warp_size))
    blocks = warps // num_warps
    if shared:
        blocks = min(blocks, chip.shared_unit // (shared + chip.reserved))
    return blocks * num_warps / chip.warps


def _nvidia(cubins: Sequence[bytes], arch: str) -> list[tuple[int, int, int, Counter[str]]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        usages = []
        for cubin in cubins:
            path.write_bytes(cubin)
            words = tool("cuobjdump", "--dump-resource-usage", path)
            usages.append({key: int(value) for key, value in USAGE.findall(words)})
    ops = disassembled([text_of(cubin) for cubin in cubins], arch)
    numbers = ((usage["REG"], usage.get("STACK", 0), usage.get("LOCAL", 0)) for usage in usages)
    return [(*three, Counter(found)) for three, found in zip(numbers, ops, strict=True)]


def text_of(cubin: bytes) -> bytes:
    """The instructions of a cubin: what lies in its sections `.text.*`, of a 64-bit ELF file."""
    (table,), (size, count, names) = struct.unpack_from("<Q", cubin, 40), struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    first = sections[names][4]  # of a section: name, kind, flags, address, place, size
    return b"".join(cubin[s[4] : s[4] + s[5]] for s in sections if cubin.startswith(b".text.", first + s[0]))


def disassembled(codes: Sequence[bytes], arch: str) -> list[list[str]]:
    """The opcodes of pieces of machine code, in their order, by one run of the disassembler."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "code")
        path.write_bytes(b"".join(codes))
        ops = iter(OPCODE.findall(tool("nvdisasm", "--binary", f"SM{arch}", "--no-dataflow", path)))
    found = [[*itertools.islice(ops, len(code) // INSTRUCTION)] for code in codes]
    if [len(one) * INSTRUCTION for one in found] != [*map(len, codes)] or any(ops):
        raise ValueError("the disassembler printed another number of instructions than there are")
    return found


def tool(name: str, *args: object) -> str:
    """What one of NVIDIA's programs that come with Triton prints."""
    return subprocess.run([_BIN / name, *args], capture_output=True, text=True, check=True).stdout


def _amd(text: str) -> tuple[int, int, int, Counter[str]]:
    def number(name: str) -> int:
        found = re.search(rf"\.{name}:?\s+(\d+)", text)
        return int(found[1]) if found else 0

    spill = 4 * number("vgpr_spill_count")
    return number("vgpr_count"), spill, number("private_segment_fixed_size"), Counter(_AMD_OPCODE.findall(text))
