"""Triton's interpreter on kernels that are otherwise compiled, as a second opinion, with bfloat16 computed correctly.

    with interpreted():
        kernel[grid](x, y)          # interpreted; outside of the block it is compiled as ever

Triton decides when `@triton.jit` decorates a function whether that is interpreted (TRITON_INTERPRET); here the launch
decides. Its interpreter keeps bfloat16 as uint16 and computes with the bit patterns, and cuts off float32 that becomes
bfloat16. Inside the block every operation on bfloat16 is computed in float32 and rounded to the nearest, and products
at `tf32` take their operands as the hardware does, without the 13 low bits.

Not covered: atomics on bfloat16, eight-bit floats, reductions by functions of one's own, autotuned kernels.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.jit import JITFunction

from . import samples
from .formats import Array, bf16_to_f32, f32_to_bf16

Handle = interpreter.TensorHandle
Builder = interpreter.InterpreterBuilder
Reductions = interpreter.ReduceOps


def _is_bf16(handle: Any) -> bool:
    return not isinstance(handle.dtype, tl.pointer_type) and handle.dtype.scalar == tl.bfloat16


def _up(handle: Any) -> Any:
    """Float32 in place of bfloat16; anything else as it is."""
    return Handle(bf16_to_f32(np.ascontiguousarray(handle.data)), tl.float32) if _is_bf16(handle) else handle


def _down(handle: Any) -> Any:
    """Bfloat16 in place of float32; anything else, such as a truth value, as it is."""
    return Handle(f32_to_bf16(handle.data), tl.bfloat16) if handle.data.dtype == np.float32 else handle


def _in_float32(original: Callable[..., Any], operands: int) -> Callable[..., Any]:
    """A method of the builder whose first `operands` arguments may be bfloat16."""

    def method(self: Any, *args: Any) -> Any:
        handles, rest = args[:operands], args[operands:]
        if not any(isinstance(h, Handle) and _is_bf16(h) for h in handles):
            return original(self, *args)
        return _down(original(self, *map(_up, handles), *rest))

    return method


def _binary_op(original: Callable[..., Any]) -> Callable[..., Any]:
    """In float32; and a comparison is of type int1, which Triton's interpreter gives the type of its operands."""
    in_float32 = _in_float32(original, 2)

    def method(self: Any, *args: Any) -> Any:
        found = in_float32(self, *args)
        return Handle(found.data, tl.int1) if found.data.dtype == np.bool_ else found

    return method


def _ternary_op(original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, a: Any, b: Any, c: Any, op: Any) -> Any:
        if op is np.where or not _is_bf16(c):  # a selection of bit patterns is right as it is
            return original(self, a, b, c, op)
        return _down(original(self, _up(a), _up(b), _up(c), op))

    return method


def _cast(original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, source: Any, target: Any) -> Any:
        frm, to = source.dtype.scalar, target.scalar
        if frm == tl.bfloat16 and to != tl.bfloat16:
            return Handle(bf16_to_f32(np.ascontiguousarray(source.data)).astype(interpreter._get_np_dtype(target)), to)
        if to == tl.bfloat16 and frm != tl.bfloat16:
            return Handle(f32_to_bf16(source.data.astype(np.float32)), to)
        return original(self, source, target)

    return method


