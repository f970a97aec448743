"""The Gini coefficient and its gradient: by the operator, and by the pairwise form, against one torch.sort."""

import torch
from torch import Tensor

from .. import ops
from .check import EXACT, SINGLE, WrongGradientsError, available_bytes
from .contestants import Step

COPIES = 6  # n x n matrices that the pairwise form and its backward pass hold


def pairwise(a: Tensor) -> Tensor:
    """The definition, sum_ij |a_i - a_j| / (2 n sum_i a_i), [], for a [n]: O(n^2) time and memory."""
    return (a[:, None] - a[None, :]).abs().sum() / (2 * a.numel() * a.sum())


def _pairwise_gradient(a: Tensor) -> Tensor:
    leaf = a.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pairwise(leaf), leaf)
    return gradient


def gini_steps(n: int) -> tuple[dict[str, Step], dict[str, str]]:
    """What is timed on a vector of n numbers, checked first, and who cannot run with the reason."""
    generator = torch.Generator().manual_seed(0)
    few = torch.rand(min(n, 100), dtype=torch.float64, generator=generator)
    want = _pairwise_gradient(few)
    for dtype, limit in ((torch.float64, EXACT), (torch.float32, SINGLE)):
        error = float((ops.gini(few.to(dtype))[1].double() - want).norm() / want.norm())
        if not error <= limit:
            raise WrongGradientsError(f"gini-{n} is not timed: its gradient is off by {error:.1e}, allowed {limit:.1e}")
    a = torch.rand(n, generator=generator)
    steps: dict[str, Step] = {"torch.sort": lambda: torch.sort(a), "gini": lambda: ops.gini(a)}
    need = COPIES * 4.0 * n * n
    if need > available_bytes():
        return steps, {"pairwise": f"needs about {need / 2**30:.0f} GiB of memory"}
    return {**steps, "pairwise": lambda: _pairwise_gradient(a)}, {}
