"""An attribution in another precision than the task: two chains, each in a dtype of its own, that share the masks.

The forward pass, the task's cotangents and its weight gradients are those of a step without an attribution. The own
chain runs through a copy of the tape whose parameters are cast; autograd casts their gradients back and adds them to
the task's. Masks are those of the task's forward pass, so that the error is smaller than a whole step's in the lower
dtype. Relative errors against float64, median of three draws, of an attribution and of the gradient of its l1 prior:

                                              bfloat16            float16             a step all in bfloat16
    the paper's perceptron, batch 100         5.3e-3, 1.4e-2      6.4e-4, 3.1e-3      6.9e-2, 5.3e-2
    a VGG of six convolutions, batch 64       6.6e-3, 3.9e-2      2.8e-3, 2.1e-2      2.0e-1, 2.6e-1

The last is eager double backward; fp32 has 2.3e-7, 1.1e-7 and 1.9e-3, 6.5e-3. In float16 gradients under 6e-8 vanish,
as those of a mean over a large batch may: bfloat16 has the range of float32.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .layer import to_dtype
from .run import Around, Optionals, Run

if TYPE_CHECKING:
    from .compiled import CompiledRun

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def checked_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype, or ValueError that says which there are."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"`attribution_dtype` is {dtype}; wanted one of {', '.join(map(str, DTYPES))}, or None")
    return dtype


class LowerPrecision(Around):
    """The attribution and its tangents in `dtype`; `given` are the dtypes to return it in."""

    run: "Run | CompiledRun"

    def __init__(self, run: "Run | CompiledRun", dtype: torch.dtype, given: Sequence[torch.dtype]) -> None:
        super().__init__(run)
        self.dtype, self.given = dtype, given

    def forward(self, keep: bool) -> list[Tensor]:
        return self.run.forward(self.run.needs_grad())

    def _lowered(self, tensors: Optionals) -> list[Tensor | None]:
        return [None if t is None else to_dtype(t, self.dtype) for t in tensors]

    def _returned(self, attributions: Sequence[Tensor]) -> list[Tensor]:
        return [a.to(dtype) for a, dtype in zip(attributions, self.given, strict=True)]

    def attributions(self, seeds: Optionals, one_output: bool, cotangents: Optionals) -> list[Tensor]:
        low = self.run.lowered(self.dtype)
        return self._returned(low.attributions(self._lowered(seeds), one_output, self._lowered(cotangents)))

    def sweep(
        self, seeds: Optionals, one_output: bool, cotangents: Optionals, loss: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        low = self.run.lowered(self.dtype)
        _, attributions, _ = low.sweep(self._lowered(seeds), one_output, self._lowered(cotangents), None)
        outputs = self.run.task()
        through = None if loss is None else self.run.through(loss, outputs, seeds)
        return outputs, self._returned(attributions), through
