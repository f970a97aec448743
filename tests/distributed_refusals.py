"""Jobs that cannot be right, and must say so at once: each returns after it has been refused as it should."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from distributed_jobs import BF16, Share, layers, with_gini, with_mean
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper, offload_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import xattr_cuda as xa

REFUSALS: dict[str, Callable[[Share], None]] = {}


def refusal(function: Callable[[Share], None]) -> Callable[[Share], None]:
    REFUSALS[function.__name__] = function
    return function


def refused_around(share: Share, wrapper: Callable[[nn.Module], nn.Module], message: str) -> None:
    """A wrapper around the model, or around a layer, is refused by xa.Sweep and by the functions."""
    with pytest.raises(xa.UnsupportedLayerError, match=rf"layer '' .*{message}"):
        xa.Sweep(wrapper(share.model))
    with pytest.raises(xa.UnsupportedLayerError, match=rf"layer '' .*{message}"):
        xa.attribute(wrapper(share.model), share.x, share.labels)
    sweep = xa.Sweep(share.model)
    share.model[2] = wrapper(share.model[2])  # after xa.Sweep has looked
    with pytest.raises(xa.UnsupportedLayerError, match=rf"layer '2' .*{message}"):
        sweep(share.x, share.labels)
    assert message.split(".*")[0] in str(xa.check(share.model, share.x))


@refusal
def ddp_inside(share):
    refused_around(share, DistributedDataParallel, r"reduces gradients.* DistributedDataParallel\(xa.Sweep\(model\)\)")


@refusal
def fsdp1_inside(share):
    def wrapper(module):
        return FullyShardedDataParallel(module, device_id=torch.device("cpu"))

    refused_around(share, wrapper, r"gathers its parameters.*fully_shard on the layers")


@refusal
def compiled_inside(share):
    refused_around(share, lambda m: torch.compile(m, backend="eager"), r"torch.compile has .*torch.compile\(xa.Sweep")


@refusal
def checkpoint_wrapper_inside(share):
    refused_around(share, checkpoint_wrapper, r"checkpoints or offloads.* checkpoint the step")


@refusal
def offload_wrapper_inside(share):
    refused_around(share, offload_wrapper, r"checkpoints or offloads.* checkpoint the step")


@refusal
def data_parallel_inside(share):
    refused_around(share, nn.DataParallel, r"spreads the batch.* DistributedDataParallel\(xa.Sweep\(model\)\)")


@refusal
def a_model_inside_of_what_was_sharded(share):
    sweep = share.shard(inner=False)
    with_gini(sweep, share.x, share.labels, dist.group.WORLD).backward()  # leaves parts behind
    with pytest.raises(xa.UnsupportedLayerError, match=r"layer '1' \(Conv2d\): its parameter is a DTensor.*xa.Sweep"):
        xa.attribute(share.model, share.x, share.labels)


@refusal
def tensor_parallelism(share):
    linear, mesh = share.model[-1], dist.device_mesh.init_device_mesh("cpu", (2,))
    linear.weight = nn.Parameter(distribute_tensor(linear.weight.detach(), mesh))
    with pytest.raises(xa.UnsupportedLayerError, match=r"layer '5' \(Linear\): its parameter is a DTensor"):
        xa.attribute(share.model, share.x, share.labels)


@refusal
def mixed_policies(share):
    for layer in layers(share.model):
        fully_shard(layer, mp_policy=BF16)
    sweep = fully_shard(xa.Sweep(share.model))
    with pytest.raises(xa.UnsupportedLayerError, match=r"layer '2' .*torch.bfloat16.* the same MixedPrecisionPolicy"):
        sweep(share.x, share.labels)


@refusal
def double_backward_through_fsdp(share):
    sweep = share.shard()
    with pytest.raises(ValueError, match=r"engine='autograd' takes a gradient within the forward.* xa.Sweep\(model\)"):
        sweep(share.x, share.labels, engine="autograd")


@refusal
def hooks_beside_those_of_fsdp(share):
    sweep = share.shard()
    share.model[2].register_forward_hook(lambda *args: None)
    with pytest.raises(xa.UnsupportedLayerError, match=r"layer '2' .*hooks"):
        sweep(share.x, share.labels)


@refusal
def one_graph_of_fsdp_inside(share):
    torch.compiler.reset()
    sweep = torch.compile(share.shard(), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"shard xa.Sweep\(model\) alone"):
        with_mean(sweep, share.x, share.labels)
