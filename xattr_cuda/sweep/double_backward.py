"""The same results by eager double backward: slower, for networks that cannot be traced."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import fill, flatten_like, leaves, map_leaves
from .loss import loss_and_cotangents
from .rows import Rows
from .target import Target, seeds_of


def _call(model: nn.Module, xs: Sequence[Tensor], constants: Sequence[Any]) -> tuple[list[Tensor], list[Tensor], Any]:
    """(inputs, outputs, the outputs' structure) of a forward pass that can be differentiated in its inputs."""
    inputs = [x if x.requires_grad else x.detach().requires_grad_() for x in xs]
    returned, places = model(*(x.clone() for x in inputs), *constants), count()
    outputs, structure = leaves(returned), map_leaves(lambda _: next(places), returned)
    if not all(isinstance(y, Tensor) for y in outputs):
        raise TypeError("the model returns something else than tensors; wanted a tensor, or a structure of tensors")
    return inputs, outputs, structure


def _explain(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], seeds: Sequence[Tensor | None], rows: Rows | None
) -> list[Tensor]:
    """x * gradient of <seeds, outputs> for each input, or its rows, differentiable where gradients are recorded."""
    pairs = [(y, u) for y, u in zip(outputs, seeds, strict=True) if u is not None and y.requires_grad]
    ys, us = [y for y, _ in pairs], [u for _, u in pairs]
    gradients = torch.autograd.grad(
        ys, inputs, us, create_graph=True, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    attributions = [x * g for x, g in zip(inputs, gradients, strict=True)]
    return attributions if rows is None else [rows.take(a) for a in attributions]


def _finished(tensors: Sequence[Tensor], differentiable: bool) -> list[Tensor]:
    return list(tensors) if differentiable else [t.detach() for t in tensors]


def attribute(
    model: nn.Module,
    xs: Sequence[Tensor],
    target: Target,
    cotangent: Any,
    constants: Sequence[Any],
    rows: Rows | None,
) -> tuple[Any, list[Tensor]]:
    """(output, attributions) of `xa.attribute`."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs, outputs, structure = _call(model, xs, constants)
        given = None if cotangent is None else flatten_like(cotangent, structure)
        seeds = seeds_of(outputs, target, given, lambda: False)
        attributions = _explain(inputs, outputs, seeds.starts if given is None else seeds.cotangents, rows)
    return (
        fill(structure, _finished(outputs, differentiable)),
        _finished(attributions, differentiable),
    )


def attribute_loss(
    model: nn.Module,
    xs: Sequence[Tensor],
    criterion: Callable[..., Tensor],
    args: tuple[Any, ...],
    rows: Rows | None,
) -> tuple[Tensor, Any, list[Tensor]]:
    """(loss, output, attributions) of `xa.attribute_loss`."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs, outputs, structure = _call(model, xs, ())

        def unflatten(ys: Sequence[Tensor]) -> Any:
            return fill(structure, ys)

        _, seeds = loss_and_cotangents(criterion, [y.detach() for y in outputs], unflatten, args)
        loss = criterion(unflatten(outputs), *args)
        attributions = _explain(inputs, outputs, seeds, rows)
    return (
        *_finished([loss], differentiable),
        unflatten(_finished(outputs, differentiable)),
        _finished(attributions, differentiable),
    )
