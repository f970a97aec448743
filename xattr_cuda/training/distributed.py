"""The processes of one job: `torchrun`'s, joined by torch.distributed, or this one alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is, and the device that it works on."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes and prints for all."""
        return self.rank == 0

    def wrap(self, module: nn.Module, **options: Any) -> nn.Module:
        """`module`, on this process's device, in DistributedDataParallel(module, **options) where there are several.

        Gradients are means over the processes: a loss that is a mean over equal shares of a batch is the mean over the
        whole batch, and so is a prior.
        """
        module = module.to(self.device)
        return DistributedDataParallel(module, **options) if self.world > 1 else module

    def loader(self, dataset: Dataset, batch: int, *, seed: int = 0, **options: Any) -> DataLoader:
        """Batches of this process's share of `dataset`, in an order drawn anew for every epoch from `seed`.

        batch: samples of all processes together. options: DataLoader's own. With a batch and a dataset that the number
        of processes divides, all of them see the batches that one process would see. Raises ValueError if the batch
        cannot be shared evenly.
        """
        if batch % self.world:
            raise ValueError(f"loader: a batch of {batch} samples cannot be shared evenly by {self.world} processes")
        sampler: DistributedSampler = DistributedSampler(dataset, self.world, self.rank, seed=seed)
        return DataLoader(dataset, batch // self.world, sampler=sampler, **options)


@contextmanager
def join(device: str | torch.device | None = None) -> Iterator[Processes]:
    """The processes that torchrun started, joined while the block runs; without torchrun, this process alone.

    device: of this process; by default its own GPU where there is one, else the CPU. NCCL serves GPU tensors, gloo the
    others. A process group that the caller has made is used and left as it is.
    """
    ready = dist.is_initialized()
    if not ready and not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield Processes(device=_device(device))
        return
    chosen = _device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not ready:
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), chosen)
        dist.barrier()  # who leaves early may take the others' connections along
    finally:
        if not ready:
            dist.destroy_process_group()


def _device(asked: str | torch.device | None) -> torch.device:
    if asked is not None:
        return torch.device(asked)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def current(processes: Processes | None) -> Processes:
    """`processes`, or those of the process group that this process belongs to, or this process alone."""
    if processes is not None:
        return processes
    return Processes(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Processes()


class Talk:
    """What the processes of one run tell each other; over gloo, so that no GPU has to be waited for.

    Every method must be called by all processes. Of one process it says what it was told.
    """

    def __init__(self, processes: Processes) -> None:
        self._group = dist.new_group(backend="gloo") if processes.world > 1 else None
        self._world = processes.world

    def __enter__(self) -> "Talk":
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def total(self, values: list[float]) -> list[float]:
        """Sums of the processes' values."""
        if self._group is None:
            return values
        sums: Tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self._group)
        return [float(value) for value in sums]

    def all(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self._world
        dist.all_gather_object(values, value, group=self._group)
        return values
