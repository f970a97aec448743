"""ONNX: deploy a network that explains every answer it gives.

    python examples/onnx_attribution.py

Trains a small convolutional network with BatchNorm on handwritten digits, makes it an X-DNN, fine-tunes that, and
writes one ONNX file whose outputs are the logits and the attribution of the predicted class. onnxruntime then reads the
test digits from that file alone, without PyTorch, and the attribution of every sample sums to its logit.
Needs the extras `onnx` and `demo`: pip install --no-build-isolation '.[onnx,demo]'
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import torch
import typer
from sklearn.datasets import load_digits
from torch import Tensor, nn

import xattr_cuda as xa

TRAIN_IMAGES = 1197  # two thirds


def make_network() -> nn.Module:
    """A network for images [B, 1, 8, 8], written as usual."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


def train(network: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()


def show(image: np.ndarray, attribution: np.ndarray) -> None:
    """The digit beside what spoke for its class (+) and against it (-), at a quarter of the largest or more."""
    level = np.abs(attribution).max() / 4
    for pixels, shares in zip(image, attribution, strict=True):
        signs = ("+" if a >= level else "-" if a <= -level else "." for a in shares)
        print("".join(" .:*#"[int(4 * p)] * 2 for p in pixels), "  ", " ".join(signs))


def main(
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("digits.onnx"),
    seed: Annotated[int, typer.Option(help="Draws the split, the weights and the order.", min=0)] = 0,
) -> None:
    """Train on digits, write the network with its attribution as ONNX, and run it in onnxruntime."""
    torch.manual_seed(seed)
    pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels))
    x, y = pixels[order].reshape(-1, 1, 8, 8).float() / 16, labels[order]
    network = make_network()
    train(network, x[:TRAIN_IMAGES], y[:TRAIN_IMAGES], epochs=4)
    xdnn = xa.convert(network.eval()).model  # no biases, BatchNorm folded
    train(xdnn, x[:TRAIN_IMAGES], y[:TRAIN_IMAGES], epochs=3)

    report = xa.bridges.export_onnx(xdnn, x[:4], output, target="predicted")
    errors = f"output {report.output_error:.0e}, attribution {report.attribution_error:.0e}"
    print(f"Wrote {report.path}; from PyTorch, over the largest value: {errors}")

    session = onnxruntime.InferenceSession(str(output))  # from here on there is no PyTorch
    images, truth = x[TRAIN_IMAGES:].numpy(), y[TRAIN_IMAGES:].numpy()
    logits, attribution = session.run(["output", "attribution"], {"input": images})
    gap = np.abs(attribution.sum((1, 2, 3)) - logits.max(1)).max() / np.abs(logits).max()
    print(f"{(logits.argmax(1) == truth).mean():.1%} of the predictions are right; attributions sum to the logits")
    print(f"but for {gap:.0e} of the largest. The first test digit, read as {logits[0].argmax()}:")
    show(images[0, 0], attribution[0, 0])


if __name__ == "__main__":
    typer.run(main)
