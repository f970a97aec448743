"""What torch.compile sees of an operator on a GPU: its Triton kernels, as nodes of the graph, where sizes are static.

It launches them from its own code then and plans their memory with that of all else. Elsewhere an operator stays
one node of the graph, whose kernel is chosen when it runs: on CPU tensors, with dynamic sizes, under torch.export, and
for whole perceptrons, whose kernels take tuples of tensors, which a graph's launch does not. What runs is chosen by
`gpu.launcher` either way. A kernel that fails to compile is an error of torch.compile, not replaced by the reference.
"""

import functools
import hashlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._library import triton as _of_torch
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.utils._pytree import tree_leaves

from . import gpu, signature
from .schemas import NAMESPACE, SCHEMAS

OPAQUE = ("mlp_attribute", "mlp_attribute_backward")
KNOWN = (Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor)
"""Types of tensors that a launcher may be traced with; another subclass has its own way with an operator."""

_library = torch.library.Library(NAMESPACE, "IMPL")


def _on_kernels(t: Tensor) -> bool:
    """Whether operators run on kernels for tensors of that device."""
    return t.is_cuda


def _static(leaves: Sequence[Any]) -> bool:
    """Whether all sizes, strides and numbers are known."""
    tensors = [t for t in leaves if isinstance(t, Tensor)]
    numbers = [n for t in tensors for n in (*t.shape, *t.stride())]
    return not any(isinstance(n, (torch.SymInt, torch.SymFloat)) for n in (*numbers, *leaves))


def _launcher(
    name: str, types: Sequence[type], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Callable[..., Any] | None:
    """What is to be traced for these arguments; None where the operator stays one node."""
    leaves = tree_leaves((args, kwargs))
    if not _on_kernels(gpu.first_tensor(args)) or torch.compiler.is_exporting():
        return None
    if not all(kind in KNOWN for kind in types) or not _static(leaves):
        return None
    return gpu.launcher(name, args)


def rule(name: str) -> Callable[..., Any]:
    """How operator `name` is made functional: by its launcher, or as every other operator."""
    check = getattr(signature, name)

    def run(mode: Any, op: Any, types: Sequence[type], args: Sequence[Any], kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        launch = _launcher(name, types, args, kwargs)
        if launch is not None:
            launching = importlib.import_module("..kernels.triton.launching", __package__)
            try:
                with mode, launching.traced():
                    check(*args, **kwargs)
                    result = launch(*args, **kwargs)
            except Exception as error:  # a release of torch that traces less: the operator itself is right there too
                warnings.warn(
                    f"xattr_cuda: torch.compile does not see the kernels of xattr::{name}: {gpu.first_line(error)}. "
                    "They are launched from Python instead.",
                    stacklevel=2,
                )
                result = NotImplemented
            if result is not NotImplemented:
                return result
        return mode.__torch_dispatch__(op, types, args, kwargs)

    return run


class _Sources:
    """Stands for the kernels where torch.compile names a graph that it keeps on disk after the sources in it.

    The launchers are in such a graph too, as numbers: one that another version has traced may not be taken for ours.
    """

    __name__ = "xattr_cuda_kernels"

    @functools.cached_property
    def src(self) -> str:
        """A digest of all files of kernels/triton."""
        spec = importlib.util.find_spec("..kernels.triton", __package__)
        folders = [] if spec is None else list(spec.submodule_search_locations or ())
        digest = hashlib.sha256()
        for path in sorted(path for folder in folders for path in Path(folder).glob("*.py")):
            digest.update(path.read_bytes())
        return f"# {digest.hexdigest()}"

    @staticmethod
    def fn() -> None:
        """What torch.compile looks through for the names of further sources."""


for _name in SCHEMAS:
    if _name not in OPAQUE:
        torch.library.register_torch_dispatch(f"{NAMESPACE}::{_name}", FunctionalTensorMode, rule(_name), lib=_library)

_keys: dict[str, list[object]] = getattr(_of_torch, "triton_ops_to_kernels", {})
_keys.update({f"{NAMESPACE}::{name}": [_Sources()] for name in SCHEMAS})
