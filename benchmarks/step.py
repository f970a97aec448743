"""Time of a training step with a prior against the same step without one, in one interleaved run.

    python benchmarks/step.py                      the paper's network at batch 100 and 512, and a narrow deep one
    python benchmarks/step.py --case image-1       one case (repeat for more); --list names them
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
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

import xattr_cuda as xa
from xattr_cuda.training.timing import interleaved, medians

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from cases import NETWORKS, Network  # the shapes that the tests use too

STRENGTH = 0.1
ROUNDS = {"paper": 400, "paper-512": 200, "narrow": 40, "image-1": 8, "image-10": 8}
Step = Callable[[], object]


def double_backward(model: nn.Module, x: Tensor, pick: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Output and Input x Gradient as autograd computes them, differentiable by a second backward pass."""
    output = model(x)
    (gradient,) = torch.autograd.grad(pick(output).sum(), x, create_graph=True)
    return output, x * gradient


def contestants(case: Network, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, dict[str, Step]]:
    """The model of a case and a training step (zero_grad, loss, backward) for every contestant."""
    torch.manual_seed(0)
    classes = case.widths[-1]
    model = xa.models.xmlp(case.widths, dtype=dtype)
    x = torch.randn(case.batch, case.widths[0], dtype=dtype)
    leaf = x.clone().requires_grad_()
    labels = torch.randint(max(classes, 2), (case.batch,))
    target = None if classes == 1 else labels
    truth = labels.to(dtype).unsqueeze(1) if classes == 1 else labels
    criterion = nn.BCEWithLogitsLoss() if classes == 1 else nn.CrossEntropyLoss()

    def pick(output: Tensor) -> Tensor:
        return output if target is None else output.gather(1, target.unsqueeze(1))

    def finish(loss: Tensor, attribution: Tensor | None = None) -> None:
        model.zero_grad(set_to_none=True)
        (loss if attribution is None else loss + STRENGTH * xa.priors.l1(attribution)).backward()

    def with_double_backward() -> None:
        output, attribution = double_backward(model, leaf, pick)
        finish(criterion(output, truth), attribution)

    def with_attribute() -> None:
        output, attribution = xa.attribute(model, x, target)
        finish(criterion(output, truth), attribution)

    def with_attribute_loss() -> None:
        loss, _, attribution = xa.attribute_loss(model, x, criterion, truth)
        finish(loss, attribution)

    steps: dict[str, Step] = {
        "plain": lambda: finish(criterion(model(x), truth)),
        "double backward": with_double_backward,
        "attribute": with_attribute,
        "attribute_loss": with_attribute_loss,
    }
    return model, steps


def check(case: Network) -> None:
    """Stop unless `attribute` has the gradients of double backward in float64."""
    small = Network(case.widths, min(case.batch, 64))
    model, steps = contestants(small, torch.float64)
    found = {}
    for name in ("double backward", "attribute"):
        steps[name]()
        found[name] = [copy.deepcopy(p.grad) for p in model.parameters()]
    for ours, reference in zip(found["attribute"], found["double backward"], strict=True):
        error = float((ours - reference).norm() / reference.norm())
        if not error <= 1e-10:
            raise SystemExit(f"refusing to time {case}: gradients differ from double backward by {error:.1e}")


def quantiles(ratios: list[float]) -> tuple[float, float, float]:
    """20th percentile, median and 80th percentile."""
    if len(ratios) < 2:
        return ratios[0], ratios[0], ratios[0]
    cuts = statistics.quantiles(ratios, n=10, method="inclusive")
    return cuts[1], statistics.median(ratios), cuts[7]


def measure(name: str, rounds: int | None, console: Console) -> dict[str, object]:
    """Time one case; returns milliseconds and ratios to plain of every contestant."""
    case = NETWORKS[name]
    check(case)
    _, steps = contestants(case)
    rounds = rounds or ROUNDS[name]
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"{name}: {rounds} rounds", total=rounds + 20)
        seconds = interleaved(steps, rounds=rounds, warmup=20, on_round=lambda: progress.advance(bar))
    typical = medians(seconds)
    results = {
        step: {
            "milliseconds": typical[step] * 1e3,
            "ratio": typical[step] / typical["plain"],
            "ratio p20, p50, p80 over rounds": quantiles([t / p for t, p in zip(times, seconds["plain"], strict=True)]),
        }
        for step, times in seconds.items()
    }
    return {"case": name, "widths": case.widths, "batch": case.batch, "rounds": rounds, "results": results}


def show(measured: list[dict[str, object]], console: Console) -> None:
    table = Table(title="Training step with an L1 prior, relative to the plain step (median; fp32)")
    table.add_column("network", no_wrap=True)
    table.add_column("batch", justify="right")
    table.add_column("plain\nms", justify="right")
    names = ("double backward", "attribute", "attribute_loss")
    for name in names:
        table.add_column(name.replace(" ", "\n").replace("e_l", "e\n_l"), justify="right")
    for one in measured:
        results = one["results"]
        assert isinstance(results, dict)
        ratios = [f"{results[name]['ratio']:.2f}x" for name in names]
        widths = one["widths"]
        assert isinstance(widths, list)
        table.add_row("-".join(map(str, widths)), str(one["batch"]), f"{results['plain']['milliseconds']:.2f}", *ratios)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(NETWORKS), help="a case; repeat for more")
    parser.add_argument("--rounds", type=int, help="rounds of every case (default: by its size)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    options = parser.parse_args()
    console = Console()
    if options.list:
        for name, case in NETWORKS.items():
            console.print(f"{name}: {'-'.join(map(str, case.widths))}, batch {case.batch}")
        return
    torch.set_num_threads(options.threads)
    backend = "C++ kernels" if xa.ops.extension else "reference"
    machine = f"{options.threads} threads, torch {torch.__version__}, {platform.machine()}, {backend}"
    console.print(machine)
    measured = [measure(name, options.rounds, console) for name in options.case or ["paper", "paper-512", "narrow"]]
    show(measured, console)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "cases": measured}, indent=2) + "\n")


if __name__ == "__main__":
    main()
