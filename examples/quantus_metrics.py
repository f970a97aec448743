"""Quantus: measure the attributions of an X-DNN trained without and with the gini prior.

    python examples/quantus_metrics.py

`xa.bridges.quantus_explain` is an explain function as every metric of Quantus takes it. The networks are perceptrons
for handwritten digits. Needs scikit-learn and the `quantus` extra.
"""

import numpy as np
import quantus
import rich
import torch
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import xattr_cuda as xa

OPTIONS = {"disable_warnings": True, "display_progressbar": False}
METRICS = {
    "Sparseness": quantus.Sparseness(abs=True, normalise=False, **OPTIONS),
    "FaithfulnessCorrelation": quantus.FaithfulnessCorrelation(
        nr_runs=30, subset_size=32, perturb_baseline="black", normalise=False, **OPTIONS
    ),
    "MaxSensitivity": quantus.MaxSensitivity(nr_samples=5, lower_bound=0.05, normalise=False, **OPTIONS),
}


def trained(x: Tensor, y: Tensor, strength: float) -> nn.Sequential:
    """An X-DNN for images [B, 1, 8, 8], in evaluation mode, as Quantus wants it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), *xa.models.xmlp([64, 64, 10]))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(6):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            output, attribution = xa.attribute(network, x[rows], y[rows])
            loss = nn.functional.cross_entropy(output, y[rows]) + strength * xa.priors.gini(attribution)
            loss.backward()
            optimizer.step()
    return network.eval()


def main() -> None:
    torch.set_num_threads(1)  # two would spend their time waiting for each other on networks as small as these
    pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    x, y = pixels.reshape(-1, 1, 8, 8).float() / 16, labels
    networks = [trained(x[:1200], y[:1200], strength) for strength in (0.0, 1.0)]
    test_x, test_y = x[1200:], y[1200:]
    few = {"x_batch": test_x[:32].numpy(), "y_batch": test_y[:32].numpy(), "explain_func": xa.bridges.quantus_explain}

    table = Table("", "no prior", "gini")
    accuracies = [float((network(test_x).argmax(1) == test_y).float().mean()) for network in networks]
    table.add_row("test accuracy", *(f"{accuracy:.3f}" for accuracy in accuracies))
    for name, metric in METRICS.items():
        np.random.seed(0)  # noqa: NPY002 - Quantus draws from NumPy's global generator
        table.add_row(name, *(f"{np.nanmean(metric(model=network, **few)):.3f}" for network in networks))
    rich.print(table)


if __name__ == "__main__":
    main()
