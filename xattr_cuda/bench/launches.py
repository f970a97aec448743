"""What a step does on a GPU, recorded without one: its launches and the bytes that they move.

The step runs on PyTorch's `meta` device, whose tensors have shapes and no values, and makes the choices that it would
make on a GPU: the same operators call the same launchers of Triton kernels, whose `kernel[grid](...)` is noted and not
run. Nothing is known of an operator or a launcher beforehand.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._prims_common import suggest_memory_format
from torch.utils._pytree import tree_map_only

from ..ops import gpu
from ..ops.schemas import NAMESPACE
from .contestants import Step
from .count import ALLOCATIONS, Count, Counter, tensors_of

CAPABILITY, MULTIPROCESSORS = 90, 132
"""Of the GPU that is stood for, an H100: launchers choose block shapes, and how to divide the work, by these."""

CONVOLUTIONS = {  # operator: where its arguments have the input and the weight
    torch.ops.aten.convolution: slice(0, 2),
    torch.ops.aten.convolution_backward: slice(1, 3),
}
"""Composed of others in name only: they leave the choice of a kernel to the device."""


class Launch(NamedTuple):
    """One launch: the kernel, or PyTorch's operator, and the bytes of the tensors that it reads and writes."""

    name: str
    bytes: int


class _Gpu:
    """What launchers ask Triton's driver about the device, in the place of a driver."""

    executes_cpu_tensors = False
    utils = SimpleNamespace(get_device_properties=lambda device: {"multiprocessor_count": MULTIPROCESSORS})

    def get_current_target(self) -> Any:
        return SimpleNamespace(backend="cuda", arch=CAPABILITY, warp_size=32)


def _composed(func: Any) -> DispatchKey | None:
    """The key of the kernel that computes an operator by others, where no device has a kernel of its own."""
    has, name = torch._C._dispatch_has_kernel_for_dispatch_key, func.name()
    if has(name, "CompositeImplicitAutograd"):
        return DispatchKey.CompositeImplicitAutograd
    if "Scalar" in func._overloadname:
        return None  # composed in name only: of the same operator, with the number as a tensor
    if func.is_view or func._schema.name.rpartition("::")[2] in ALLOCATIONS or func._overloadpacket in CONVOLUTIONS:
        return None
    if has(name, "CompositeExplicitAutograd") and not has(name, "CPU"):
        return DispatchKey.CompositeExplicitAutograd
    return None


def _as_cudnn(place: slice, args: Any, result: Any) -> Any:
    """What a convolution returns, in the memory format of cuDNN: channels last where the input or the weight has it."""
    formats = [suggest_memory_format(t) for t in args[place]]
    last = next((f for f in formats if f != torch.contiguous_format), torch.contiguous_format)
    return tree_map_only(Tensor, lambda t: t if t.dim() < 4 else t.to(memory_format=last), result)


class Recorder(Counter):
    """Counts what runs below it on the `meta` device as a GPU would run it.

    An operator of PyTorch is one launch; one that PyTorch composes of others is those, and the backward pass of a
    convolution one for each gradient that is asked for. Views and allocations are none. A kernel reads or writes every
    tensor that it is given once, scratch among them; so does an operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self._within = 0  # calls of the package's own operators, whose FLOPs are counted as a whole

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == NAMESPACE:
            return self._own(func, args, kwargs)
        key, before = _composed(func), len(self.launches)
        if key is None:
            result = func(*args, **kwargs)
            if func._overloadpacket in CONVOLUTIONS:
                result = _as_cudnn(CONVOLUTIONS[func._overloadpacket], args, result)
        else:
            with self:
                result = func._op_dk(key, *args, **kwargs)
        if len(self.launches) == before:  # the parts of a copy, say, are out of sight
            self.note(func, args, kwargs, result)
        return result

    def _own(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operator of the package: what a GPU runs for it."""
        name = func._schema.name.rpartition("::")[2]
        failed = name in gpu.failures
        self.add_flops(func, args, kwargs, None)
        self._within += 1
        try:
            with self:
                result = gpu.RUNNERS[name](*args, **kwargs)
        finally:
            self._within -= 1
        if name in gpu.failures:
            why = gpu.failures[name] if failed else gpu.failures.pop(name)
            raise RuntimeError(f"xattr::{name}: its launches cannot be recorded: {why}")
        return result

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count an operator that has run; the gradients of a convolution one by one."""
        if func._overloadpacket is not torch.ops.aten.convolution_backward:
            super().note(func, args, kwargs, result)
            return
        g, x, weight = args[:3]
        for other, made in zip((weight, x), result[:2], strict=True):
            if made is not None:
                self.launch("convolution_backward", [g, other, made])
        self.add_flops(func, args, kwargs, result)

    def launch(self, name: str, touched: Sequence[Tensor]) -> None:
        """Count one launch, and keep its name and bytes."""
        before = self.count.bytes
        super().launch(name, touched)
        self.launches.append(Launch(name, self.count.bytes - before))

    def add_flops(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count the products of an operator, unless one of the package's, which has been counted, runs it."""
        if not self._within:
            super().add_flops(func, args, kwargs, result)

    def kernel(self, kernel: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        """What stands for the `run` of a Triton kernel: a launch, unless its grid is empty."""
        if prod(grid):
            self.launch(kernel.fn.__name__, tensors_of((args, kwargs)))


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def recorder(by_layer: bool = False) -> Iterator[Recorder]:
    """A Recorder at work within a `with` block; RuntimeError where there are no Triton kernels.

    by_layer: every network goes layer by layer through the package's kernels, although a perceptron might be swept in
    one launch, and although PyTorch's own products with masks apart might be faster.
    """
    if reason := gpu.missing():
        raise RuntimeError(reason)
    from triton.runtime import JITFunction
    from triton.runtime.driver import driver

    mode = Recorder()
    with ExitStack() as replaced:
        replaced.enter_context(_replaced(driver, "_active", _Gpu()))
        replaced.enter_context(
            _replaced(JITFunction, "run", lambda kernel, *args, **named: mode.kernel(kernel, *args, **named))
        )
        if by_layer:
            replaced.enter_context(_replaced(gpu, "serves_perceptron", lambda weights: False))
            replaced.enter_context(_replaced(gpu, "_faster", lambda name, args, launcher: launcher))
        replaced.enter_context(mode)
        yield mode


def record(step: Step, by_layer: bool = False) -> tuple[Count, list[Launch]]:
    """What one call of a step on tensors of the `meta` device does; it is called once before, as in `count`."""
    with recorder(by_layer):
        step()
    with recorder(by_layer) as mode:
        step()
    return mode.count, mode.launches
