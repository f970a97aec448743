"""Every prior with an independent formula, for the tests of one process and of many."""

import math

import numpy as np
import torch

from xattr_cuda import priors


def mean_size(a):
    return np.abs(a).mean(0).ravel()


def pairwise_gini(a):
    m = mean_size(a)
    return -np.abs(m[:, None] - m[None, :]).sum() / (2 * m.size * m.sum())


def total_variation(a):
    total = 0.0
    for index in np.ndindex(a.shape):
        for dim in (-1, -2):
            before = list(index)
            before[dim] -= 1
            if before[dim] >= 0:
                total += abs(a[index] - a[tuple(before)])
    return total / a.shape[0]


def half_mask(shape):
    return (torch.arange(math.prod(shape[1:])) % 2 == 0).reshape(shape[1:])


def soft_mask(shape):
    return (torch.arange(math.prod(shape[1:])) % 5 / 4).reshape(shape[1:])


def adjacency(shape):
    i = torch.arange(math.prod(shape[1:]))
    return ((i[:, None] + i) % 3 * 0.5).fill_diagonal_(0)


def laplacian(a):
    m, w = mean_size(a), adjacency(a.shape).numpy()
    return m @ (np.diag(w.sum(1)) - w) @ m


def target(shape):
    return (torch.arange(math.prod(shape[1:])) % 3 + 1e-3).reshape(shape[1:])


def divergence(size, t, smoothing=1e-3):
    """KL of one vector of sizes, scipy's rel_entr written out."""
    t, p = ((v / v.sum() + smoothing / v.size) / (1 + smoothing) for v in (t.numpy().astype(float).ravel(), size))
    return sum(x * math.log(x / y) for x, y in zip(t, p, strict=True))


PRIORS = {  # name: the prior for a shape and a group, the formula, the power of a factor of the attribution
    "gini": (lambda shape, **g: lambda a: priors.gini(a, **g), pairwise_gini, 0),
    "l1": (lambda shape, **g: lambda a: priors.l1(a, **g), lambda a: np.abs(a).sum() / a.shape[0], 1),
    "l2": (lambda shape, **g: lambda a: priors.l2(a, **g), lambda a: (a**2).sum() / a.shape[0], 2),
    "total_variation": (lambda shape, **g: lambda a: priors.total_variation(a, **g), total_variation, 1),
    "right_reasons": (
        lambda shape, **g: priors.right_reasons(half_mask(shape), **g),
        lambda a: ((a * half_mask(a.shape).numpy()) ** 2).sum() / a.shape[0],
        2,
    ),
    "outside": (
        lambda shape, **g: priors.outside(soft_mask(shape), **g),
        lambda a: np.mean([((1 - soft_mask(a.shape).numpy()) * abs(r)).sum() / abs(r).sum() for r in a]),
        0,
    ),
    "outside, amount": (
        lambda shape, **g: priors.outside(soft_mask(shape), share=False, **g),
        lambda a: ((1 - soft_mask(a.shape).numpy()) * abs(a)).sum() / a.shape[0],
        1,
    ),
    "graph_laplacian": (lambda shape, **g: priors.graph_laplacian(adjacency(shape), **g), laplacian, 2),
    "fairness": (
        lambda shape, **g: priors.fairness(half_mask(shape), **g),
        lambda a: np.abs(a[:, half_mask(a.shape).numpy()]).sum() / np.abs(a).sum(),
        0,
    ),
    "fairness, amount": (
        lambda shape, **g: priors.fairness(half_mask(shape), share=False, **g),
        lambda a: np.abs(a[:, half_mask(a.shape).numpy()]).sum() / a.shape[0],
        1,
    ),
    "target_distribution": (
        lambda shape, **g: priors.target_distribution(target(shape), **g),
        lambda a: np.mean([divergence(abs(r).ravel(), target(a.shape)) for r in a]),
        0,
    ),
    "target_distribution, of the mean": (
        lambda shape, **g: priors.target_distribution(target(shape), of_mean=True, **g),
        lambda a: divergence(mean_size(a), target(a.shape)),
        0,
    ),
    "consistency": (
        lambda shape, **g: lambda a: priors.consistency(a, a, lambda b: b.flip(-1) / 2, **g),
        lambda a: ((a - a[..., ::-1] / 2) ** 2).sum() / a.shape[0],
        2,
    ),
}
