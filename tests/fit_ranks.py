"""Runs of several processes under torchrun: what test_fit_jobs.py starts. Each writes what it found to FOLDER.

python -m torch.distributed.run --standalone --nproc-per-node 2 fit_ranks.py FOLDER
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import TensorDataset

import xattr_cuda as xa
from xattr_cuda.training import Stopped, demo, fit, join

ROWS, BATCH, EPOCHS = 48, 8, 3  # 18 steps


class Job:
    """A run on the share of one process: in DDP, or sharded; with dropout every process draws of its own."""

    def __init__(self, processes, dropout=0.0, sharded=False):
        torch.manual_seed(11)
        model = nn.Sequential(xa.models.xmlp([6, 16, 8]), nn.Dropout(dropout), nn.Linear(8, 1, bias=False))
        x = torch.randn(ROWS, 6)
        y = (x[:, :1] > 0).float()
        torch.manual_seed(100 + processes.rank)
        self.processes, self.model, self.steps = processes, model, 0
        if sharded:
            self.sweep = fully_shard(xa.Sweep(model), mesh=init_device_mesh("cpu", (processes.world,)))
        else:
            self.sweep = processes.wrap(xa.Sweep(model))
        self.optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        self.loader = processes.loader(TensorDataset(x, y), BATCH, seed=2)

    def fit(self, folder, stop=None, **options):
        def step(batch):
            self.steps += 1
            if self.steps == stop and self.processes.rank == self.processes.world - 1:  # not the one that writes
                os.kill(os.getpid(), signal.SIGTERM)
            output, attribution = self.sweep(batch[0])
            loss = nn.functional.binary_cross_entropy_with_logits(output, batch[1])
            return {"loss": loss, "prior": 0.1 * xa.priors.l1(attribution)}

        given = {"epochs": EPOCHS, "progress": False, "checkpoint": folder, "every": 4, **options}
        return fit(step, self.sweep, self.optimizer, self.loader, processes=self.processes, **given)

    def weights(self):
        return {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in self.model.named_parameters()}


def continued(processes, folder, **options):
    """(status of the stop, whether the run then continued to the weights of one that was never stopped)."""
    whole = Job(processes, **options)
    result = whole.fit(folder / "whole")
    status = None
    try:
        Job(processes, **options).fit(folder / "stopped", stop=8)
    except Stopped as stopped:
        status = stopped.code
    job = Job(processes, **options)
    torch.manual_seed(999)
    again = job.fit(folder / "stopped", resume=True)
    weights = job.weights()
    same = all(torch.equal(weights[name], want) for name, want in whole.weights().items())
    return status, same and again.history == result.history, job.steps


def demonstration(processes):
    """Accuracy of a network that the processes trained for the demo, and the sums of its weights."""
    settings = demo.DemoSettings(epochs=2, hidden=(32,))
    data = demo.load_decoy_digits(0)
    network = demo.train(settings, data, True, False, processes)
    return demo.accuracy(network, data.test_x, data.test_y), [p.double().sum().item() for p in network.parameters()]


def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    with join("cpu") as processes:
        job = Job(processes)
        history = job.fit(folder / "plain", progress=processes.first, log_every=2).history  # as a user may well write
        found = {"rank": processes.rank, "world": processes.world, "history": history}
        found["dropout"] = continued(processes, folder / "dropout", dropout=0.5)
        found["sharded"] = continued(processes, folder / "sharded", sharded=True)
        try:
            Job(processes).fit(folder / "plain" if processes.first else None)
        except ValueError as error:
            found["differ"] = str(error)
        found["demo"] = demonstration(processes)
        if processes.first:
            torch.save(job.weights(), folder / "weights.pt")
        (folder / f"found{processes.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
