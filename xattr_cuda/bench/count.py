"""What a step does, counted: FLOPs, bytes, launches, and the least FLOPs that its network allows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..ops.schemas import NAMESPACE, SCHEMAS
from .contestants import Step
from .problem import Problem

Formula = Callable[..., int]


def _linear(x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> int:
    return 2 * x.numel() * weight.shape[0]


def _matmul(t: Tensor, matrix: Tensor, *rest: Any, **named: Any) -> int:
    return 2 * t.numel() * matrix.shape[1]


def _dual(delta: Tensor, h: Tensor, g: Tensor | None = None, v: Tensor | None = None, **named: Any) -> int:
    return 2 * delta.numel() * h.shape[-1] * (1 if g is None else 2)


def _layers(x: Tensor, weights: Sequence[Tensor]) -> list[int]:
    """FLOPs of the product of every layer, the first at index 1."""
    return [0, *(2 * len(x) * weight.numel() for weight in weights)]


def _mlp_attribute(
    x: Tensor, weights: Sequence[Tensor], slopes: Any, u: Tensor | None, *rest: Any, **named: Any
) -> int:
    return (1 if u is None else 2) * sum(_layers(x, weights))  # forward, and attribution where there is one


def _mlp_attribute_backward(
    x: Tensor | None,
    a: Any,
    s: Any,
    c: Any,
    delta: Tensor | None,
    weights: Sequence[Tensor],
    slopes: Any,
    bits: Any,
    g: Any,
    h: Any,
    trained: Sequence[int],
    output_tangent: bool = False,
    input_cotangent: bool = False,
) -> int:
    """A sweep ends at the last layer that it serves: no product follows a gradient that nobody asks for."""
    total = 0
    for chain in (x, delta):
        if chain is not None:
            layers = _layers(chain, weights)
            total += sum(layers[k] for k in trained)
            up = range(1, len(layers) if output_tangent else max(trained, default=1))
            down = range(1 if input_cotangent else min(trained, default=len(weights)) + 1, len(layers))
            total += sum(layers[k] for k in (up if chain is x else down))
    return total


FORMULAS: dict[str, Formula] = {
    "linear_relu_mask": _linear,
    "matmul_mask": _matmul,
    "dual_weight_grad": _dual,
    "mlp_attribute": _mlp_attribute,
    "mlp_attribute_backward": _mlp_attribute_backward,
}
"""FLOPs of a call of each operator of the package that multiplies, a product and a sum counted apart, by the operator's
name: the formula takes the operator's own arguments."""
WITHOUT_PRODUCTS = (
    "relu_mask",
    "mask_mul",
    "add_relu_mask",
    "max_pool",
    "pool_pull",
    "pool_push",
    "input_times_gradient",
    "gini",
)

OVERWRITES = ("copy_", "fill_", "zero_")
ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_efficientzerotensor")


@dataclass
class Count:
    """flops; bytes read and written by all operators; launches: operators that compute or copy.

    unknown: operators of the package that ran and have no formula, so that the FLOPs are too few.
    """

    flops: int = 0
    bytes: int = 0
    launches: int = 0
    unknown: set[str] = field(default_factory=set)


def _touched(t: Tensor) -> int:
    """Bytes of the elements of t, those that are repeated by a stride of zero once."""
    return t.element_size() * prod(n for n, stride in zip(t.shape, t.stride(), strict=True) if stride or not n)


def tensors_of(values: Any) -> list[Tensor]:
    """The tensors among the values, each once."""
    return list({id(t): t for t in tree_leaves(values) if isinstance(t, Tensor)}.values())


def _is_view(func: Any, given: list[Tensor], made: list[Tensor]) -> bool:
    """Whether an operator only looks at its argument's memory in another way."""
    if func._schema.is_mutable:
        return False
    memory = {t.untyped_storage()._cdata for t in given}
    return bool(made) and all(t.untyped_storage()._cdata in memory for t in made)


