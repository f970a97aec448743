"""Per-thread instructions of the PTX emulator: moves, integer, floating point, conversions, memory
operations.

Every value is a numpy array over all threads; a handler i_<op>(x, act) writes only the threads in `act`.
"""

import re

import numpy as np

from .memory import SHARED
from .ptx import FLOAT, PACKED, UINT, PtxError, dtype, width

U32, U64 = np.uint32, np.uint64


def bf16_to_f32(u):
    return (u.astype(U32) << 16).view(np.float32)


def f32_to_bf16(f):
    """Round to nearest even."""
    b = np.ascontiguousarray(f, np.float32).view(U32)
    return np.where(np.isnan(f), np.uint16(0x7FFF), ((b + 0x7FFF + ((b >> 16) & 1)) >> 16).astype(np.uint16))


def f32_to_tf32(f):
    """cvt.rna.tf32: nearest, ties away from zero; 13 low bits cleared."""
    b = np.ascontiguousarray(f, np.float32).view(U32)
    return np.where((b & 0x7F800000) == 0x7F800000, b, (b + U32(0x1000)) & U32(0xFFFFE000))


def compare(name, a, b):
    """Setp comparison; 'lo ls hi hs' are the unsigned names, a trailing 'u' means true if unordered."""
    nan = np.isnan(a) | np.isnan(b) if a.dtype.kind == "f" else np.zeros(np.broadcast(a, b).shape, bool)
    if name in ("num", "nan"):
        return nan if name == "nan" else ~nan
    unordered = len(name) == 3
    base = name[:2]
    base = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(base, base)
    v = {
        "eq": np.equal,
        "ne": np.not_equal,
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
    }[base](a, b)
    if unordered:
        return v | nan
    return v & ~nan if base == "ne" else v


def is_float(ty):
    return "f" in ty


def fused(u, v, w):
    return (u.astype(np.float64) * v + w).astype(u.dtype)


def reject_modifiers(x):
    """Modifiers that would silently change the result; everything else is a hint or is handled by the op."""
    bad = set()
    if x.op[0] != "cvt":
        bad = {"sat"} | ({"rz", "rm", "rp"} if is_float(x.ty) else set())
    elif x.op[-2] not in PACKED:
        bad = {"rz", "rm", "rp", "relu"} | ({"sat"} if not is_float(x.ty) else set())
    if x.mods & bad or (x.op[0] in ("set", "setp", "ex2", "tanh") and x.ty in PACKED):
        raise PtxError("not emulated: " + x.text)


