"""A large job to paste from: many processes, a prior over the global batch, lower precision, a compiled step.

    torchrun --nproc-per-node 2 examples/large_job.py --engine fsdp2 --precision bf16 --compile

Trains a network on images whose class is the quadrant that is bright, with a Gini prior: few pixels should carry the
answer. The network is whole in every process with DistributedDataParallel (`ddp`), in parts with FSDP2 (`fsdp2`), in
parts within each half of the processes (`hsdp`). Needs typer: pip install typer
"""

import os
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import xattr_cuda as xa
from xattr_cuda.models.fixup_resnet import BasicBlock

Engine = Enum("Engine", {k: k for k in ("ddp", "fsdp2", "hsdp")}, type=str)
Model = Enum("Model", {k: k for k in ("xmlp", "xresnet18")}, type=str)
Precision = Enum("Precision", {k: k for k in ("fp32", "bf16", "fp16")}, type=str)
SIZE = 32  # pixels a side
DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def start() -> torch.device:
    """Join the job that torchrun has started, and say where this process computes."""
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


def make_model(model: Model) -> nn.Module:
    """A network for images [B, 3, SIZE, SIZE] of 4 classes."""
    if model == Model.xresnet18:
        return xa.models.xfixup_resnet18(num_classes=4)
    return nn.Sequential(nn.Flatten(), *xa.models.xmlp([3 * SIZE * SIZE, 128, 64, 4]))


def wrap(model: nn.Module, engine: Engine, precision: Precision, offload: bool = False) -> nn.Module:
    """The step as a module: sweep(x, target) returns (output, attribution). What is wrapped is always the sweep."""
    sweep = xa.Sweep(model)
    if engine == Engine.ddp:
        return DistributedDataParallel(sweep)
    device, half = next(model.parameters()).device.type, precision != Precision.fp32
    # One policy for all: a sweep runs in one dtype.
    policy = MixedPrecisionPolicy(DTYPES[precision], torch.float32, torch.float32) if half else MixedPrecisionPolicy()
    mesh = (dist.get_world_size(),) if engine == Engine.fsdp2 else (2, dist.get_world_size() // 2)
    options = {
        "mesh": init_device_mesh(device, mesh, mesh_dim_names=("replicate", "shard")[-len(mesh) :]),
        "mp_policy": policy,
        "offload_policy": CPUOffloadPolicy(pin_memory=device == "cuda") if offload else OffloadPolicy(),
    }
    blocks = [m for m in model.modules() if isinstance(m, BasicBlock)]
    for block in blocks or [m for m in model.modules() if isinstance(m, nn.Linear)]:
        fully_shard(block, **options)
    return fully_shard(sweep, **options)


def autocast(engine: Engine, precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """FSDP casts by its policy; with DistributedDataParallel autocast does."""
    if engine != Engine.ddp or precision == Precision.fp32:
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def loss_of(sweep: nn.Module, x: Tensor, labels: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """(loss of this process's share of the batch with the prior of all of it, output)."""
    output, attribution = sweep(x, labels)
    prior = xa.priors.gini(attribution.float(), group=dist.group.WORLD)
    return cross_entropy(output.float(), labels) + strength * prior, output


def data(device: torch.device) -> TensorDataset:
    """512 images [3, SIZE, SIZE] of noise, with the quadrant bright that is the class."""
    generator = torch.Generator().manual_seed(1)  # the same in every process
    x, labels = torch.randn(512, 3, SIZE, SIZE, generator=generator), torch.arange(512) % 4
    for k in range(4):
        rows, columns = (slice(SIZE // 2 * half, SIZE // 2 * (half + 1)) for half in divmod(k, 2))
        x[k::4, :, rows, columns] += 2
    return TensorDataset(x.to(device), labels.to(device))


def main(
    engine: Annotated[Engine, typer.Option(help="How processes share the network.")] = Engine.fsdp2,
    model: Annotated[Model, typer.Option(help="Which network.")] = Model.xresnet18,
    precision: Annotated[Precision, typer.Option(help="The dtype of the network's products.")] = Precision.fp32,
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile the step.")] = False,
    offload: Annotated[bool, typer.Option("--offload", help="FSDP keeps the parts in the host's memory.")] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the images.", min=1)] = 2,
    batch: Annotated[int, typer.Option(help="Images a step, in all processes together.", min=1)] = 64,
    strength: Annotated[float, typer.Option(help="Of the prior.")] = 0.1,
) -> None:
    """Train with a Gini prior over the global batch."""
    device = start()
    torch.manual_seed(0)  # the same initial weights in every process
    images = data(device)
    sampler = DistributedSampler(images)
    loader = DataLoader(images, batch // dist.get_world_size(), sampler=sampler, drop_last=True)
    sweep = wrap(make_model(model).to(device), engine, precision, offload)
    optimizer = torch.optim.AdamW(sweep.parameters(), 1e-3)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == Precision.fp16)
    step = torch.compile(sweep) if compiled else sweep
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        right = torch.zeros((), device=device)
        for x, labels in loader:
            with autocast(engine, precision, device):
                loss, output = loss_of(step, x, labels, strength)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            right += (output.argmax(1) == labels).float().mean() / len(loader)
        dist.all_reduce(right)
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {loss:.3f}, accuracy {right / dist.get_world_size():.1%}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
