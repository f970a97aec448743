"""Time and memory of a training step with a prior against the same step without one, in one interleaved run.

    python benchmarks/step.py                      the paper's network at batch 100 and 512, and a narrow deep one
    python benchmarks/step.py --case xresnet18     one case (repeat for more); --list names them
    python benchmarks/step.py --compile            torch.compile too: over torch.func.grad, and over xa.attribute
    python benchmarks/step.py --memory             the allocator's peak of a step, beside parameters
    python benchmarks/step.py --rounds 400 --threads 2 --json step.json

Contestants: plain (no prior), double backward (the prior through autograd twice), attribute and attribute_loss. Each
is timed once a round, in turn. Before timing, the gradients of the contestants with a prior are compared with double
backward in float64; where they disagree nothing is reported.
"""

import argparse
import copy
import json
import platform
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from workloads import PERCEPTRONS, WORKLOADS, Workload

import xattr_cuda as xa
from xattr_cuda.training.timing import interleaved, medians

STRENGTH = 0.1
BASE = ("plain", "double backward", "attribute", "attribute_loss")
COMPILED = ("compiled func.grad", "compiled attribute")
Step = Callable[[], object]


def contestants(
    workload: Workload, dtype: torch.dtype = torch.float32, batch: int | None = None
) -> tuple[nn.Module, dict[str, Step]]:
    """The model of a case and a training step (zero_grad, loss, backward) for every contestant."""
    torch.manual_seed(0)
    model, x, labels = workload.draw(dtype, batch or workload.batch)
    leaf, single = x.clone().requires_grad_(), workload.classes == 1
    target = None if single else labels
    truth = labels.to(dtype).unsqueeze(1) if single else labels
    criterion = nn.BCEWithLogitsLoss() if single else nn.CrossEntropyLoss()

    def pick(output: Tensor) -> Tensor:
        return (output if target is None else output.gather(1, target.unsqueeze(1))).sum()

    def penalised(loss: Tensor, attribution: Tensor) -> Tensor:
        return loss + STRENGTH * xa.priors.l1(attribution)

    def plain() -> Tensor:
        return criterion(model(x), truth)

    def double_backward() -> Tensor:
        output = model(leaf.clone())
        (gradient,) = torch.autograd.grad(pick(output), leaf, create_graph=True)
        return penalised(criterion(output, truth), x * gradient)

    def functional() -> Tensor:
        def explained(x: Tensor) -> tuple[Tensor, Tensor]:
            output = model(x)
            return pick(output), output

        gradient, output = torch.func.grad(explained, has_aux=True)(x)
        return penalised(criterion(output, truth), x * gradient)

    def attribute() -> Tensor:
        output, attribution = xa.attribute(model, x, target)
        return penalised(criterion(output, truth), attribution)

    def attribute_loss() -> Tensor:
        loss, _, attribution = xa.attribute_loss(model, x, criterion, truth)
        return penalised(loss, attribution)

    def step(loss: Callable[[], Tensor]) -> Step:
        def run() -> None:
            model.zero_grad(set_to_none=True)
            loss().backward()

        return run

    losses = dict(zip(BASE, (plain, double_backward, attribute, attribute_loss), strict=True))
    losses |= dict(zip(COMPILED, (torch.compile(functional), torch.compile(attribute)), strict=True))
    return model, {name: step(loss) for name, loss in losses.items()}


def check(workload: Workload) -> None:
    """Stop unless `attribute` has the gradients of double backward in float64."""
    model, steps = contestants(workload, torch.float64, min(workload.batch, 16))
    found = {}
    for name in ("double backward", "attribute"):
        steps[name]()
        found[name] = [copy.deepcopy(p.grad) for p in model.parameters()]
    for ours, reference in zip(found["attribute"], found["double backward"], strict=True):
        error = float((ours - reference).norm() / reference.norm())
        if not error <= 1e-10:
            raise SystemExit(f"{workload.title} is not timed: gradients differ from double backward by {error:.1e}")


