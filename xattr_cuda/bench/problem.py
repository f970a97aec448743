"""One training step to be taken: the model, the batch, the criterion and the prior that all contestants share."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..priors import l1
from .cases import Case

STRENGTH = 0.1  # of the prior, L1 on the attribution


@dataclass
class Problem:
    """x: [B, *sample]; leaf: the same values, requiring gradients; target: int64 [B], None where there is one output.

    truth: what the criterion compares the output with: [B, 1] of x's dtype for one output, else the target.
    """

    model: nn.Module
    x: Tensor
    leaf: Tensor
    target: Tensor | None
    truth: Tensor
    criterion: Callable[[Tensor, Tensor], Tensor]
    chains: int
    widths: tuple[int, ...] | None

    def pick(self, output: Tensor) -> Tensor:
        """The sum over the batch of the outputs to attribute, []."""
        return (output if self.target is None else output.gather(1, self.target.unsqueeze(1))).sum()

    def penalised(self, loss: Tensor, attribution: Tensor) -> Tensor:
        """Loss plus prior, []."""
        return loss + STRENGTH * l1(attribution)

    def double(self) -> "Problem":
        """The same numbers in float64."""
        model, x, leaf = copy.deepcopy(self.model).double(), self.x.double(), self.leaf.detach().double()
        for parameter in model.parameters():
            parameter.grad = None
        truth = self.truth.double() if self.target is None else self.truth
        return replace(self, model=model, x=x, leaf=leaf.requires_grad_(), truth=truth)

    @torch.no_grad()
    def redraw(self) -> None:
        """Other inputs, written into the same tensors so that steps which hold them see them."""
        self.x.copy_(torch.randn(self.x.shape, dtype=self.x.dtype))
        self.leaf.copy_(self.x)


def pose(
    case: Case, dtype: torch.dtype = torch.float32, batch: int | None = None, seed: int = 0, device: str = "cpu"
) -> Problem:
    """The problem of a case, drawn from a seed, the same on every device; batch None is the case's own.

    On the device `meta` it has shapes alone, and takes no time and no memory.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta" if device == "meta" else "cpu"):
        torch.manual_seed(seed)
        model, x, labels = case.draw(dtype, batch)
    model, x, labels = model.to(device), x.to(device), labels.to(device)
    single = case.classes == 1
    criterion = nn.BCEWithLogitsLoss() if single else nn.CrossEntropyLoss()
    truth = labels.to(dtype).unsqueeze(1) if single else labels
    leaf = x.clone().requires_grad_()
    return Problem(model, x, leaf, None if single else labels, truth, criterion, case.chains, case.widths)
