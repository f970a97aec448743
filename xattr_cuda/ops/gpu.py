"""Operators on GPU tensors: the kernel in CUDA C++ where the extension has one, else Triton's, else the reference.

This is the one place where that is chosen. An operator with a kernel in CUDA C++ (`NATIVE`) goes there from PyTorch's
dispatcher, without Python between; for what that does not serve, such as float64, its glue calls the operator of the
same name in `xattr_below`, which is what all others are: Triton over the reference. The glue of perceptrons takes what
was measured to be the fastest (`way_of` in csrc/cuda/perceptron.h).

Triton is imported, and a kernel compiled, when a GPU tensor first needs it.
A Triton that is missing, or a kernel that fails to compile or to start, is reported in one warning and replaced by the
reference from then on; unless the back end was forced (`use_backend("triton")`), where it is an error. What a kernel
does not serve, float64 among it, goes to the reference without a word.
"""

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import signature
from .library import checked_reference, extension
from .schemas import NAMESPACE, SCHEMAS

OLDEST = (8, 0)  # compute capability: below it there is no bf16, nor the asynchronous copies that kernels are made for
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

forced = False
"""Whether failures are errors; set by `use_backend`."""

failures: dict[str, str] = {}
"""Why an operator runs on the reference although it has a kernel, by operator."""

NATIVE = frozenset(
    name for name in SCHEMAS if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CUDA")
)
"""The operators for which the extension has registered a kernel in CUDA C++."""

_library = torch.library.Library(NAMESPACE, "IMPL")
_below = torch.library.Library(f"{NAMESPACE}_below", "DEF")
_reference = {name: checked_reference(name) for name in SCHEMAS}


def executes_cpu_tensors() -> bool:
    """Whether Triton's active driver runs kernels on CPU tensors, as that of an emulator does, which says so itself."""
    if sys.modules.get("triton") is None:
        return False
    from triton.runtime.driver import driver

    # The property `active` would create the default driver, which takes a GPU.
    return bool(getattr(driver._active, "executes_cpu_tensors", False))


def device() -> str:
    """Where the tensors of a forced `triton` have to be."""
    return "cpu" if executes_cpu_tensors() else "cuda"


def current_device() -> torch.device:
    """The device that Triton's kernels run on by default."""
    return torch.device("cpu") if device() == "cpu" else torch.device("cuda", torch.cuda.current_device())


def tuning() -> str:
    """Where the configurations of the kernels come from on the current device, in words."""
    if reason := unavailable():
        return f"none: {reason}"
    found = importlib.import_module("..kernels.triton.tuned", __package__).of_device(current_device())
    if found.refused:
        return f"none: {found.path} is refused: {found.refused}; `xattr-cuda bench --tune` writes it anew"
    if not found.choices:
        return "none: kernels take the package's configurations; `xattr-cuda bench --tune` tries others here"
    return f"{len(found.choices)} configurations measured on this device, from {found.path}"


def unavailable() -> str:
    """Why no Triton kernel can run here, and what to do about it; empty if they can."""
    if not executes_cpu_tensors():
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} sees no GPU"
        if reason := _too_old(torch.cuda.current_device()):
            return reason
    return missing()


def missing() -> str:
    """Why there are no Triton kernels here, whether a GPU is or not; empty if there are."""
    return _kernels()[1]


@functools.cache
def _too_old(index: int) -> str:
    if torch.version.hip or torch.cuda.get_device_capability(index) >= OLDEST:
        return ""
    capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
    wanted = ".".join(map(str, OLDEST))
    return f"{torch.cuda.get_device_name(index)} has compute capability {capability}; the kernels need {wanted}"


@functools.cache
def _kernels() -> tuple[ModuleType | None, str]:
    """The launchers and "", or None and the reason why they are missing."""
    try:
        return importlib.import_module("..kernels.triton", __package__), ""
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return None, "Triton is not installed; pip install 'xattr_cuda[triton]'"
        return None, f"the Triton kernels cannot be imported: {error}"
    except Exception as error:
        # An import of Triton may raise anything where its release and torch or the driver do not fit.
        return None, f"the Triton kernels cannot be imported: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@functools.cache
def _warn_once(reason: str) -> None:
    """One warning a reason and process."""
    warnings.warn(f"xattr_cuda: {reason}. GPU tensors run on the PyTorch reference instead.", stacklevel=2)


def launcher(name: str, args: Sequence[Any]) -> Callable[..., Any] | None:
    """What runs an operator on Triton for these arguments, or is faster there; None where that is the reference."""
    first = first_tensor(args)
    if first.dtype not in DTYPES or (name in failures and not forced):
        return None
    kernels, reason = _kernels()
    if not reason and first.is_cuda:
        reason = _too_old(first.device.index)
    if reason:
        if forced:
            raise RuntimeError(f"xattr::{name}: back end 'triton' was forced, but {reason}")
        _warn_once(reason)
        return None
    found = getattr(kernels, name, None)
    return None if found is None else _faster(name, args, found)