def quantiles(ratios: list[float]) -> tuple[float, float, float]:
    """20th percentile, median and 80th percentile."""
    if len(ratios) < 2:
        return ratios[0], ratios[0], ratios[0]
    cuts = statistics.quantiles(ratios, n=10, method="inclusive")
    return cuts[1], statistics.median(ratios), cuts[7]


def peak_bytes(model: nn.Module, step: Step) -> int:
    """The most that a step had allocated at one time, gradients included, as PyTorch records its allocator."""
    step()
    model.zero_grad(set_to_none=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            step()
    assert record.profiler is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measure(name: str, options: argparse.Namespace, console: Console) -> dict[str, object]:
    """Time one case; returns milliseconds and ratios to plain of every contestant, and peak memory if asked to."""
    workload = WORKLOADS[name]
    check(workload)
    names = BASE + COMPILED if options.compile else BASE
    model, everyone = contestants(workload)
    steps = {name: everyone[name] for name in names}
    rounds = options.rounds or workload.rounds
    warmup = min(20, rounds)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"{name}: {rounds} rounds", total=rounds + warmup)
        seconds = interleaved(steps, rounds=rounds, warmup=warmup, on_round=lambda: progress.advance(bar))
    typical = medians(seconds)
    results: dict[str, dict[str, object]] = {
        step: {
            "milliseconds": typical[step] * 1e3,
            "ratio": typical[step] / typical["plain"],
            "ratio p20, p50, p80 over rounds": quantiles([t / p for t, p in zip(times, seconds["plain"], strict=True)]),
        }
        for step, times in seconds.items()
    }
    if options.memory:
        for step, run in steps.items():
            results[step]["peak bytes"] = peak_bytes(model, run)
    return {"case": name, "title": workload.title, "batch": workload.batch, "rounds": rounds, "results": results}


def show(measured: list[dict[str, object]], names: tuple[str, ...], memory: bool, console: Console) -> None:
    table = Table(title="Training step with an L1 prior, relative to the plain step (median; fp32)")
    table.add_column("network", no_wrap=True)
    table.add_column("batch", justify="right")
    table.add_column("plain", justify="right", no_wrap=True)
    for name in names[1:]:
        table.add_column(
            name.replace(" ", "\n").replace("te_l", "te_\nl").replace("compiled", "torch.\ncompile"), justify="right"
        )
    for one in measured:
        results = one["results"]
        assert isinstance(results, dict)
        times = [f"{results[name]['ratio']:.2f}x" for name in names[1:]]
        table.add_row(str(one["case"]), str(one["batch"]), f"{results['plain']['milliseconds']:.2f} ms", *times)
        if memory:
            plain = results["plain"]["peak bytes"]
            peaks = [f"{results[name]['peak bytes'] / plain:.2f}x" for name in names[1:]]
            table.add_row("  memory", "", f"{plain / 2**20:.1f} MiB", *peaks)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(WORKLOADS), help="a case; repeat for more")
    parser.add_argument("--rounds", type=int, help="rounds of every case (default: by its size)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    parser.add_argument("--compile", action="store_true", help="time compiled steps too (compiling takes minutes)")
    parser.add_argument("--memory", action="store_true", help="measure the allocator's peak too")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    options = parser.parse_args()
    console = Console()
    if options.list:
        for name, workload in WORKLOADS.items():
            console.print(f"{name}: {workload.title}, batch {workload.batch}")
        return
    torch.set_num_threads(options.threads)
    backend = "C++ kernels" if xa.ops.extension else "reference"
    machine = f"{options.threads} threads, torch {torch.__version__}, {platform.machine()}, {backend}"
    console.print(machine)
    measured = [measure(name, options, console) for name in options.case or PERCEPTRONS]
    show(measured, BASE + COMPILED if options.compile else BASE, options.memory, console)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "cases": measured}, indent=2) + "\n")


if __name__ == "__main__":
    main()
