"""Training jobs on two processes, one function a case: what `test_distributed.py` compares with one process.

A case takes a `Share` and returns gradients, by the names of parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import gloo
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import xattr_cuda as xa

Tensors = dict[str, Tensor]
CASES: dict[str, Callable[["Share"], object]] = {}
BF16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)
NETWORKS = ("residual", "perceptron")


class Block(nn.Module):
    """A residual block, which fully_shard is applied to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.Conv2d(width, width, 1, bias=False)
        self.scale = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.scale * self.b(self.a(x).relu())).relu()


def network(name: str, seed: int) -> nn.Module:
    """For inputs [B, 12] of 3 classes: one that the engine sweeps layer by layer, and one native call a sweep."""
    torch.manual_seed(seed)
    if name == "perceptron":
        return xa.models.xmlp([12, 32, 16, 3])
    head = nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 5, 3, padding=1, bias=False)
    return nn.Sequential(*head, Block(5), Block(5), nn.Flatten(), nn.Linear(20, 3, bias=False))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed + 1)
    return torch.randn(8, 12), torch.randint(3, (8,))


def layers(model: nn.Module) -> list[nn.Module]:
    """What fully_shard is applied to within a model."""
    return [m for m in model if any(True for _ in m.parameters())][1:]


def with_gini(sweep: nn.Module, x: Tensor, labels: Tensor, group: object = None) -> Tensor:
    """A loss that one process can only have of the whole batch."""
    output, attribution = sweep(x, labels)
    return cross_entropy(output.float(), labels) + 0.1 * xa.priors.gini(attribution.float(), group=group)


