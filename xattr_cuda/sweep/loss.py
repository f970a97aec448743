"""A criterion and its derivative in the outputs, the cotangents of `attribute_loss`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import map_leaves

Rebuild = Callable[[Sequence[Tensor]], Any]


def loss_and_cotangents(
    criterion: Callable[..., Tensor], outputs: Sequence[Tensor], unflatten: Rebuild, args: tuple[Any, ...]
) -> tuple[Tensor, list[Tensor | None]]:
    """(loss, d loss / d each output). The loss keeps its graph only where it depends on more than the outputs."""
    if torch.compiler.is_compiling():
        return _traced(criterion, outputs, unflatten, args)
    with torch.inference_mode(False), torch.enable_grad():
        args = map_leaves(lambda a: a.clone() if isinstance(a, Tensor) and a.is_inference() else a, args)
        ys = [(y.clone() if y.is_inference() else y.detach()).requires_grad_() for y in outputs]
        loss = _checked(criterion(unflatten(ys), *args))
        more = _depends_on_more(loss, ys)
        seeds: Sequence[Tensor | None] = [None] * len(ys)
        if loss.requires_grad:
            seeds = torch.autograd.grad(loss, ys, retain_graph=more, allow_unused=True)
    if all(seed is None for seed in seeds):
        raise ValueError(
            "`criterion` does not depend on the output that it was given, so there is nothing to attribute"
        )
    return loss if more and torch.is_grad_enabled() else loss.detach(), list(seeds)


def _traced(
    criterion: Callable[..., Tensor], outputs: Sequence[Tensor], unflatten: Rebuild, args: tuple[Any, ...]
) -> tuple[Tensor, list[Tensor | None]]:
    """The same inside a compiled graph, which has torch.func for it. What the criterion itself trains, it trains."""

    def of(*ys: Tensor) -> Tensor:
        return _checked(criterion(unflatten(ys), *args))

    loss = of(*outputs)
    seeds = torch.func.grad(of, argnums=tuple(range(len(outputs))))(*outputs)
    return loss, [seed.detach() for seed in seeds]


def _checked(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        given = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"`criterion` returned {given}; wanted a scalar tensor (reduction='mean' or 'sum')")
    return loss


def _depends_on_more(loss: Tensor, ys: Sequence[Tensor]) -> bool:
    """Whether the graph of the loss ends in a leaf other than the outputs: a parameter of the criterion, say."""
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and all(leaf is not y for y in ys):
            return True
        stack += [parent for parent, _ in node.next_functions]
    return False