class Ops:
    """Mixin; the Run class provides get(), put(), T, and Memory the loads and stores."""

    # ---- moves and memory ----
    def i_mov(self, x, act):
        dst, src = x.args
        whole = width(x.ty)
        if isinstance(src, list):  # pack
            w = whole // len(src)
            v = np.zeros(self.T, UINT[whole])
            for i, s in enumerate(src):
                v |= self.get(s, f"u{w}").astype(v.dtype) << v.dtype.type(i * w)
            self.put(dst, v, act)
        elif isinstance(dst, list):  # unpack
            w = whole // len(dst)
            v = self.get(src, f"u{whole}")
            for i, d in enumerate(dst):
                self.put(d, (v >> v.dtype.type(i * w)).astype(UINT[w]), act)
        else:
            self.put(dst, self.get(src, x.ty), act)

    def i_cvta(self, x, act):
        self.put(x.args[0], self.get(x.args[1], x.ty), act)

    def i_ld(self, x, act):
        dst, src = x.args
        if "param" in x.mods:
            return self.put(dst, self.load_param(src, x.ty), act)
        dst = dst if isinstance(dst, list) else [dst]
        n = width(x.ty) // 8
        raw = self.load(bool(x.mods & SHARED), self.addr(src), n * len(dst), act, x)
        for i, d in enumerate(dst):
            self.put(d, np.ascontiguousarray(raw[:, i * n : (i + 1) * n]).view(dtype(x.ty))[:, 0], act)

    def load_param(self, src, ty):
        value = np.full(self.T, self.params[re.match(r"\[\s*([\w$]+)", src)[1]])
        if width(ty) == value.itemsize * 8:
            return value.view(dtype(ty))
        return value.astype(UINT[width(ty)])

    def i_st(self, x, act):
        dst, src = x.args
        src = src if isinstance(src, list) else [src]
        values = [np.ascontiguousarray(self.get(s, f"u{width(x.ty)}")) for s in src]
        raw = [v.view(np.uint8).reshape(self.T, -1) for v in values]
        self.store(bool(x.mods & SHARED), self.addr(dst), np.concatenate(raw, 1), act, x)

    def i_atom(self, x, act):
        self.atomic(x, act, x.args[0], x.args[1], x.args[2:])

    def i_red(self, x, act):
        self.atomic(x, act, None, x.args[0], x.args[1:])

    def atomic(self, x, act, dst, mem, operands):
        n, ty = width(x.ty) // 8, dtype(x.ty)
        functions = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
            "exch": lambda old, new: new,
            "cas": None,
        }
        name = next((q for q in x.op[1:] if q in functions), None)
        if name is None or x.ty in PACKED or x.ty == "bf16":
            raise PtxError("not emulated: " + x.text)
        a, values = self.addr(mem), [self.get(o, x.ty) for o in operands]
        old = np.zeros(self.T, ty)
        if x.mods & SHARED:
            parts = [(self.shared, np.nonzero(act)[0], self.shared_index(a, n, act, x)[:, 0])]
        else:
            parts = self.global_split(a, n, act, x)
        for buf, threads, offset in parts:
            view = buf[: buf.size // n * n].view(ty)
            for t, j in zip(threads, offset // n):  # one at a time, in thread order
                old[t] = view[j]
                if name == "cas":
                    view[j] = values[1][t] if view[j] == values[0][t] else view[j]
                else:
                    view[j] = functions[name](view[j], values[0][t])
        if dst:
            self.put(dst, old, act)

    # ---- arithmetic ----
    def apply(self, x, act, f):
        """Dst = f(sources); bfloat16 and packed halves are computed in float32 and rounded once."""
        dst, src, ty = x.args[0], x.args[1:], x.ty
        if ty in PACKED:
            halves = [self.get(s, ty).view(np.uint16).reshape(-1, 2) for s in src]
            if ty == "f16x2":
                r = f(*[h.view(np.float16).astype(np.float32) for h in halves])
                r = r.astype(np.float16).view(np.uint16)
            else:
                r = f32_to_bf16(f(*[bf16_to_f32(h) for h in halves]))
            self.put(dst, np.ascontiguousarray(r).view(U32)[:, 0], act)
        elif ty == "bf16":
            self.put(dst, f32_to_bf16(f(*[bf16_to_f32(self.get(s, ty)) for s in src])), act)
        else:
            r = np.asarray(f(*[self.get(s, ty) for s in src]))
            self.put(dst, r.astype(dtype(ty), copy=False), act)

    def i_add(self, x, act):
        self.apply(x, act, np.add)

    def i_sub(self, x, act):
        self.apply(x, act, np.subtract)

    def i_min(self, x, act):  # without .NaN the number wins over NaN
        self.apply(x, act, np.fmin if is_float(x.ty) and "NaN" not in x.mods else np.minimum)

    def i_max(self, x, act):
        self.apply(x, act, np.fmax if is_float(x.ty) and "NaN" not in x.mods else np.maximum)

    def i_and(self, x, act):
        self.apply(x, act, np.bitwise_and)

    def i_or(self, x, act):
        self.apply(x, act, np.bitwise_or)

    def i_xor(self, x, act):
        self.apply(x, act, np.bitwise_xor)

    def i_not(self, x, act):
        self.apply(x, act, np.invert)

    def i_neg(self, x, act):
        self.apply(x, act, np.negative)

    def i_abs(self, x, act):
        self.apply(x, act, np.abs)

    def i_fma(self, x, act):
        self.apply(x, act, fused)

    def i_div(self, x, act):
        def truncating(u, v):
            a, b = u.astype(object), v.astype(object)  # object: no overflow for INT_MIN
            q = np.abs(a) // np.maximum(np.abs(b), 1) * np.sign(a) * np.sign(b)
            return np.where(v == 0, -1, q.astype(dtype(x.ty)))

        self.apply(x, act, np.divide if is_float(x.ty) else truncating)

    def i_rem(self, x, act):
        self.apply(x, act, lambda u, v: np.fmod(u, np.where(v == 0, 1, v)))

    def i_mul(self, x, act):
        if is_float(x.ty):
            self.apply(x, act, np.multiply)
        else:
            self.put(x.args[0], self.int_product(x)[0], act)

    def i_mad(self, x, act):
        if is_float(x.ty):
            return self.i_fma(x, act)
        r, ty = self.int_product(x)
        self.put(x.args[0], r + self.get(x.args[3], ty), act)

    def int_product(self, x):
        """(product, its type) for mul.lo, mul.hi and mul.wide."""
        u, v, w = self.get(x.args[1], x.ty), self.get(x.args[2], x.ty), width(x.ty)
        if "wide" in x.mods:
            wide = x.ty[0] + str(2 * w)
            return u.astype(dtype(wide)) * v.astype(dtype(wide)), wide
        if "hi" not in x.mods:
            return u * v, x.ty
        if w == 64:
            r = np.array([(int(i) * int(j)) >> 64 for i, j in zip(u, v)])
        else:
            d = dtype(x.ty[0] + "64")
            r = (u.astype(d) * v.astype(d)) >> d.type(w)
        return r.astype(dtype(x.ty)), x.ty

    # ---- bits ----
    def i_shl(self, x, act):
        w = width(x.ty)
        v, s = self.get(x.args[1], f"u{w}"), self.get(x.args[2], "u32").astype(np.int64)
        shifted = v << np.minimum(s, w - 1).astype(v.dtype)
        self.put(x.args[0], np.where(s >= w, v.dtype.type(0), shifted).astype(v.dtype), act)

    def i_shr(self, x, act):
        v, s, w = self.get(x.args[1], x.ty), self.get(x.args[2], "u32").astype(np.int64), width(x.ty)
        shifted = v >> np.minimum(s, w - 1).astype(v.dtype)
        gone = (s >= w) & (v.dtype.kind == "u")  # signed: the sign fills
        self.put(x.args[0], np.where(gone, v.dtype.type(0), shifted).astype(v.dtype), act)

    def i_shf(self, x, act):
        lo, hi, c = (self.get(o, "u32").astype(U64) for o in x.args[1:])
        c = np.minimum(c, U64(32)) if "clamp" in x.mods else c & U64(31)
        v = (hi << U64(32)) | lo
        self.put(x.args[0], ((v << c) >> U64(32) if "l" in x.mods else v >> c).astype(U32), act)

    def i_bfe(self, x, act):
        w = width(x.ty)
        v = self.get(x.args[1], x.ty).view(UINT[w])
        pos, n = ((self.get(o, "u32") & 255).astype(np.int64) for o in x.args[2:4])
        field = np.where(pos >= w, 0, v >> np.minimum(pos, w - 1).astype(UINT[w])).astype(U64)
        mask = np.where(n >= w, U64(2**w - 1), (U64(1) << np.minimum(n, 63).astype(U64)) - U64(1))
        r = field & mask
        if x.ty[0] == "s":
            sign_bit = np.maximum(np.minimum(pos + n - 1, w - 1), 0).astype(U64)
            sign = (v.astype(U64) >> sign_bit) & U64(1)
            r = np.where((sign == 1) & (n > 0), r | ~mask, r)
        self.put(x.args[0], r.astype(UINT[w]), act)

    def i_bfi(self, x, act):
        w = width(x.ty)
        src, base = (self.get(o, f"u{w}").astype(U64) for o in x.args[1:3])
        pos, n = (np.minimum(self.get(o, "u32") & 255, 63).astype(U64) for o in x.args[3:5])
        mask = ((U64(1) << n) - U64(1)) << pos
        self.put(x.args[0], ((base & ~mask) | ((src << pos) & mask)).astype(UINT[w]), act)

    def i_prmt(self, x, act):
        if x.ty != "b32":  # .f4e, .b4e, ... modes
            raise PtxError("not emulated: " + x.text)
        lo, hi, sel = (self.get(o, "u32").astype(U64) for o in x.args[1:4])
        v, r = (hi << U64(32)) | lo, np.zeros(self.T, U64)
        for i in range(4):
            q = (sel >> U64(4 * i)) & U64(15)
            byte = (v >> ((q & U64(7)) * U64(8))) & U64(255)
            sign = np.where(byte & U64(128), 255, 0).astype(U64)
            r |= np.where(q & U64(8), sign, byte) << U64(8 * i)
        self.put(x.args[0], r.astype(U32), act)

    def i_lop3(self, x, act):
        u, v, w = (self.get(o, "u32") for o in x.args[1:4])
        table, r = int(x.args[4], 0), np.zeros(self.T, U32)
        for i in range(8):
            if table >> i & 1:
                r |= (u if i & 4 else ~u) & (v if i & 2 else ~v) & (w if i & 1 else ~w)
        self.put(x.args[0], r, act)

    def i_popc(self, x, act):
        self.put(x.args[0], np.bitwise_count(self.get(x.args[1], x.ty)).astype(U32), act)

    def i_clz(self, x, act):
        w = width(x.ty)
        v, n = self.get(x.args[1], f"u{w}"), np.full(self.T, w, U32)
        for bit in range(w):
            n[(v >> v.dtype.type(bit)) & v.dtype.type(1) != 0] = w - 1 - bit
        self.put(x.args[0], n, act)

    def i_brev(self, x, act):
        w = width(x.ty)
        v = self.get(x.args[1], f"u{w}")
        r, one = np.zeros_like(v), v.dtype.type(1)
        for i in range(w):
            r |= ((v >> v.dtype.type(i)) & one) << v.dtype.type(w - 1 - i)
        self.put(x.args[0], r, act)

    # ---- comparison and selection ----
    def operands(self, x):
        a, b = self.get(x.args[1], x.ty), self.get(x.args[2], x.ty)
        return (bf16_to_f32(a), bf16_to_f32(b)) if x.ty == "bf16" else (a, b)

    def i_setp(self, x, act):
        """setp.cmp[.bool] p[|q], a, b[, c]:  p = bool(cmp, c), q = bool(!cmp, c)."""
        v = compare(x.op[1], *self.operands(x))
        other = ~v
        if len(x.args) > 3:
            name = x.args[3]
            combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[x.op[2]]
            c = self.get(name, "pred")
            v, other = combine(v, c), combine(other, c)
        for d, value in zip(x.args[0].split("|"), (v, other)):
            self.put(d, value, act)

    def i_set(self, x, act):
        true = U32(0x3F800000) if x.op[-2] == "f32" else U32(0xFFFFFFFF)
        self.put(x.args[0], np.where(compare(x.op[1], *self.operands(x)), true, U32(0)), act)

    def i_selp(self, x, act):
        a, b = self.get(x.args[1], x.ty), self.get(x.args[2], x.ty)
        self.put(x.args[0], np.where(self.get(x.args[3], "pred"), a, b), act)

    # ---- conversion and special functions ----
    def i_cvt(self, x, act):
        to, frm = x.op[-2], x.op[-1]
        if to in PACKED:
            return self.put(x.args[0], self.cvt_pack(x, to), act)
        v = self.get(x.args[1], frm)
        if frm == "bf16":
            v = bf16_to_f32(v)
        if to == "tf32":
            return self.put(x.args[0], f32_to_tf32(v), act)
        if to == "bf16":
            return self.put(x.args[0], f32_to_bf16(v.astype(np.float32)), act)
        if v.dtype.kind == "f":
            for mode, f in (("rzi", np.trunc), ("rni", np.rint), ("rmi", np.floor), ("rpi", np.ceil)):
                if mode in x.mods:
                    v = f(v)
            if to[0] != "f":
                v = self.saturate(v, to)
            elif "sat" in x.mods:
                v = np.clip(np.nan_to_num(v), 0, 1)
        self.put(x.args[0], v.astype(dtype(to)), act)

    def cvt_pack(self, x, to):
        hi, lo = self.get(x.args[1], "f32"), self.get(x.args[2], "f32")
        if "relu" in x.mods:
            hi, lo = np.fmax(hi, 0), np.fmax(lo, 0)
        half = f32_to_bf16 if to == "bf16x2" else lambda f: f.astype(np.float16).view(np.uint16)
        return (half(hi).astype(U32) << 16) | half(lo)

    def saturate(self, v, to):
        """Float to integer clamps to the range (NaN gives 0)."""
        info = np.iinfo(dtype(to))
        v = np.clip(np.nan_to_num(v.astype(np.float64)), float(info.min), float(info.max))
        if width(to) == 64:  # float64 cannot hold the 64-bit maximum
            v = np.where(v >= float(info.max), info.max, v.astype(dtype(to)))
        return v

    def special(self, x, act, f):
        if width(x.ty) not in FLOAT or x.ty not in ("f16", "f32", "f64"):
            raise PtxError("not emulated: " + x.text)
        self.put(x.args[0], f(self.get(x.args[1], x.ty).astype(np.float64)).astype(dtype(x.ty)), act)

    def i_ex2(self, x, act):
        self.special(x, act, np.exp2)

    def i_lg2(self, x, act):
        self.special(x, act, np.log2)

    def i_rcp(self, x, act):
        self.special(x, act, lambda v: 1 / v)

    def i_sqrt(self, x, act):
        self.special(x, act, np.sqrt)

    def i_rsqrt(self, x, act):
        self.special(x, act, lambda v: 1 / np.sqrt(v))

    def i_sin(self, x, act):
        self.special(x, act, np.sin)

    def i_cos(self, x, act):
        self.special(x, act, np.cos)

    def i_tanh(self, x, act):
        self.special(x, act, np.tanh)

    # ---- no effect here ----
    def nop(self, x, act):
        pass

    i_membar = i_fence = i_prefetch = i_nanosleep = i_createpolicy = i_discard = nop

    def i_trap(self, x, act):
        raise PtxError("trap (device-side assert)")
