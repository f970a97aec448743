"""The prior for features that are related by a graph: graph_laplacian."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._batch import batch_mean
from ._check import check_attribution, check_tensor, check_weights

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def graph_laplacian(adjacency: Tensor, *, group: "ProcessGroup | None" = None) -> Callable[[Tensor], Tensor]:
    """The prior that features joined by an edge should matter alike.

    With m_i = mean over the batch of |A_bi| and W the adjacency: sum over edges i < j of W_ij (m_i - m_j)^2, which is
    m^T L m with the graph Laplacian L = diag(W 1) - W. The graph prior of Erion et al. 2021; a sum over all ordered
    pairs would be twice this. Computed edge by edge, where m^T L m would cancel.

    adjacency: [n, n], dense or sparse (COO, CSR, ...), nonnegative and symmetric; n is the number of features, all
    dimensions of the attribution after the batch. Its diagonal is without effect.
    Returns a prior: attribution [B, ...] to [], in squared units of the output and the units of W: normalise W, or the
    strength, for the number of edges. The batch size enters through the mean only; an empty batch gives 0.
    group: the processes that share the batch (`xattr_cuda.priors`).

    >>> import torch, xattr_cuda as xa
    >>> model, x = xa.models.xmlp([3, 8, 1]), torch.rand(4, 3)
    >>> prior = xa.priors.graph_laplacian(torch.tensor([[0.0, 2.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    >>> prior(xa.attribute(model, x).attribution).backward()
    >>> prior(torch.tensor([[3.0, -1.0, 7.0]])).item()
    8.0
    """
    first, second, weight = _edges(adjacency)
    wanted = adjacency.shape[0]

    def prior(attribution: Tensor) -> Tensor:
        size = check_attribution(attribution, "graph_laplacian", dims=2).abs()
        features = math.prod(size.shape[1:])
        if features != wanted:
            raise ValueError(
                f"graph_laplacian: `attribution` has shape {list(size.shape)}, that is {features} features; wanted "
                f"{wanted}, one for each row of the adjacency {list(adjacency.shape)}"
            )
        mean = batch_mean(size.sum(0), len(size), group, "graph_laplacian").flatten()
        device = mean.device
        apart = mean[first.to(device)] - mean[second.to(device)]
        return (weight.to(device, mean.dtype) * apart.square()).sum().to(attribution.dtype)

    return prior


def _edges(adjacency: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both ends, i < j, and the weight of every edge; raises unless `adjacency` is an undirected graph's."""
    check_tensor(adjacency, "graph_laplacian", "adjacency", "a tensor [n, n], dense or sparse")
    if adjacency.dim() != 2 or adjacency.shape[0] != adjacency.shape[1]:
        raise ValueError(f"graph_laplacian: `adjacency` has shape {list(adjacency.shape)}; wanted [n, n]")
    sparse = adjacency.detach().to_sparse_coo().coalesce()
    check_weights(sparse.values(), "graph_laplacian", "adjacency")
    some = sparse.values() != 0
    (row, column), weight = sparse.indices()[:, some], sparse.values()[some]
    order = torch.argsort(column * len(adjacency) + row)  # the transpose's entries, in the order of the entries
    if not all(torch.equal(x, y[order]) for x, y in ((row, column), (column, row), (weight, weight))):
        raise ValueError("graph_laplacian: `adjacency` is not symmetric; give (adjacency + adjacency.T) / 2")
    upper = row < column
    return row[upper], column[upper], weight[upper]
