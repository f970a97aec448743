"""Variant: a kernel as it is compiled for one configuration and dtype, for the compile report and its limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .configs import ARCHITECTURES, Config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtypes that kernels serve, by the name that they have in a variant."""

POINTERS = {name: f"*{name}" for name in DTYPES}
"""The type of a pointer to them in a Triton signature."""


@dataclass(frozen=True)
class Variant:
    """What a launcher asks Triton to compile.

    kernel: the function under @triton.jit. signature: the type of every run-time argument, as in `*fp32` or `i32`, or a
    tuple of types, in which None stands for a None.
    constants: the value of every constexpr, and of run-time arguments that Triton specialises on being None or 1.
    divisible: arguments that are multiples of 16, or pointers aligned to 16 bytes.
    config: its name in the report; it says the dtype, and of a GEMM the precision of its products, `ieee` for exact
    fp32. gemm: whether it must use tensor cores, where the precision lets it. elementwise: whether it must have
    128-bit loads and stores. architectures: those that the table of configurations picks it for.
    """

    kernel: Any
    signature: Mapping[str, Any]
    constants: Mapping[str, Any]
    divisible: tuple[str, ...]
    num_warps: int
    num_stages: int
    config: str
    gemm: bool = False
    elementwise: bool = False
    architectures: tuple[str, ...] = field(default=ARCHITECTURES)

    @classmethod
    def of(
        cls,
        kernel: Any,
        config: Config,
        dtype: str,
        signature: Mapping[str, Any],
        constants: Mapping[str, Any],
        divisible: tuple[str, ...] = (),
        what: str = "",
        **flags: Any,
    ) -> "Variant":
        """A variant of a configuration of the table: its block shapes join the constants and its name the dtype."""
        name = "-".join(part for part in (config.name, what, dtype) if part)
        merged = {**constants, **config.blocks}
        return cls(kernel, signature, merged, divisible, config.num_warps, config.num_stages, name, **flags)
