"""A long run with a prior, to start from: it can be stopped, killed and continued, in one process or in many.

    python examples/long_run.py --output runs/long
    python examples/long_run.py --output runs/long --resume              # after Ctrl-C, SIGTERM or worse
    torchrun --nproc-per-node 2 examples/long_run.py --output runs/two

A small convolutional X-DNN learns handwritten digits whose corners give the label away, and is kept from looking there.
Needs the `demo` extra, and `tensorboard` for --board: pip install --no-build-isolation '.[demo,tensorboard]'
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import xattr_cuda as xa
from xattr_cuda.training import fit, join
from xattr_cuda.training.decoy import load_decoy_digits


def make_network() -> nn.Module:
    """An X-DNN for images [B, 1, 12, 12]."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 6 * 6, 10, bias=False)),
    )


def main(
    output: Annotated[Path, typer.Option(help="Folder for checkpoints, the log and the weights.")] = Path("runs/long"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    board: Annotated[bool, typer.Option("--board", help="Log for TensorBoard: scalars and attributions.")] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the 1,197 training images.", min=1)] = 10,
    batch: Annotated[int, typer.Option(help="Images of all processes together.", min=1)] = 64,
    strength: Annotated[float, typer.Option(help="Factor of the prior.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Draws the data, the weights and the order.", min=0)] = 0,
) -> None:
    """Train a network with a prior; SIGTERM and Ctrl-C save it, and --resume goes on to the same weights."""
    with join() as processes:  # torchrun's, or this one alone
        device = processes.device
        torch.manual_seed(seed)
        digits = load_decoy_digits(seed)
        network = make_network().to(device)
        sweep = processes.wrap(xa.Sweep(network, nn.CrossEntropyLoss()))
        prior = xa.priors.right_reasons(digits.corners.to(device))
        loader = processes.loader(TensorDataset(digits.train_x[:, None], digits.train_y), batch, seed=seed)
        optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
        test_x, test_y = digits.test_x[:, None].to(device), digits.test_y.to(device)

        def step(images_and_labels: list[Tensor]) -> dict[str, Tensor]:
            x, y = (part.to(device, non_blocking=True) for part in images_and_labels)
            loss, _, attribution = sweep(x, y)
            return {"loss": loss, "prior": strength * prior(attribution * len(x))}  # of samples, not of their mean

        @torch.no_grad()
        def accuracy() -> dict[str, float]:
            return {"accuracy": (network(test_x).argmax(1) == test_y).double().mean().item()}

        def attributions() -> dict[str, Tensor]:
            return {"attribution": xa.attribute(network, test_x[:8], target=test_y[:8]).attribution}

        result = fit(
            *(step, network, optimizer, loader),
            epochs=epochs,
            schedules=[torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)],
            metric=accuracy,
            checkpoint=output / "checkpoints",
            resume=resume,
            every=20,  # steps; a timedelta for real work
            settings={"batch": batch, "strength": strength, "seed": seed},
            tensorboard=output / "board" if board else None,
            images=attributions,
        )
        if processes.first:
            torch.save(network.state_dict(), output / "weights.pt")
            print(f"{result.steps} steps, test accuracy {result.history[-1]['accuracy']:.1%}; saved in {output}")


if __name__ == "__main__":
    typer.run(main)