def _between_floats(original: Callable[..., Any], cast: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        frm, to = source.dtype.scalar, target.scalar
        nearest = rounding in (None, ir.ROUNDING_MODE.RTNE)
        if tl.bfloat16 in (frm, to) and nearest and min(frm.primitive_bitwidth, to.primitive_bitwidth) > 8:
            return cast(self, source, target)
        return original(self, source, target, rounding)

    return method


def _tf32(values: Array) -> Array:
    """What a tensor core sees of float32."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _dot(original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, a: Any, b: Any, total: Any, precision: Any, imprecise: Any) -> Any:
        a, b = _up(a), _up(b)
        if precision == ir.INPUT_PRECISION.TF32 and a.dtype.scalar == tl.float32:
            a, b = (Handle(_tf32(h.data), tl.float32) for h in (a, b))
        return original(self, a, b, total, precision, imprecise)

    return method


def _tensor(handle: Any, kind: Any) -> Any:
    shape = list(handle.data.shape)
    return tl.core.tensor(handle, tl.block_type(kind, shape) if shape else kind)


def _sum(original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, t: Any) -> Any:
        if not _is_bf16(t.handle):
            return original(self, t)
        total = original(self, _tensor(_up(t.handle), tl.float32))
        return _tensor(_down(total.handle), tl.bfloat16)

    return method


def _min_max(original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, t: Any, val_reduce_op: Any, idx_reduce_op: Any = None) -> Any:
        t = t[0] if isinstance(t, tuple) else t
        if not _is_bf16(t.handle):
            return original(self, t, val_reduce_op, idx_reduce_op)
        found = original(self, _tensor(_up(t.handle), tl.float32), val_reduce_op, idx_reduce_op)
        if isinstance(found, tuple):  # (value, index)
            return _tensor(_down(found[0].handle), tl.bfloat16), found[1]
        return _tensor(_down(found.handle), tl.bfloat16) if val_reduce_op else found

    return method


def _bf16_patches() -> list[Any]:
    cast = _cast(Builder.cast_impl)
    methods = {
        "binary_op": _binary_op(Builder.binary_op),
        "unary_op": _in_float32(Builder.unary_op, 1),
        "create_fma": _in_float32(Builder.create_fma, 3),
        "ternary_op": _ternary_op(Builder.ternary_op),
        "cast_impl": cast,
        "create_fp_to_fp": _between_floats(Builder.create_fp_to_fp, cast),
        "create_dot": _dot(Builder.create_dot),
    }
    reductions = {"sum": _sum(Reductions.sum), "min_max": _min_max(Reductions.min_max)}
    return [patch.multiple(Builder, **methods), patch.multiple(Reductions, **reductions)]


def _with_index(original: Callable[..., Any]) -> Callable[..., Any]:
    """The bounds of a loop are arrays of one element, of which a newer numpy makes no number by itself."""

    def patched(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patched


@functools.cache
def _interpreted_function(function: Callable[..., Any]) -> Any:
    return interpreter.InterpretedFunction(function)


def _device_call(kernel: Any, *args: Any, **kwargs: Any) -> Any:
    """A function under @triton.jit that a kernel calls: one of the package's, or tl.sum, tl.zeros and their like."""
    scope = interpreter._patch_lang(kernel.fn)
    try:
        return _interpreted_function(kernel.fn).rewrite()(*args, **kwargs)
    finally:
        scope.restore()  # Triton's own call leaves its patches behind


def _run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
    return _interpreted_function(kernel.fn).run(*args, grid=grid, warmup=warmup, **kwargs)


@contextmanager
def interpreted() -> Iterator[None]:
    """Kernels that are launched inside the `with` block are interpreted."""
    with ExitStack() as stack:
        index = patch.object(interpreter, "_patch_lang_tensor", _with_index(interpreter._patch_lang_tensor))
        for change in (*_bf16_patches(), index, patch.multiple(JITFunction, __call__=_device_call, run=_run)):
            stack.enter_context(change)
        yield


@functools.cache
def unusable() -> str:
    """Why this Triton's interpreter cannot run here, as with a numpy that is newer than it; empty if it can."""
    tensors = samples.linear_tensors(1, 32, 16, torch.float32)
    try:
        with interpreted():
            samples.linear_relu_mask[(1, 1)](*samples.linear_args(*tensors), BM=16, BN=32, BK=16, PRECISION="ieee")
    except InterpreterError as error:
        return f"the interpreter of Triton {triton.__version__} with numpy {np.__version__}: {error}"
    return ""
