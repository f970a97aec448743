"""FSDP2 inside a model: what `fully_shard` hooks to the forward of its modules, run around the sweeps.

FSDP gathers a module's parameters in a hook before its forward and lets go of them in a hook after it, which also
sees to it that the backward pass finds them again. A sweep reads the parameters of all layers and calls no layer's
forward: it has to run all hooks before it starts, and all others after it. So the parameters of the whole model are
there together while a sweep runs, and their gradients until the backward pass ends, where FSDP's own callback reduces
them. The module that the caller does call, mostly `xa.Sweep`, is looked after by PyTorch.
"""

import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .errors import UnsupportedLayerError
from .inputs import autocasts


def shards_of(model: nn.Module) -> list[nn.Module]:
    """The modules of a model, itself among them, that fully_shard was applied to, from the top down."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # nobody has sharded a model without having imported it
    if fsdp is None or not isinstance(model, nn.Module):
        return []
    return [m for m in model.modules() if isinstance(m, fsdp.FSDPModule)]


def is_of_fsdp(hook: Any) -> bool:
    """Whether a hook is a method of FSDP's state, wrapped or not."""
    while hook is not None:
        if any(kind.__name__ == "FSDPState" for kind in type(getattr(hook, "__self__", None)).__mro__):
            return True
        hook = getattr(hook, "__wrapped__", None)
    return False


def is_sharded(model: nn.Module) -> bool:
    """Whether there are hooks of FSDP to run around a sweep of this model."""
    return bool(shards_of(model))


def gather(model: nn.Module, xs: Sequence[Tensor], constants: Sequence[Any]) -> Any:
    """Run what FSDP runs before a forward. Returns (xs, constants), cast as the model's policy has its arguments."""
    args, shards = (*xs, *constants), shards_of(model)
    for module in shards:
        given: tuple[Any, ...] = args if module is model else ()
        for hook in [h for h in module._forward_pre_hooks.values() if is_of_fsdp(h)]:
            given, _ = hook(module, given, {})
        if module is model:
            args = given
    xs = args[: len(xs)]
    _check_dtypes(model, shards, xs)
    return xs, args[len(xs) :]


def release(model: nn.Module, results: Any) -> Any:
    """Run what FSDP runs after a forward. Returns the results, cast as the model's policy has its outputs."""
    for module in reversed(shards_of(model)):
        returned = results
        for hook in [h for h in module._forward_hooks.values() if is_of_fsdp(h)]:
            returned = hook(module, (), returned)
        if module is model:
            results = returned
    return results


def _check_dtypes(model: nn.Module, shards: Sequence[nn.Module], xs: Sequence[Tensor]) -> None:
    """FSDP casts what flows from one module to the next. A sweep runs in one dtype, that of the inputs."""
    if autocasts(xs[0].device):
        return
    wanted, names = {x.dtype for x in xs}, {m: name for name, m in model.named_modules()}
    for module in shards:
        for name, p in module.named_parameters():
            if p.is_floating_point() and p.dtype not in wanted:
                raise UnsupportedLayerError(
                    names[module],
                    type(module).__name__,
                    f"FSDP has gathered its parameter {name!r} in {p.dtype}, where the network's inputs have "
                    f"{xs[0].dtype}, and a sweep does not cast between modules",
                    "Give every fully_shard of the model the same MixedPrecisionPolicy, that of xa.Sweep included",
                )


def check_gathered(instructions: Sequence[Any], params: Sequence[Sequence[Tensor]]) -> None:
    """Raise where a layer of a program was given a part of a parameter only."""
    tensor = sys.modules.get("torch.distributed.tensor")
    if tensor is None:
        return
    for instruction, tensors in zip(instructions, params, strict=True):
        if any(isinstance(p, tensor.DTensor) for p in tensors):
            raise UnsupportedLayerError(
                instruction.name,
                instruction.kind,
                "its parameter is a DTensor, of which this process has a part",
                "Call the module that fully_shard was applied to (xa.Sweep), not a model inside of it; tensor "
                "parallelism is not supported",
            )