def with_mean(sweep: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """A loss that is the mean of those of equal parts of the batch."""
    output, attribution = sweep(x, labels)
    return cross_entropy(output.float(), labels) + attribution.float().square().mean()


def of_loss(sweep: nn.Module, x: Tensor, labels: Tensor, group: object = None) -> Tensor:
    """The attribution of the loss; Gini does not see its scale, which depends on the share of the batch."""
    loss, _, attribution = sweep(x, labels)
    return loss + 0.1 * xa.priors.gini(attribution, group=group)


def full(t: Tensor) -> Tensor:
    """A tensor in full, of which this process may hold a part."""
    return (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()


def gradients(model: nn.Module) -> Tensors:
    """The gradients of all parameters, in full."""
    return {name: full(p.grad) for name, p in model.named_parameters() if p.grad is not None}


@dataclass
class Share:
    """What a process has of a case: the network of the case, made anew, and its part of the batch."""

    name: str
    seed: int

    def __post_init__(self) -> None:
        self.model = network(self.name, self.seed)
        self.x, self.labels = (t.chunk(dist.get_world_size())[dist.get_rank()] for t in batch(self.seed))

    def shard(self, inner: bool = True, **options: object) -> nn.Module:
        """xa.Sweep under FSDP2, and with `inner` the network's layers too."""
        for layer in layers(self.model) if inner else []:
            fully_shard(layer, **options)
        return fully_shard(xa.Sweep(self.model), **options)

    def gini(self, sweep: nn.Module, loss_of: Callable[..., Tensor] = with_gini) -> Tensors:
        """Gradients after two steps, of which the second finds what the first has left behind."""
        for _ in range(2):
            sweep.zero_grad(set_to_none=True)
            loss_of(sweep, self.x, self.labels, dist.group.WORLD).backward()
        return gradients(self.model)


def case(function: Callable[[Share], object]) -> Callable[[Share], object]:
    CASES[function.__name__] = function
    return function


def titles(name: str) -> list[str]:
    """The cases of a network: a graph sees no difference between the two, and takes long to compile."""
    return [title for title in CASES if name == "residual" or not title.startswith("compiled")]


@case
def ddp(share):
    return share.gini(DistributedDataParallel(xa.Sweep(share.model)))


@case
def ddp_with_a_static_graph(share):
    return share.gini(DistributedDataParallel(xa.Sweep(share.model), static_graph=True))


@case
def ddp_that_looks_for_unused_parameters(share):
    options = {"find_unused_parameters": True, "gradient_as_bucket_view": True}
    return share.gini(DistributedDataParallel(xa.Sweep(share.model), **options))


@case
def fsdp_around_the_sweep(share):
    return share.gini(share.shard(inner=False))


@case
def fsdp_around_the_sweep_that_reshards(share):
    return share.gini(share.shard(inner=False, reshard_after_forward=True))


@case
def fsdp_on_blocks_and_the_sweep(share):
    return share.gini(share.shard())


@case
def fsdp_on_blocks_that_stay_gathered(share):
    return share.gini(share.shard(reshard_after_forward=False))


@case
def fsdp_with_cpu_offload(share):
    return share.gini(share.shard(offload_policy=CPUOffloadPolicy(pin_memory=False)))


@case
def fsdp_on_a_model_inside_a_plain_sweep(share):
    for layer in layers(share.model):
        fully_shard(layer)
    return share.gini(xa.Sweep(fully_shard(share.model)))


@case
def fsdp_on_blocks_the_model_and_the_sweep(share):
    for layer in layers(share.model):
        fully_shard(layer)
    fully_shard(share.model)
    return share.gini(fully_shard(xa.Sweep(share.model)))


@case
def fsdp_on_a_group_of_layers(share):
    fully_shard(layers(share.model)[:2])
    return share.gini(fully_shard(xa.Sweep(share.model)))


@case
def fsdp1_around_the_sweep(share):
    from torch.distributed.fsdp import FullyShardedDataParallel

    sweep = FullyShardedDataParallel(xa.Sweep(share.model), use_orig_params=True, device_id=torch.device("cpu"))
    with_gini(sweep, share.x, share.labels, dist.group.WORLD).backward()
    with FullyShardedDataParallel.summon_full_params(sweep, with_grads=True):
        return gradients(share.model)


@case
def fsdp_with_the_gradient_of_the_input(share):
    share.x.requires_grad_()
    found = share.gini(share.shard())
    parts = [torch.empty_like(share.x) for _ in range(2)]
    dist.all_gather(parts, share.x.grad / 4)  # of two steps, and of a mean over two processes
    return {**found, "x": torch.cat(parts)}


@case
def fsdp_with_frozen_layers(share):
    layers(share.model)[0].requires_grad_(False)
    return share.gini(share.shard())


@case
def ddp_with_a_checkpointed_step(share):
    class Checkpointed(nn.Module):
        def __init__(self, sweep):
            super().__init__()
            self.sweep = sweep

        def forward(self, *args):
            return checkpoint(self.sweep, *args, use_reentrant=False)

    return share.gini(DistributedDataParallel(Checkpointed(xa.Sweep(share.model))))


@case
def fsdp_with_a_checkpointed_step(share):
    sweep = share.shard()
    loss = checkpoint(with_gini, sweep, share.x, share.labels, dist.group.WORLD, use_reentrant=False)
    loss.backward()
    return gradients(share.model)


@case
def compiled_sweep_of_fsdp(share):
    torch.compiler.reset()
    return share.gini(torch.compile(share.shard(), backend="aot_eager"))


@case
def compiled_step_of_ddp(share):
    torch.compiler.reset()
    return share.gini(DistributedDataParallel(xa.Sweep(share.model)), torch.compile(with_gini, backend="aot_eager"))


@case
def of_the_loss_in_ddp(share):
    sweep = DistributedDataParallel(xa.Sweep(share.model, nn.CrossEntropyLoss()))
    of_loss(sweep, share.x, share.labels, dist.group.WORLD).backward()
    return gradients(share.model)


@case
def of_the_loss_in_fsdp(share):
    sweep = xa.Sweep(share.model, nn.CrossEntropyLoss())
    for layer in layers(share.model):
        fully_shard(layer)
    fully_shard(sweep)
    of_loss(sweep, share.x, share.labels, dist.group.WORLD).backward()
    return gradients(share.model)


SHARE = slice(1, 3)  # of the rows of each of two processes
ROWS = torch.tensor([1, 2, 5, 6])  # the same rows in one


@case
def rows_in_ddp(share):
    sweep = DistributedDataParallel(xa.Sweep(share.model))
    with_mean(partial(sweep, rows=SHARE), share.x, share.labels).backward()
    return gradients(share.model)


@case
def rows_in_fsdp_in_another_dtype(share):
    sweep = partial(share.shard(), rows=SHARE, attribution_dtype=torch.float64)
    with_mean(sweep, share.x, share.labels).backward()
    return gradients(share.model)


def halves(share):
    return zip(share.x.chunk(2), share.labels.chunk(2), strict=True)


@case
def parts_in_ddp_without_sync(share):
    sweep = DistributedDataParallel(xa.Sweep(share.model))
    first, second = halves(share)
    with sweep.no_sync():
        (with_mean(sweep, *first) / 2).backward()
    (with_mean(sweep, *second) / 2).backward()
    return gradients(share.model)


@case
def parts_in_fsdp_without_sync(share):
    sweep = share.shard()
    for last, part in enumerate(halves(share)):
        sweep.set_requires_gradient_sync(bool(last))
        sweep.set_reshard_after_backward(bool(last))
        (with_mean(sweep, *part) / 2).backward()
    return gradients(share.model)


@case
def parts_in_fsdp_forward_before_backward(share):
    """The first backward pass lets go of parameters that the second has saved."""
    sweep = share.shard()
    losses = [with_mean(sweep, *part) / 2 for part in halves(share)]
    assert all(isinstance(p, DTensor) for layer in layers(share.model) for p in layer.parameters())  # parts again
    for loss in losses:
        loss.backward()
    return gradients(share.model)


def scaled(share, sweep):
    """Unscaled gradients; then an overflow in one process, which must skip the step in all."""
    scaler, optimiser = torch.amp.GradScaler("cpu", init_scale=1024.0), torch.optim.SGD(sweep.parameters(), 0.1)
    scaler.scale(with_gini(sweep, share.x, share.labels, dist.group.WORLD)).backward()
    scaler.unscale_(optimiser)
    found = gradients(share.model)
    scaler.step(optimiser)
    scaler.update()
    before = {name: full(p) for name, p in share.model.named_parameters()}
    optimiser.zero_grad()
    loss = with_gini(sweep, share.x, share.labels, dist.group.WORLD)
    (scaler.scale(loss) * (float("inf") if dist.get_rank() else 1.0)).backward()
    scaler.step(optimiser)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert all(torch.equal(before[name], full(p)) for name, p in share.model.named_parameters())
    return found


@case
def a_scaled_loss_in_ddp(share):
    return scaled(share, DistributedDataParallel(xa.Sweep(share.model)))


@case
def a_scaled_loss_in_fsdp(share):
    return scaled(share, share.shard())


def trained(share, sweep, group, x, labels):
    """Weights after three steps, each with an evaluation before its update and with a forward that goes nowhere."""
    optimiser = torch.optim.SGD(sweep.parameters(), 0.05, momentum=0.9)
    for _ in range(3):
        with torch.no_grad():
            with_gini(sweep, x, labels, group)
        with_gini(sweep, x, labels, group)
        optimiser.zero_grad()
        with_gini(sweep, x, labels, group).backward()
        optimiser.step()
    return {name: full(p) for name, p in share.model.named_parameters()}


@case
def weights_after_training_in_fsdp(share):
    return trained(share, share.shard(), dist.group.WORLD, share.x, share.labels)


def in_bf16(share: Share, how: str, engine: str) -> Tensors:
    """Gradients in bf16, by FSDP's policy or by autocast in DDP; PyTorch's own with engine="autograd"."""
    if how == "ddp":
        sweep = DistributedDataParallel(xa.Sweep(share.model))
    else:
        sweep = share.shard(inner=engine == "sweep", mp_policy=BF16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "ddp"):
        loss = with_mean(partial(sweep, engine=engine), share.x, share.labels)  # smooth: Gini's gradient jumps at ties
    loss.backward()
    return gradients(share.model)


def run(rank: int, folder: str, seed: int) -> None:
    """One process of two: every case in turn. It hands in what they return, or how they fail."""
    gloo.join(rank, 2, folder)
    from distributed_refusals import REFUSALS

    found: dict[object, object] = {}
    for name in NETWORKS:
        for title in titles(name):
            found[title, name] = _caught(lambda t=title, n=name: CASES[t](Share(n, seed)))
        for how in ("ddp", "fsdp"):
            for engine in ("sweep", "autograd"):
                found[how, engine, name] = _caught(lambda n=name, h=how, e=engine: in_bf16(Share(n, seed), h, e))
    for title, function in REFUSALS.items():
        found["refused", title] = _caught(lambda f=function: f(Share("residual", seed)))
    gloo.hand_in(found, rank, 2, folder)


def _caught(function: Callable[[], object]) -> object:
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
