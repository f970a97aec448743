"""The emulator of PTX: results of compiled and of hand-written kernels, and wrong ones that it must find out."""

import ctypes
import re

import numpy as np
import pytest
import torch
from cases import unpack_bits

pytest.importorskip("triton", reason="Triton is not installed")

from gpuless import emulator, samples
from gpuless.emulator import PtxError
from gpuless.offline import compile_kernel
from gpuless.records import Pointer, Record, SharedPlan

M, N, K = 96, 160, 112
BLOCKS = {"BM": 64, "BN": 64, "BK": 32}


def linear(dtype="fp16", precision="ieee", stages=3):
    types = {name: kind.replace("fp16", dtype) for name, kind in samples.LINEAR_TYPES.items()}
    constants = {**BLOCKS, "PRECISION": precision}
    options = {"num_warps": 4, "num_stages": stages}
    return compile_kernel(samples.linear_relu_mask, types, constants, "80", samples.LINEAR_DIVISIBLE, **options)


def run_linear(text, shared_bytes, tensors):
    x, w = tensors[:2]
    grid = (-(-x.shape[0] // BLOCKS["BM"]), -(-w.shape[0] // BLOCKS["BN"]))
    return emulator.run(text, samples.linear_args(*tensors), grid, shared_bytes=shared_bytes)


def assert_linear(x, w, y, bits, tolerance):
    """Y and bits are those of relu(x @ w.T); a bit may differ where the product is within the tolerance of zero."""
    want = x.double() @ w.double().T
    error = (y.double() - want.relu()).abs() / (1 + want.abs())
    assert error.max() < tolerance
    wrong = (unpack_bits(bits, w.shape[0]) != (want > 0)) & (want.abs() > tolerance)
    assert not wrong.any()


PRECISIONS = [
    ("fp16", "ieee", torch.float16, 2e-3),
    ("bf16", "ieee", torch.bfloat16, 2e-2),
    ("fp32", "tf32", torch.float32, 2e-2),
    ("fp32", "tf32x3", torch.float32, 1e-5),
    ("fp32", "ieee", torch.float32, 1e-5),
]


@pytest.mark.parametrize(("dtype", "precision", "torch_dtype", "tolerance"), PRECISIONS)
def test_a_product_with_its_mask(dtype, precision, torch_dtype, tolerance):
    compiled = linear(dtype, precision)
    tensors = samples.linear_tensors(M, N, K, torch_dtype)
    run_linear(compiled.asm["ptx"], compiled.metadata.shared, tensors)
    assert_linear(*tensors, tolerance)


def test_products_of_tf32_are_rounded_to_it():
    """Not only within its tolerance: exact float32 is found out."""
    compiled = linear("fp32", "tf32")
    x, w, y, bits = samples.linear_tensors(M, N, K, torch.float32)
    run_linear(compiled.asm["ptx"], compiled.metadata.shared, (x, w, y, bits))
    error = (y.double() - (x.double() @ w.double().T).relu()).abs().max()
    assert 1e-4 < error < 5e-2


def test_atomic_additions():
    types = {"x_ptr": "*fp32", "y_ptr": "*fp32", "M": "i32", "N": "i32"}
    compiled = compile_kernel(samples.column_sums, types, {"BM": 32, "BN": 64}, "80", ("x_ptr", "y_ptr"))
    x, y = torch.randn(100, 200), torch.zeros(208)
    emulator.run(compiled.asm["ptx"], [x, y, 100, 200], (4, 4), shared_bytes=compiled.metadata.shared)
    torch.testing.assert_close(y[:200], x.sum(0), atol=1e-4, rtol=1e-4)
    assert not y[200:].any()


def test_tensor_descriptors_made_in_a_kernel():
    types = {"x_ptr": "*fp16", "w_ptr": "*fp16", "y_ptr": "*fp16", "M": "i32", "N": "i32", "K": "i32"}
    divisible = ("x_ptr", "w_ptr", "y_ptr", "K", "N")
    compiled = compile_kernel(samples.described_product, types, BLOCKS, "80", divisible)
    x, w, y, _ = samples.linear_tensors(M, N, K, torch.float16)
    emulator.run(compiled.asm["ptx"], [x, w, y, M, N, K], (2, 3), shared_bytes=compiled.metadata.shared)
    torch.testing.assert_close(y.double(), x.double() @ w.double().T, atol=2e-2, rtol=2e-3)


def test_blocks_side_by_side_change_nothing():
    compiled = linear()
    tensors = samples.linear_tensors(M, N, K, torch.float16)
    found = []
    for threads in (1, 256, 10**6):
        x, w, y, bits = (t.clone() for t in tensors)
        args = samples.linear_args(x, w, y, bits)
        shared = compiled.metadata.shared
        emulator.run(compiled.asm["ptx"], args, (2, 3), shared_bytes=shared, threads_at_once=threads)
        found.append((y, bits))
    assert all(torch.equal(a, b) for one in found[1:] for a, b in zip(one, found[0], strict=True))


# ---- compiled kernels made wrong ----

BARRIER = re.compile(r"bar(?:rier)?\.sync[^;]*;")


def without_barrier(text, i):
    """The i-th barrier of a block becomes one of a warp."""
    found = list(BARRIER.finditer(text))[i]
    return text[: found.start()] + "bar.warp.sync -1;" + text[found.end() :]


def redundant(text, i):
    """Whether around a barrier copies are issued at most; or, no shared memory written and no copy waited for anew."""
    parts = BARRIER.split(text)
    before, after = parts[i], parts[i + 1]
    accesses = re.compile(r"(?:ld|st|atom|red)\.shared|ldmatrix")
    if not accesses.search(before) and not accesses.search(after):
        return True
    writes = re.compile(r"(?:st|atom|red)\.shared|cp\.async\.(?:c[ag]|commit)")
    waits = [re.findall(r"cp\.async\.wait_group\s+(\d+)", part) for part in parts]
    nothing_lands = not waits[i] or (waits[i - 1] and min(waits[i]) >= min(waits[i - 1]))
    return i > 0 and not writes.search(before) and not writes.search(after) and nothing_lands


def test_a_removed_barrier_is_found_out():
    compiled = linear()
    text, shared = compiled.asm["ptx"], compiled.metadata.shared
    count = len(BARRIER.findall(text))
    needed = [i for i in range(count) if not redundant(text, i)]
    assert len(needed) >= 4
    for i in needed:
        with pytest.raises(PtxError, match=r"shared race|in flight"):
            run_linear(without_barrier(text, i), shared, samples.linear_tensors(M, N, K, torch.float16))


def test_a_wait_that_ends_too_early_is_found_out():
    compiled = linear(stages=4)
    text, count = re.subn(r"(cp\.async\.wait_group\s+)(\d+)", lambda m: m[1] + str(int(m[2]) + 2), compiled.asm["ptx"])
    assert count, "a pipelined kernel waits for its copies"
    with pytest.raises(PtxError, match="still in flight"):
        run_linear(text, compiled.metadata.shared, samples.linear_tensors(M, N, K, torch.float16))


def test_too_little_shared_memory_is_found_out():
    compiled = linear()
    with pytest.raises(PtxError, match="shared out of bounds"):
        run_linear(compiled.asm["ptx"], compiled.metadata.shared - 16, samples.linear_tensors(M, N, K, torch.float16))


# ---- small hand-written kernels ----


def kernel(body, shared=256):
    """One pointer (%rd1; an int32 a thread at %rd2); %r1: thread, %r2: block, %r3: 4 * thread."""
    return f"""
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 out) {{
.reg .pred %p<4>; .reg .b32 %r<10>; .reg .b64 %rd<6>;
.shared .align 16 .b8 s[{shared}];
ld.param.u64 %rd1, [out];
mov.u32 %r1, %tid.x;
mov.u32 %r2, %ctaid.x;
mul.wide.u32 %rd2, %r1, 4;
add.s64 %rd2, %rd1, %rd2;
shl.b32 %r3, %r1, 2;
{body}
ret;
}}"""


def run_kernel(body, buffer=None, block=32, grid=1, **options):
    buffer = np.zeros(64, np.int32) if buffer is None else buffer
    emulator.run(kernel(body), [buffer], grid, block, **options)
    return buffer


@pytest.mark.parametrize("writer", [0, 32])
def test_a_write_after_all_have_read_is_found_out(writer):
    """Whichever warp writes what all warps have read in one step races."""
    body = f"""ld.shared.u32 %r4, [s];
setp.eq.u32 %p1, %r1, {writer};
@%p1 st.shared.u32 [s], %r1;"""
    with pytest.raises(PtxError, match="write after read"):
        run_kernel(body, block=64)
    run_kernel(body, block=64, races=False)


def test_a_barrier_between_warps_makes_their_exchange_good():
    exchange = """st.shared.u32 [%r3], %r1;
{barrier}
xor.b32 %r4, %r3, 128;
ld.shared.u32 %r5, [%r4];
st.global.u32 [%rd2], %r5;"""
    found = run_kernel(exchange.format(barrier="bar.sync 0;"), block=64)
    assert (found == np.arange(64) ^ 32).all()
    with pytest.raises(PtxError, match="shared race"):
        run_kernel(exchange.format(barrier=""), block=64)


def test_groups_of_copies_are_counted_by_thread():
    """Block 1 commits one group more, which must not make block 0's copy land."""
    body = """setp.eq.u32 %p1, %r2, 1;
mul.wide.u32 %rd3, %r1, 16;
add.s64 %rd3, %rd1, %rd3;
shl.b32 %r5, %r1, 4;
cp.async.cg.shared.global [%r5], [%rd3], 16;
cp.async.commit_group;
@%p1 cp.async.commit_group;
cp.async.wait_group 1;
ld.shared.u32 %r4, [%r5];
st.global.u32 [%rd3], %r4;"""
    with pytest.raises(PtxError, match="still in flight"):
        run_kernel(body, block=16, grid=2)
    fixed = body.replace("wait_group 1", "wait_group 0").replace("[%rd3], %r4", "[%rd2], %r4")
    found = run_kernel(fixed, np.arange(64, dtype=np.int32), block=16)
    assert (found[:16] == 4 * np.arange(16)).all()


def test_divergent_threads_meet_again_at_a_collective():
    body = """mov.u32 %r4, 1;
setp.lt.u32 %p1, %r1, 16;
@%p1 bra L;
mov.u32 %r4, 2;
L: shfl.sync.bfly.b32 %r5, %r4, 16, 31, -1;
st.global.u32 [%rd2], %r5;"""
    assert (run_kernel(body)[:32] == np.repeat([2, 1], 16)).all()


WAITS = """setp.eq.u32 %p1, %r2, 1;
@%p1 bra LATER;
setp.ne.u32 %p2, %r1, 0;
@%p2 bra MEET;
LOOK: ld.volatile.global.u32 %r4, [%rd1+252];
setp.eq.u32 %p3, %r4, 1;
@%p3 bra MEET;
nanosleep.u32 100;
bra LOOK;
MEET: bar.sync 0;
ld.global.u32 %r5, [%rd1+248];
st.global.u32 [%rd2], %r5;
ret;
LATER: setp.eq.u32 %p1, %r1, 0;
mov.u32 %r4, 7;
@%p1 st.global.u32 [%rd1+248], %r4;
bar.sync 0;
mov.u32 %r4, 1;
@%p1 st.global.u32 [%rd1+252], %r4;"""
"""Block 0 waits for what block 1 writes; only its first thread looks, the others wait at a barrier."""


def test_a_block_waits_for_another_beside_it():
    assert (run_kernel(WAITS, block=32, grid=2)[:32] == 7).all()
    with pytest.raises(PtxError, match="too many steps"):
        run_kernel(WAITS.replace("mov.u32 %r4, 1;", "mov.u32 %r4, 2;"), block=32, grid=2, max_steps=1000)


WRONG = {
    "different values": "st.shared.u32 [s], %r1;",
    "divergent warp collective": "setp.lt.u32 %p1, %r1, 16;\n@%p1 shfl.sync.bfly.b32 %r4, %r1, 1, 31, -1;",
    "divergent barrier": "setp.lt.u32 %p1, %r1, 16;\n@%p1 bar.sync 0;\nbar.sync 0;",
    "global misaligned": "ld.global.u32 %r4, [%rd2+2];",
    "global out of bounds": "ld.global.u32 %r4, [%rd2+200];",
    "bad global address": "mov.u64 %rd3, 64;\nld.global.u32 %r4, [%rd3];",
    "shared out of bounds": "ld.shared.u32 %r4, [%r3+192];",
    "shared misaligned": "ld.shared.u32 %r4, [%r3+1];",
    "no memory of this name": "ld.shared.u32 %r4, [nothing];",
    "trap": "trap;",
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_kernel_is_found_out(message):
    with pytest.raises(PtxError, match=message):
        run_kernel(WRONG[message])


def test_a_structure_is_passed_by_value():
    text = kernel(
        """ld.param.u64 %rd3, [s+8];
mov.b64 %rd4, s;
ld.param.u32 %r4, [%rd4+4];
add.s64 %rd3, %rd3, 4;
st.global.u32 [%rd3], %r4;"""
    )
    text = text.replace(".param .u64 out)", ".param .u64 out, .param .align 8 .b8 s[16])").replace(
        "s[256]", "memory[256]"
    )

    class Pair(ctypes.Structure):
        _fields_ = (("unused", ctypes.c_int32), ("value", ctypes.c_int32), ("target", Pointer))

    target = torch.zeros(2, dtype=torch.int32)
    emulator.run(text, [np.zeros(64, np.int32), Record(Pair(), value=7, target=target)], 1, 32)
    assert target.tolist() == [0, 7]
    with pytest.raises(PtxError, match="structure of 16 bytes, got 100"):
        emulator.run(text, [np.zeros(64, np.int32), Record(SharedPlan())], 1, 32)


def test_an_endless_loop_is_found_out():
    with pytest.raises(PtxError, match="too many steps"):
        run_kernel("L: bra L;", max_steps=1000)


@pytest.mark.parametrize(
    "body",
    [
        "bar.sync 1;",
        "bar.red.popc.u32 %r4, 0, %p1;",
        "add.sat.s32 %r4, %r1, %r1;",
        "match.any.sync.b32 %r4, %r1, -1;",
        "cp.async.bulk.commit_group;",
        "mov.u32 %r4, %clock;",
        "prmt.b32.f4e %r4, %r1, %r2, %r3;",
    ],
)
def test_what_is_not_emulated_is_refused(body):
    with pytest.raises(PtxError, match="not emulated"):
        run_kernel(body)


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(PtxError, match="takes 1 parameters"):
        emulator.run(kernel(""), [np.zeros(32, np.int32), 1], 1, 32)
    with pytest.raises(PtxError, match=r"no \.reqntid"):
        emulator.run(kernel(""), [np.zeros(32, np.int32)], 1)
    with pytest.raises(PtxError, match="matches 0"):
        emulator.parse(kernel(""), "another")


def test_a_view_starts_where_it_starts():
    base = torch.zeros(40, dtype=torch.int32)
    run_kernel("st.global.u32 [%rd2], %r1;", base[8:])
    assert torch.equal(base[8:], torch.arange(32, dtype=torch.int32))
    assert not base[:8].any()


@pytest.mark.parametrize("kind", ["f16x2", "bf16x2"])
def test_comparison_of_pairs(kind, seed):
    dtype = torch.float16 if kind == "f16x2" else torch.bfloat16
    pairs = torch.randn(32, 2).to(dtype)
    pairs[0] = float("nan")
    body = f"""ld.global.u32 %r4, [%rd2];
mov.b32 %r5, 0;
setp.gt.{kind} %p1|%p2, %r4, %r5;
selp.u32 %r6, 1, 0, %p1;
selp.u32 %r7, 2, 0, %p2;
add.u32 %r6, %r6, %r7;
st.global.u32 [%rd2], %r6;"""
    found = run_kernel(body, pairs.clone()).view(torch.int32)[:, 0]
    assert torch.equal(found, (pairs[:, 0] > 0).int() + 2 * (pairs[:, 1] > 0).int())


INTEGER = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "mul.hi": lambda a, b: (a * b) >> 32,
    "div": lambda a, b: abs(a) // b * (-1 if a < 0 else 1),
    "rem": lambda a, b: abs(a) % b * (-1 if a < 0 else 1),
    "min": min,
    "max": max,
    "shr": lambda a, b: a >> b,
    "popc": lambda a, b: (a & 0xFFFFFFFF).bit_count(),
    "clz": lambda a, b: 32 - (a & 0xFFFFFFFF).bit_length(),
    "brev": lambda a, b: int(f"{a & 0xFFFFFFFF:032b}"[::-1], 2),
}


@pytest.mark.parametrize("kind", ["s32", "u32"])
@pytest.mark.parametrize("op", INTEGER)
def test_operations_on_integers(op, kind, seed):
    rng = np.random.default_rng(seed)
    dtype = np.int32 if kind == "s32" else np.uint32
    buffer = rng.integers(0, 2**32, 64, dtype=np.uint32).view(dtype)
    buffer[:3] = [0, 1, np.iinfo(dtype).min]
    buffer[32:] = rng.integers(1, 31, 32)
    want = [INTEGER[op](int(a), int(b)) & 0xFFFFFFFF for a, b in zip(buffer[:32], buffer[32:], strict=True)]
    unary = op in ("popc", "clz", "brev")
    body = f"""ld.global.u32 %r4, [%rd2];
ld.global.u32 %r5, [%rd2+128];
{op}.{"b32" if unary else kind} %r6, %r4{"" if unary else ", %r5"};
st.global.u32 [%rd2], %r6;"""
    run_kernel(body, buffer)
    assert [int(value) & 0xFFFFFFFF for value in buffer[:32]] == want
