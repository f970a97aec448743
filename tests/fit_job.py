"""A training run that draws from every generator, and its process: what test_fit.py stops, kills and continues.

python fit_job.py FOLDER [--resume] [--epochs N] [--workers N] [--hold N]
"""

import argparse
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import xattr_cuda as xa
from xattr_cuda.training import fit

ROWS, FEATURES, BATCH = 44, 6, 8  # 6 batches an epoch, the last one of 4


class Noisy(Dataset):
    """Rows with noise from PyTorch's, NumPy's and Python's generators, as augmentations draw it."""

    def __init__(self, seed=5):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(ROWS, FEATURES, generator=generator)
        self.y = (self.x[:, :1] > 0).float()

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        noise = torch.randn(FEATURES) * np.random.uniform(0.5, 1.5) * random.choice([0.5, 1.0])  # noqa: NPY002
        return self.x[index] + 0.1 * noise, self.y[index]


class Average(nn.Module):
    """A running average of a network's weights: a state beside the optimiser's."""

    def __init__(self, network):
        super().__init__()
        self.weights = nn.ParameterList(p.detach().clone() for p in network.parameters())

    @torch.no_grad()
    def follow(self, network):
        for mean, weight in zip(self.weights, network.parameters(), strict=True):
            mean.lerp_(weight, 0.1)


class Job:
    """Everything of one run, made anew from the seed. on_step: called within every step with its number, from 1."""

    def __init__(self, on_step=lambda number: None, workers=0, seed=3):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        self.network = nn.Sequential(xa.models.xmlp([FEATURES, 16, 8]), nn.Dropout(0.25), nn.Linear(8, 1, bias=False))
        self.sweep = xa.Sweep(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-2)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.05, total_steps=1000)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=3)
        self.noise, order = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
        self.loader = DataLoader(Noisy(), BATCH, shuffle=True, generator=order, num_workers=workers)
        self.average, self.steps, self.on_step = Average(self.network), 0, on_step

    def step(self, batch):
        x, y = batch
        self.steps += 1
        self.on_step(self.steps)
        self.average.follow(self.network)
        x = x + 0.05 * torch.randn(x.shape, generator=self.noise)
        output, attribution = self.sweep(x)
        loss = nn.functional.binary_cross_entropy_with_logits(output, y)
        return {"loss": loss, "prior": 0.1 * xa.priors.gini(attribution)}

    def metric(self):
        return {"size": float(sum(p.detach().norm() for p in self.network.parameters()))}

    def fit(self, folder=None, epochs=4, **options):
        return fit(
            *(self.step, self.network, self.optimizer, self.loader),
            **{"epochs": epochs, "checkpoint": folder, "progress": False, "metric": self.metric, "every": 5, **options},
            schedules=[self.schedule],
            scaler=self.scaler,
            also={"noise": self.noise, "average": self.average},
        )

    def weights(self):
        return {**self.network.state_dict(), **self.average.state_dict()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--hold", type=int)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests with it ignored
    held, go = arguments.folder / "held", arguments.folder / "go"

    def on_step(number):
        if number == arguments.hold:
            held.touch()
            while not go.exists():  # within this step, until whoever waits for `held` says so
                time.sleep(0.01)

    arguments.folder.mkdir(exist_ok=True)
    job = Job(on_step, arguments.workers)
    job.fit(arguments.folder / "checkpoints", arguments.epochs, resume=arguments.resume, keep=2)


if __name__ == "__main__":
    main()
