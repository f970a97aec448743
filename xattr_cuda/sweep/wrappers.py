"""Wrappers that work by their forward, which a sweep never calls: inside a model they are refused."""

from collections.abc import Iterator

from torch import nn

from .errors import UnsupportedLayerError

_AROUND = "Take it out of the model and wrap the sweep: {0}(xa.Sweep(model))"
_REFUSED = {  # by name, so that nothing is imported for the sake of the question
    "torch.nn.parallel.distributed.DistributedDataParallel": (
        "it reduces gradients of what its own forward computes",
        _AROUND.format("DistributedDataParallel"),
    ),
    "torch.nn.parallel.data_parallel.DataParallel": (
        "it spreads the batch in its own forward",
        _AROUND.format("DistributedDataParallel"),
    ),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "it gathers its parameters in its own forward",
        "Use FSDP2: torch.distributed.fsdp.fully_shard on the layers and on xa.Sweep(model)",
    ),
    "torch._dynamo.eval_frame.OptimizedModule": (
        "torch.compile has compiled its own forward",
        _AROUND.format("torch.compile"),
    ),
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": (
        "it checkpoints or offloads what its own forward computes",
        "A step saves few activations as it is (one chain: hardly more than the plain step); to hold none between the "
        "passes checkpoint the step: torch.utils.checkpoint.checkpoint(sweep, x, use_reentrant=False)",
    ),
}


def wrapped(model: nn.Module) -> Iterator[UnsupportedLayerError]:
    """An error for every module of a model that is such a wrapper."""
    for name, module in model.named_modules():
        kinds = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
        for reason, remedy in (_REFUSED[kind] for kind in kinds if kind in _REFUSED):
            yield UnsupportedLayerError(name, type(module).__name__, f"{reason}, which a sweep never calls", remedy)
