"""What `doctor` finds out: versions, what was built, and which back ends compute the right numbers."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from .. import models, ops, priors
from .._version import __version__
from ..ops import gpu
from ..ops.backend import BACKENDS
from ..sweep import attribute

GINI_TOLERANCE = 1e-6  # the one operator that divides: a few roundings of float32


@dataclass(frozen=True)
class BackendHealth:
    """state: `works`, `not here` (it cannot run, `words` say why and what to do) or `wrong` (it ran and erred)."""

    name: str
    state: str
    words: str


def versions() -> dict[str, str]:
    """Name to version of everything that decides what runs; what is not installed says so."""
    found = {"python": platform.python_version(), "xattr_cuda": __version__, "torch": torch.__version__}
    for package in ("numpy", "triton", "scikit-learn", "pandas", "matplotlib", "causaldata"):
        found[package] = _version_of(package)
    found["CUDA of torch"] = torch.version.cuda or "none: a CPU build"
    found["GPU"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return found


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def build() -> dict[str, str]:
    """What the extension says about its own build; where it is missing, why."""
    if ops.extension is None:
        return {"C++ extension": ops.unavailable("cpu")}
    found = {"C++ extension": "loaded"}
    if hasattr(ops.extension, "build_info"):
        found.update({f"built with: {key}": str(value) for key, value in ops.extension.build_info().items()})
    if hasattr(ops.extension, "cpu_capability"):
        found["instruction set in use"] = str(ops.extension.cpu_capability())
    return found


def operators() -> dict[str, tuple[str, str]]:
    """Operator to the back ends that serve it on the CPU and on the GPU; a dash where there is no GPU."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    here = torch.cuda.is_available()
    return {
        name: ("cpu" if has(f"xattr::{name}", "CPU") else "reference", gpu.serving(name) if here else "-")
        for name in ops.SCHEMAS
    }


def _whole(generator: torch.Generator, *shape: int, high: int = 3) -> Tensor:
    """Small whole numbers, which float32 and its products hold exactly, so that results must agree to the bit."""
    return torch.randint(-high, high + 1, shape, generator=generator).float()


def _operator_cases() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(operator, arguments) for every operator, at odd sizes."""
    generator = torch.Generator().manual_seed(0)
    B, K, N, windows = 9, 37, 67, ((3, 2), (2, 2), (1, 0), (1, 1))
    z, other, x = _whole(generator, B, N), _whole(generator, B, N), _whole(generator, B, K)
    weight = _whole(generator, N, K)
    image, pooled = _whole(generator, 2, 3, 7, 8), _whole(generator, 2, 3, 4, 4)
    with ops.use_backend("reference"):
        bits, idx = ops.relu_mask(z)[1], ops.max_pool(image, *windows)[1]
    yield "relu_mask", (z,)
    yield "mask_mul", (other, bits)
    yield "add_relu_mask", (z, other)
    yield "linear_relu_mask", (x, weight)
    yield "matmul_mask", (x, weight.T, bits)
    yield "dual_weight_grad", (z, x, other, x.flip(0))
    yield "max_pool", (image, *windows)
    yield "pool_pull", (pooled, idx, tuple(image.shape), *windows)
    yield "pool_push", (image, idx, *windows)
    yield "gini", (z.flatten().abs(),)


def _agree(got: Any, wanted: Any, tolerance: float) -> bool:
    pairs = zip(*((r,) if isinstance(r, Tensor) else tuple(r) for r in (got, wanted)), strict=True)
    return all(torch.allclose(g.cpu().double(), w.double(), rtol=0, atol=tolerance) for g, w in pairs)


def _moved(argument: Any, device: str, dtype: torch.dtype) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return argument.to(device, dtype if argument.is_floating_point() else argument.dtype)


def _wrong_operators(name: str, device: str) -> list[str]:
    """Operators whose results on a back end differ from the float64 reference."""
    wrong = []
    for operator, arguments in _operator_cases():
        run = getattr(ops, operator)
        with ops.use_backend("reference"):
            wanted = run(*(_moved(a, "cpu", torch.float64) for a in arguments))
        with ops.use_backend(name):
            got = run(*(_moved(a, device, torch.float32) for a in arguments))
        if not _agree(got, wanted, GINI_TOLERANCE if operator == "gini" else 0):
            wrong.append(operator)
    return wrong


def _training_step(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """Attribution and weight gradients of one step with a prior."""
    output, attribution = attribute(model, x)
    (output.sum() + priors.l1(attribution)).backward()
    return [attribution.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def _network(device: str, dtype: torch.dtype) -> tuple[nn.Sequential, Tensor]:
    generator = torch.Generator().manual_seed(1)
    model = models.xmlp([37, 41, 33, 1], device=device, dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(_whole(generator, *weight.shape, high=1))
    return model, _whole(generator, 8, 37).to(device, dtype)  # 8 rows: the mean over them is exact


def _step_is_right(name: str, device: str) -> bool:
    with ops.use_backend("reference"):
        wanted = _training_step(*_network("cpu", torch.float64))
    with ops.use_backend(name):
        got = _training_step(*_network(device, torch.float32))
    return len(got) == len(wanted) and _agree(got, wanted, 0)


def _checked(name: str) -> BackendHealth:
    device = gpu.device() if name == "triton" else "cuda" if name == "cuda" else "cpu"
    try:
        wrong = _wrong_operators(name, device)
        if not wrong and _step_is_right(name, device):
            return BackendHealth(name, "works", "operators and a training step agree with the float64 reference")
    except Exception as error:
        # Whatever a broken installation raises is the finding.
        return BackendHealth(name, "wrong", f"it fails: {' '.join(str(error).split()) or type(error).__name__}")
    where = ", ".join(wrong) or "a training step"
    return BackendHealth(name, "wrong", f"{where} differs from the reference; rebuild xattr_cuda, then report it")


def backends() -> list[BackendHealth]:
    """Every back end, proved by running operators and a training step, or the reason why it cannot run here."""
    return [
        BackendHealth(name, "not here", reason) if (reason := ops.unavailable(name)) else _checked(name)
        for name in BACKENDS
    ]
