"""Number formats that numpy lacks, and comparisons as PTX has them."""

import numpy as np

U32 = np.uint32
Array = np.ndarray


def bf16_to_f32(bits: Array) -> Array:
    """Exact."""
    return (bits.astype(U32) << 16).view(np.float32)


def f32_to_bf16(values: Array) -> Array:
    """Bits of the nearest, ties to even; of NaN the one that the hardware makes."""
    bits = np.ascontiguousarray(values, np.float32).view(U32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), nearest)


def canonical(values: Array) -> Array:
    """The values with the one NaN that the hardware makes, whichever the operands had: it does not depend on order."""
    nan = np.isnan(values)
    if not nan.any():
        return values
    one = np.array(np.iinfo(f"i{values.itemsize}").max, f"i{values.itemsize}").view(values.dtype)
    return np.where(nan, one, values)


def f32_to_tf32(values: Array) -> Array:
    """Bits of the nearest, ties away from zero (cvt.rna.tf32): the 13 low ones are zero. Infinity and NaN stay."""
    bits = np.ascontiguousarray(values, np.float32).view(U32)
    special = (bits & 0x7F800000) == 0x7F800000
    return np.where(special, bits, (bits + U32(0x1000)) & U32(0xFFFFE000))


def is_float(kind: str) -> bool:
    """Whether a PTX type is floating, packed pairs included."""
    return "f" in kind


_COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def compare(name: str, a: Array, b: Array) -> Array:
    """A comparison by its PTX name: a third letter `u` makes it true where one of the operands is NaN."""
    nan = np.isnan(a) | np.isnan(b) if a.dtype.kind == "f" else np.zeros(np.broadcast(a, b).shape, bool)
    if name in ("num", "nan"):
        return nan if name == "nan" else ~nan
    base = _UNSIGNED.get(name[:2], name[:2])
    found = _COMPARISONS[base](a, b)
    if len(name) == 3:
        return found | nan
    return found & ~nan if base == "ne" else found