class Counter(TorchDispatchMode):
    """Counts every operator that runs below it into `count`. Compiled steps run none that it can see.

    A written argument counts as read too unless it is an `out=` or overwritten. FLOPs are those of PyTorch's own flop
    counter.
    """

    def __init__(self, formulas: Mapping[str, Formula] = FORMULAS) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = Count()
        namespace = torch.ops.xattr
        self.formulas: dict[Any, Formula] = {
            **flop_registry,
            **{getattr(namespace, name): formula for name, formula in formulas.items() if name in SCHEMAS},
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.note(func, args, kwargs, result)
        return result

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count an operator that has run."""
        outs = {a.name for a in func._schema.arguments if a.is_out}
        name = func._schema.name.rpartition("::")[2]
        read = args[1:] if name in OVERWRITES else args
        given, made = tensors_of((read, {k: v for k, v in kwargs.items() if k not in outs})), tensors_of(result)
        if name in ALLOCATIONS or name in ("detach", "alias") or _is_view(func, given, made):
            return
        self.launch(name, [*given, *made])
        self.add_flops(func, args, kwargs, result)

    def launch(self, name: str, touched: Sequence[Tensor]) -> None:
        """Count one launch, of the operator or the kernel `name`, that reads or writes these tensors."""
        self.count.launches += 1
        self.count.bytes += sum(map(_touched, touched))

    def add_flops(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count the products of an operator."""
        name = func._schema.name.rpartition("::")[2]
        formula = self.formulas.get(func._overloadpacket)
        if formula is None and func.namespace == NAMESPACE and name not in WITHOUT_PRODUCTS:
            self.count.unknown.add(name)
        if formula is not None:
            registered = func._overloadpacket in flop_registry
            self.count.flops += formula(*args, **kwargs, out_val=result) if registered else formula(*args, **kwargs)


def count(step: Step) -> Count:
    """What one call does; it is called once before, so that what is traced once is not counted."""
    step()
    with Counter() as counter:
        step()
    return counter.count


def layer_flops(p: Problem) -> list[int]:
    """FLOPs of the product of every weight layer of the model in the order in which they run, one forward sweep."""
    found: list[int] = []

    def record(module: nn.Module, args: Any, output: Tensor) -> None:
        found.append(2 * output.numel() * module.weight[0].numel())  # type: ignore[operator, index, union-attr]

    layers = [m for m in p.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        with torch.no_grad():
            p.model(p.x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def perceptron_flops(widths: tuple[int, ...], batch: int) -> list[int]:
    """`layer_flops` of a perceptron, by its widths."""
    return [2 * batch * k * n for k, n in pairwise(widths)]


def plain_flops(layers: list[int]) -> int:
    """FLOPs of a plain step from those of the layers: no cotangent of the first layer's input is needed."""
    return 3 * sum(layers) - layers[0]


def least_flops(layers: list[int], chains: int, share: float = 1.0) -> int:
    """FLOPs of a step with a prior in one chain or two on a share of the batch, from the FLOPs of the layers.

    Design section 2: forward, attribution, tangent and weight gradient; two chains add the cotangent sweep and a second
    weight gradient. No step needs a cotangent of the first layer's input, or a tangent of the output.
    """
    total, first, last = sum(layers), layers[0], layers[-1]
    own = 4 * total - last if chains == 1 else 6 * total - first - last
    return round(share * own + (1 - share) * plain_flops(layers))


def floor(layers: list[int], chains: int, share: float = 1.0) -> float:
    """The least FLOPs of a step with a prior over those of a plain one."""
    return least_flops(layers, chains, share) / plain_flops(layers)


def add_counts(p: Problem, steps: Mapping[str, Step]) -> dict[str, dict[str, float]]:
    """FLOPs, bytes and launches of every step by name, and each over those of the first; compiled ones are left out.

    Where an operator without a formula ran, there are no FLOPs.
    """
    found: dict[str, dict[str, float]] = {}
    base: Count | None = None
    for name, step in steps.items():
        if name.startswith("compiled"):
            continue
        one = count(step)
        base = base or one
        flops = {} if one.unknown else {"flops": one.flops, "flops ratio": one.flops / base.flops}
        found[name] = {
            **flops,
            "bytes": one.bytes,
            "bytes ratio": one.bytes / base.bytes,
            "launches": one.launches,
        }
    return found
