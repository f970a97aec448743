"""gini: Gini coefficient of a nonnegative vector and its gradient, by sorting."""

import torch
from torch import Tensor


def gini(a: Tensor) -> tuple[Tensor, Tensor]:
    """Gini coefficient and its gradient in O(n log n).

    G(a) = sum_ij |a_i - a_j| / (2 n sum_i a_i). Sorting turns the double sum into sum_i c_i a_i / (n sum_i a_i) with
    c_i = #{j: a_j < a_i} - #{j: a_j > a_i}, and dG/da_i = (c_i / n - G) / sum_j a_j. Ties share one c, the pairwise
    form's own subgradient.

    a: [n], floating, nonnegative. Returns the value, [], and the gradient, [n]. The coefficient of an empty vector
    and of one that sums to zero is zero, with a zero gradient.
    """
    n = a.numel()
    if n == 0:
        return a.sum(), torch.zeros_like(a)
    wide = a.double()  # a rank and the coefficient nearly cancel in the gradient
    values = wide.detach().contiguous()
    order = values.sort().values
    below = torch.searchsorted(order, values, right=False)
    upto = torch.searchsorted(order, values, right=True)
    rank = (below + upto - n).to(wide.dtype)  # c of the docstring, [n]
    total = wide.sum()
    some = total != 0
    safe = torch.where(some, total, torch.ones_like(total))
    value = torch.where(some, (rank * wide).sum() / (n * safe), torch.zeros_like(total))
    gradient = torch.where(some, (rank / n - value) / safe, torch.zeros_like(wide))
    return value.to(a.dtype), gradient.to(a.dtype)
