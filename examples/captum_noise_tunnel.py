"""Captum: smooth the attribution of an X-DNN with its NoiseTunnel, measure it and draw it with its visualiser.

    python examples/captum_noise_tunnel.py --output runs/captum

With Captum installed `xa.attr.XGradient` is one of its GradientAttributions, and goes wherever one is expected. This
trains an X-DNN on handwritten digits. Needs scikit-learn and the `captum` extra.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from captum.attr import NoiseTunnel, visualization
from captum.metrics import sensitivity_max
from sklearn.datasets import load_digits
from torch import Tensor, nn

import xattr_cuda as xa


def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] in [0, 1], and their labels."""
    pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    return pixels.reshape(-1, 1, 8, 8).float() / 16, labels


def trained(x: Tensor, y: Tensor) -> nn.Sequential:
    """An X-DNN: convolutions without biases, ReLU and max pooling."""
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10, bias=False)),
    )
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(3):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network


def main(output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("runs/captum")) -> None:
    """Explain three digits, as they are and smoothed."""
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # two would spend their time waiting for each other on images as small as these
    x, y = digits()
    network = trained(x[:1200], y[:1200])
    print(f"test accuracy {float((network(x[1200:]).argmax(1) == y[1200:]).float().mean()):.1%}")
    images, labels = x[1200:1203], y[1200:1203]

    gradient = xa.attr.XGradient(network)
    smooth, delta = NoiseTunnel(gradient).attribute(
        images, stdevs=0.1, nt_samples=20, target=labels, return_convergence_delta=True
    )
    print(f"distance from completeness, over 20 noisy copies of each digit: at most {float(delta.abs().max()):.0e}")
    print("sensitivity:", *(f"{v:.3f}" for v in sensitivity_max(gradient.attribute, images, target=labels)))

    sharp = gradient.attribute(images, labels).detach()
    for name, attributions in (("sharp", sharp), ("smooth", smooth)):
        for image, attribution, label in zip(images, attributions, labels.tolist(), strict=True):
            figure, _ = visualization.visualize_image_attr_multiple(
                attribution.permute(1, 2, 0).numpy(),
                image.permute(1, 2, 0).numpy(),
                methods=["original_image", "heat_map"],
                signs=["all", "all"],
                use_pyplot=False,
            )
            figure.savefig(output / f"{label}-{name}.png")
    print(f"saved in {output}")


if __name__ == "__main__":
    typer.run(main)
