"""Which implementation of the operators runs: the one choice, made in one place.

`auto` leaves the choice to PyTorch's dispatcher: the fastest kernel that the tensors' device has, the reference where
there is none. A named back end is forced and refused with a reason where it cannot run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import gpu
from .library import checked_reference, extension, extension_missing
from .schemas import NAMESPACE, SCHEMAS

BACKENDS = ("reference", "cpu", "triton", "cuda")

_dispatched = {name: getattr(getattr(torch.ops, NAMESPACE), name).default for name in SCHEMAS}
_reference = {name: checked_reference(name) for name in SCHEMAS}

# One choice for the process, as torch.backends has it: torch.compile guards on a global, not on a ContextVar.
_active = "auto"
_device: str | None = None  # the only one that a forced back end runs on


def unavailable(backend: str) -> str:
    """Why a back end cannot run here, and what to do about it; empty if it can."""
    if backend not in BACKENDS:
        return f"there is no back end {backend!r}; choose one of {', '.join(BACKENDS)}"
    if backend == "cpu" and extension is None:
        return f"the C++ extension is {extension_missing}; install a C++ compiler and reinstall without NO_EXT"
    if backend == "triton":
        return gpu.unavailable()
    if backend == "cuda":
        return gpu.native_unavailable()
    return ""


def active() -> str:
    """The name of the back end in force: `auto` or one of BACKENDS."""
    return _active


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a back end inside a `with` block.

    name: `reference` (pure PyTorch, any device), `cpu` (the C++ kernels), `triton` (the GPU kernels in Triton; what
    they do not serve, such as float64, runs on the reference), `cuda` (those in CUDA C++; what they do not serve runs
    as where the extension has none), or `auto`, the default: the fastest that the tensors' device has. The choice holds
    for all threads of the process. A backward pass runs on the back end of its forward pass.
    Raises RuntimeError, with what to do, where the back end cannot run.
    """
    if name != "auto" and (reason := unavailable(name)):
        raise RuntimeError(f"back end {name!r} cannot run: {reason}")
    before = _active
    _set(name)
    try:
        yield
    finally:
        _set(before)


def _set(name: str) -> None:
    global _active, _device
    _active, gpu.forced = name, name == "triton"
    gpu.use_native(name != "triton", force=name == "cuda")
    _device = {"cpu": "cpu", "triton": gpu.device(), "cuda": "cuda"}.get(name)


def check_device(device: torch.device, op: str = "") -> None:
    """Raise RuntimeError where the back end in force does not run on `device`; `op` is the operator that is called."""
    if _device is not None and device.type != _device:
        who, move = f"{NAMESPACE}::{op}: " if op else "", f"move them to {_device!r} or use 'reference'"
        raise RuntimeError(f"{who}back end {_active!r} was forced, but the tensors are on {device}; {move}")


def _on_triton(name: str) -> Callable[..., Any]:
    """Operator `name` on its Triton kernel, on whichever device these run."""
    dispatched = _dispatched[name]

    def run(*args: Any) -> Any:
        check_device(gpu.first_tensor(args).device, name)
        if _device == "cuda":
            return dispatched(*args)
        with gpu.OnTriton():
            return dispatched(*args)

    return run


_triton = {name: _on_triton(name) for name in SCHEMAS}


def has_perceptron_kernels(weights: Sequence[Tensor]) -> bool:
    """Whether the operators of whole perceptrons have kernels for these weights on the back end in force."""
    device = weights[0].device.type
    if device == "cpu" and _active in ("auto", "cpu"):
        return extension is not None
    # Tensors without values go the way of a GPU's, so that what it would do can be recorded.
    on_gpu = device in ("cuda", "meta") if _active in ("auto", "cuda") else _active == "triton"
    return on_gpu and gpu.serves_perceptron(weights)


def implementation(name: str) -> Callable[..., Any]:
    """The function that runs operator `name` on the back end in force."""
    return (_reference if _active == "reference" else _triton if _active == "triton" else _dispatched)[name]
