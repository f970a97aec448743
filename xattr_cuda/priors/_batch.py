"""Means over the batch, of one process or of all processes of a group: `group=` of every prior.

What it means to a training job is said in `xattr_cuda.priors`. The sum over the processes is its own transpose: its
backward pass sums the gradients over the group. All processes take the same scalar from it, so each is handed N times
its part of the prior's gradient, and averaging over the N processes gives the gradient of one on the global batch.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _Sum(torch.autograd.Function):
    """Sum over the processes of a group. Its transpose is itself."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: "ProcessGroup") -> Tensor:
        ctx.group = group
        value = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(value, group=group)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Sum.apply(gradient, ctx.group), None  # type: ignore[no-untyped-call]


def check_group(group: "ProcessGroup | None", prior: str) -> int:
    """The number of processes in `group`, 1 for None; raises unless this process can reduce over it."""
    if group is None:
        return 1
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            f"{prior}: `group` is given, but torch.distributed is not initialised; call "
            "torch.distributed.init_process_group first, or leave `group` out"
        )
    given: object = group
    if given == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"{prior}: this process is not in `group`; only its members may call the prior with it")
    if not isinstance(given, dist.ProcessGroup):
        raise TypeError(
            f"{prior}: `group` is a {type(given).__name__}; wanted a torch.distributed.ProcessGroup "
            "(of a DeviceMesh: mesh.get_group())"
        )
    return dist.get_world_size(group)


def batch_mean(total: Tensor, samples: int, group: "ProcessGroup | None", prior: str) -> Tensor:
    """Mean over the batch from the sum over this process's `samples`; zero of an empty batch.

    total: floating, fp32 at least, of any shape, the same in every process. The count travels with the sums: exact up to
    16.7 million samples in fp32.
    """
    if check_group(group, prior) == 1:
        return total / max(samples, 1)
    packed = torch.cat([total.reshape(-1), total.new_full((1,), samples)])
    packed = _Sum.apply(packed, group)  # type: ignore[no-untyped-call]
    return packed[:-1].reshape(total.shape) / packed[-1].detach().clamp(min=1)
