"""Hugging Face Accelerate: its training loop, with an attribution prior.

    python examples/accelerate_prior.py
    torchrun --nproc-per-node 2 examples/accelerate_prior.py

What `accelerator.prepare` wraps is `xa.Sweep(model)`, whose forward returns the output and the attribution; the rest
is Accelerate's usual loop, on any number of processes, with gradients accumulated over batches. The prior is an L1
penalty, which asks for few of the 30 features of scikit-learn's breast cancer data. It is a mean over rows, so that
several processes train as one does on their rows together.
Needs the extras `accelerate` and `demo`: pip install --no-build-isolation '.[accelerate,demo]'
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import Accelerator
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import xattr_cuda as xa

TRAIN_ROWS = 384  # of 569


def load(seed: int) -> tuple[Tensor, Tensor]:
    """Standardised features [569, 30] and labels [569, 1], shuffled."""
    x, y = (torch.from_numpy(array).float() for array in load_breast_cancer(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = x[order], y[order]
    rows = x[:TRAIN_ROWS]
    return (x - rows.mean(0)) / rows.std(0), y.unsqueeze(1)


def train(accelerator: Accelerator, strength: float, x: Tensor, y: Tensor, epochs: int, batch: int) -> nn.Module:
    """A network trained by all processes together: `batch` rows a step, whatever their number."""
    torch.manual_seed(0)
    model = xa.models.xmlp([30, 64, 32, 1])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    shares = accelerator.num_processes * accelerator.gradient_accumulation_steps
    loader = DataLoader(TensorDataset(x, y), batch // shares)
    sweep, optimizer, loader = accelerator.prepare(xa.Sweep(model), optimizer, loader)
    for _ in range(epochs):
        for rows, labels in loader:
            with accelerator.accumulate(sweep):
                output, attribution = sweep(rows)
                loss = nn.functional.binary_cross_entropy_with_logits(output, labels)
                accelerator.backward(loss + strength * xa.priors.l1(attribution))
                optimizer.step()
                optimizer.zero_grad()
    return accelerator.unwrap_model(sweep).model


@torch.no_grad()
def report(name: str, model: nn.Module, x: Tensor, y: Tensor) -> str:
    output, attribution = xa.attribute(model, x)
    accuracy = ((output > 0) == (y > 0.5)).double().mean()
    return f"{name}: accuracy {accuracy:.1%}, Gini coefficient of the attribution {-xa.priors.gini(attribution):.2f}"


def main(
    epochs: Annotated[int, typer.Option(help="Passes over the 384 training rows.", min=1)] = 20,
    batch: Annotated[int, typer.Option(help="Rows of a step, on all processes together.", min=1)] = 64,
    accumulate: Annotated[int, typer.Option(help="Batches that a step is divided into.", min=1)] = 2,
    strength: Annotated[float, typer.Option(help="Of the prior.", min=0)] = 0.05,
    save: Annotated[Path | None, typer.Option(help="File for the weights of the network with the prior.")] = None,
) -> None:
    """Train without and with the prior, and compare."""
    x, y = load(seed=0)
    train_x, train_y, test_x, test_y = x[:TRAIN_ROWS], y[:TRAIN_ROWS], x[TRAIN_ROWS:], y[TRAIN_ROWS:]
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    without = train(accelerator, 0.0, train_x, train_y, epochs, batch)
    model = train(accelerator, strength, train_x, train_y, epochs, batch)
    accelerator.print(f"{accelerator.num_processes} process(es), {accumulate} batches a step")
    accelerator.print(report("without the prior", without, test_x, test_y))
    accelerator.print(report("with the prior   ", model, test_x, test_y))
    if save is not None:
        accelerator.save(model.state_dict(), save)
    accelerator.end_training()


if __name__ == "__main__":
    typer.run(main)