def _faster(name: str, args: Sequence[Any], fused: Callable[..., Any]) -> Callable[..., Any]:
    """The fused launcher, or what is faster or more exact for these arguments; a forced back end runs the kernel."""
    if forced:
        return fused
    if name.startswith("mlp_"):
        weights = next(arg for arg in args if isinstance(arg, (list, tuple)))
        return fused if _triton_serves_perceptron(weights) else _reference[name]
    by_parts = getattr(_kernels()[0], "by_parts", None)
    if by_parts is None or name not in by_parts.LAUNCHERS or not by_parts.pays(name, *args[:2]):
        return fused
    return cast(Callable[..., Any], by_parts.LAUNCHERS[name])


def serves(name: str, t: Tensor) -> bool:
    """Whether operator `name` runs on a Triton kernel for tensors of the dtype and device of t."""
    kernels, reason = _kernels()
    usable = t.dtype in DTYPES and not reason and name not in failures and hasattr(kernels, name)
    return usable and not (t.is_cuda and _too_old(t.device.index))


def serves_perceptron(weights: Sequence[Tensor]) -> bool:
    """Whether a perceptron with these weights, which have two dimensions each, is swept whole by kernels."""
    native = "mlp_attribute" in NATIVE and weights[0].is_cuda and extension.serves_perceptron(list(weights))
    return native or _triton_serves_perceptron(weights)


def _triton_serves_perceptron(weights: Sequence[Tensor]) -> bool:
    if not all(serves(name, weights[0]) for name in ("mlp_attribute", "mlp_attribute_backward")):
        return False
    perceptron = getattr(_kernels()[0], "perceptron", None)
    return perceptron is not None and perceptron.serves(weights) and (forced or perceptron.pays(weights))


def first_tensor(args: Sequence[Any]) -> Tensor:
    """The first tensor among the arguments of an operator; it says the dtype and the device of the call."""
    flat = (t for arg in args for t in (arg if isinstance(arg, (list, tuple)) else (arg,)))
    return next(t for t in flat if isinstance(t, Tensor))


def runner(name: str) -> Callable[..., Any]:
    """The function behind operator `name` for the tensors of a GPU."""
    check, reference = getattr(signature, name), _reference[name]

    def run(*args: Any, **kwargs: Any) -> Any:
        launch = launcher(name, args)
        if launch is None:
            return reference(*args, **kwargs)
        check(*args, **kwargs)
        try:
            result = launch(*args, **kwargs)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # the reference would fare no better
        except Exception as error:
            if forced:
                raise RuntimeError(f"xattr::{name}: its Triton kernel fails: {error}") from error
            failures[name] = first_line(error)
            _warn_once(f"the Triton kernel of xattr::{name} fails: {failures[name]}")
            result = NotImplemented
        return reference(*args, **kwargs) if result is NotImplemented else result

    return run


RUNNERS = {name: runner(name) for name in SCHEMAS}

for _name, _run in RUNNERS.items():
    if _name in NATIVE:
        _below.define(_name + SCHEMAS[_name].replace("SymInt", "int"))
        _below.impl(_name, _run, "CUDA")
    else:
        _library.impl(_name, _run, "CUDA")


def below(name: str) -> Callable[..., Any]:
    """Operator `name` without its kernel in CUDA C++: for those of NATIVE."""
    return cast(Callable[..., Any], getattr(getattr(torch.ops, f"{NAMESPACE}_below"), name))


def native_unavailable() -> str:
    """Why no kernel in CUDA C++ can run here, and what to do about it; empty if they can."""
    if not NATIVE:
        return "the extension was built without CUDA kernels; install the toolkit of torch's CUDA, then reinstall"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    if extension.has_cuda_code(torch.cuda.current_device()):
        return ""
    name = torch.cuda.get_device_name()
    return f"the CUDA kernels were not built for {name}; reinstall with its TORCH_CUDA_ARCH_LIST"


def use_native(on: bool, force: bool = False) -> None:
    """Whether the kernels in CUDA C++ are used, or what lies below them; and whether where others are faster too."""
    if NATIVE:
        extension.set_cuda_kernels(on, force)


def serving(name: str) -> str:
    """The back end that runs operator `name` for the fp32 tensors of the GPU that is here."""
    if name in NATIVE and not native_unavailable():
        return "cuda"
    return "triton" if serves(name, torch.empty(0, device="cuda")) else "reference"


class OnTriton(TorchDispatchMode):
    """Within it the operators run Triton kernels on CPU tensors too, below their derivatives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix(f"{NAMESPACE}::")
        run = RUNNERS.get(name) if func.namespace == NAMESPACE else None
        return (run or func)(*args, **(kwargs or {}))
