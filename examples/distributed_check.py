"""Many processes against one: that DDP and FSDP2 give the gradients of one process on the global batch.

    torchrun --nproc-per-node 2 examples/distributed_check.py --engine fsdp2 --model xresnet18

Wraps the networks of large_job.py as it does, takes a step on every process's share of a batch, with the Gini prior
over the global batch, and compares gradients with those of a copy in one process. In fp32 the largest relative
difference of any parameter must be at most 1e-5. In bf16 the error of all parameters together, against float64, must
be at most twice that of PyTorch's own double backward in bf16, over the same processes. Ends with 1 where it is not.
Needs rich and typer: pip install rich typer
"""

import copy
from typing import Annotated

import rich
import torch
import torch.distributed as dist
import typer
from large_job import SIZE, Engine, Model, Precision, autocast, loss_of, make_model, start, wrap
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import xattr_cuda as xa

Batch = tuple[Tensor, Tensor]
Gradients = dict[str, Tensor]
STRENGTH = 0.1  # as in training; where rounding has two pixels change places in the sorting, the gradient of Gini jumps
LIMITS = {Precision.fp32: 1e-5, Precision.bf16: 2.0}


class DoubleBackward(nn.Module):
    """PyTorch's own way to the same output and attribution, in the place of xa.Sweep."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, labels: Tensor) -> xa.Attribution:
        return xa.attribute(self.model, x, labels, engine="autograd")


def problem(model: Model, size: int, seed: int, device: torch.device) -> tuple[nn.Module, Batch]:
    """A network with random weights, the zeros of Fixup among them, and a batch: the same in every process."""
    torch.manual_seed(seed)
    network = make_model(model)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = torch.randn(size, 3, SIZE, SIZE), torch.randint(4, (size,))
    return network.to(device), (batch[0].to(device), batch[1].to(device))


def in_one_process(network: nn.Module, batch: Batch) -> Gradients:
    """Gradients of the whole batch, without torch.distributed."""
    network = copy.deepcopy(network)
    output, attribution = xa.attribute(network, *batch)
    (cross_entropy(output, batch[1]) + STRENGTH * xa.priors.gini(attribution)).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def in_all_processes(
    network: nn.Module, batch: Batch, engine: Engine, precision: Precision, compiled: bool, offload: bool
) -> Gradients:
    """Gradients of the same step on shares of the batch."""
    network = copy.deepcopy(network)
    sweep = wrap(network, engine, precision, offload)
    x, labels = (t.chunk(dist.get_world_size())[dist.get_rank()] for t in batch)
    with autocast(engine, precision, x.device):
        loss, _ = loss_of(torch.compile(sweep) if compiled else sweep, x, labels, STRENGTH)
    loss.backward()
    return gathered(network)


def by_double_backward(network: nn.Module, batch: Batch, engine: Engine, precision: Precision) -> Gradients:
    """The same by PyTorch's own double backward; FSDP's cast of parameters is done by hand."""
    network = copy.deepcopy(network)
    x, labels = (t.chunk(dist.get_world_size())[dist.get_rank()] for t in batch)
    low = engine != Engine.ddp
    if low:
        network, x = network.bfloat16(), x.bfloat16()
    with autocast(engine, precision, x.device):
        loss, _ = loss_of(DoubleBackward(network), x, labels, STRENGTH)
    loss.backward()
    found = {name: p.grad.float() for name, p in network.named_parameters() if p.grad is not None}
    for gradient in found.values():
        dist.all_reduce(gradient)
    return {name: gradient / dist.get_world_size() for name, gradient in found.items()}


def gathered(network: nn.Module) -> Gradients:
    """Gradients in full, whatever part of them this process holds."""
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    if any(g.device.type == "cpu" for g in found.values()) and torch.cuda.is_available():  # offloaded
        found = {name: g.cuda() for name, g in found.items()}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in found.items()}


def error(got: Gradients, want: Gradients, name: str) -> float:
    """Relative error of the gradient of one parameter."""
    return float((got[name].double() - want[name].double()).norm() / want[name].double().norm())


def total_error(got: Gradients, want: Gradients) -> float:
    """Relative error of the gradients of all parameters together."""
    difference = torch.stack([(got[name].double() - want[name].double()).norm() for name in want]).norm()
    return float(difference / torch.stack([g.double().norm() for g in want.values()]).norm())


def compare(
    network: nn.Module, batch: Batch, engine: Engine, precision: Precision, compiled: bool, offload: bool
) -> tuple[float, str]:
    """(figure to hold against the limit, what it is)."""
    got = in_all_processes(network, batch, engine, precision, compiled, offload)
    if precision == Precision.fp32:
        want = in_one_process(network, batch)
        assert got.keys() == want.keys(), "a parameter has no gradient"
        worst = max(want, key=lambda name: error(got, want, name))
        return error(got, want, worst), f"of {worst}"
    double = network.double()
    truth = in_one_process(double, (batch[0].double(), batch[1]))
    own = total_error(by_double_backward(network.float(), batch, engine, precision), truth)
    return total_error(got, truth) / own, f"of {own:.2g}, PyTorch's own"


def main(
    engine: Annotated[list[Engine], typer.Option(help="Give it more than once for more.")] = [Engine.ddp],  # noqa: B006
    model: Annotated[list[Model], typer.Option(help="Likewise.")] = [Model.xresnet18],  # noqa: B006
    precision: Annotated[Precision, typer.Option(help="fp32 or bf16.")] = Precision.fp32,
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile the step.")] = False,
    offload: Annotated[bool, typer.Option("--offload", help="FSDP keeps the parts in the host's memory.")] = False,
    batch: Annotated[int, typer.Option(help="Images in all processes together.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Draws weights and images.", min=0)] = 0,
) -> None:
    """Compare the gradients of many processes with those of one."""
    if precision not in LIMITS:
        raise typer.BadParameter("give fp32 or bf16", param_hint="--precision")
    device = start()
    table = Table("network", "engine", "difference", "", title=f"{dist.get_world_size()} processes, {precision.value}")
    bad = False
    for each in model:
        network, images = problem(each, batch, seed, device)
        for kind in engine:
            figure, what = compare(network.float(), images, kind, precision, compiled, offload)
            bad |= not figure <= LIMITS[precision]
            table.add_row(each.value, kind.value, f"{figure:.3g}", what)
    if dist.get_rank() == 0:
        rich.print(table)
        rich.print(f"Not as one process: the limit is {LIMITS[precision]}" if bad else "As one process")
    dist.barrier()
    dist.destroy_process_group()
    raise typer.Exit(int(bad))


if __name__ == "__main__":
    typer.run(main)
