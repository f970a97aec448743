"""Contrast: fade the images, and see which network still reads them.

    python examples/contrast.py --output runs/contrast

An X-DNN has no biases, and F(c x) = c F(x) for every c > 0: an image at a tenth of its contrast gets a tenth of every
logit, and so the same answer. A network with biases weighs the faded image against biases that do not fade. This
trains one of each on handwritten digits, as in section 4.4 of Hesse, Schaub-Meyer and Roth, NeurIPS 2021.
Needs the `demo` extra: pip install --no-build-isolation '.[demo]'
"""

import json
from pathlib import Path
from typing import Annotated

import rich
import torch
import typer
from matplotlib.figure import Figure
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import xattr_cuda as xa

ALPHAS = [k / 10 for k in range(1, 11)]  # contrast: what the pixels are multiplied by
TRAIN_IMAGES = 1197  # two thirds; the other 600 are the test set
TWIN, XDNN = "with biases", "X-DNN"
COLOURS = {TWIN: "#c1442e", XDNN: "#2b5f9e"}
INK, QUIET, FRAME, WRONG = "#1f2430", "#8a90a0", "#d5d8df", "#c1442e"


def make_network() -> nn.Module:
    """A small network for images [B, 1, 8, 8], written as usual: with biases."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )


def train(network: nn.Module, x: Tensor, y: Tensor, epochs: int, name: str) -> None:
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in track(range(epochs), f"Training the network: {name}", transient=True):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()


@torch.no_grad()
def answers(network: nn.Module, x: Tensor) -> Tensor:
    """The predicted class of every image at every alpha, [10, B]; in float64, so that rounding tips no tie."""
    return torch.stack([network.double()(alpha * x.double()).argmax(1) for alpha in ALPHAS])


def draw(accuracy: dict[str, list[float]], x: Tensor, y: Tensor, read: dict[str, Tensor], path: Path) -> None:
    """Accuracy over alpha; below every alpha, a digit at that contrast and what each network reads in it."""
    right = {name: classes == y for name, classes in read.items()}  # [10, B]
    # The first digit that both read at full contrast and the twin misreads at the lowest; any, if there is none.
    example = int((right[XDNN][-1] & right[TWIN][-1] & ~right[TWIN][0]).int().argmax())
    figure = Figure(figsize=(8.0, 5.6), dpi=150)
    figure.text(0.02, 0.945, "Fading digits", fontsize=14, color=INK, weight="bold")
    figure.text(0.02, 0.895, "Test accuracy with pixels times alpha, and a digit as each network reads it", color=INK)
    rows = figure.add_gridspec(2, 1, height_ratios=[5, 1], left=0.13, right=0.98, top=0.85, bottom=0.12, hspace=0.22)
    axes = figure.add_subplot(rows[0], xlim=(0.05, 1.05), ylim=(-0.02, 1.03), xticks=ALPHAS, frame_on=False)
    for name, values in accuracy.items():
        axes.plot(ALPHAS, values, "o-", color=COLOURS[name], linewidth=2, markersize=5, label=name)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(loc="lower right", frameon=False, labelcolor=INK)
    axes.grid(axis="y", color="#e6e8ee")
    axes.tick_params(colors=INK, length=0)
    for column, cell in enumerate(rows[1].subgridspec(1, len(ALPHAS), wspace=0)):  # each below its alpha
        image = figure.add_subplot(cell, xticks=[], yticks=[])
        image.imshow(ALPHAS[column] * x[example, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        image.spines[:].set_color(FRAME)
        for line, (name, classes) in enumerate(read.items()):
            place = {"xycoords": "axes fraction", "fontsize": 9}
            if column == 0:
                image.annotate(name, (-0.25, -0.3 - 0.3 * line), ha="right", color=COLOURS[name], **place)
            style = {"color": QUIET} if right[name][column, example] else {"color": WRONG, "weight": "bold"}
            image.annotate(int(classes[column, example]), (0.5, -0.3 - 0.3 * line), ha="center", **style, **place)
    figure.savefig(path, facecolor="white")


def show(accuracy: dict[str, list[float]]) -> None:
    table = Table("alpha", *accuracy, title="Test accuracy by contrast")
    for row in zip(ALPHAS, *accuracy.values(), strict=True):
        table.add_row(f"{row[0]:.1f}", *(f"{value:.1%}" for value in row[1:]))
    rich.print(table)


def main(
    output: Annotated[Path, typer.Option(help="Folder for contrast.png and results.json.")] = Path("runs/contrast"),
    seed: Annotated[int, typer.Option(help="Draws the split, the weights and the order.", min=0)] = 0,
    epochs: Annotated[int, typer.Option(help="Passes over the 1,197 training images.", min=1)] = 15,
) -> None:
    """Train an X-DNN and its twin with biases on digits, and read the test digits at ten contrasts."""
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # two would spend their time waiting for each other on networks as small as these
    pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels))
    x, y = pixels[order].reshape(-1, 1, 8, 8).float() / 16, labels[order]
    twin = make_network()
    networks = {TWIN: twin, XDNN: xa.convert(twin).model}  # the same initial weights, without the biases
    for name, network in networks.items():
        train(network, x[:TRAIN_IMAGES], y[:TRAIN_IMAGES], epochs, name)
    x, y = x[TRAIN_IMAGES:], y[TRAIN_IMAGES:]
    read = {name: answers(network, x) for name, network in networks.items()}
    accuracy = {name: (classes == y).double().mean(1).tolist() for name, classes in read.items()}
    show(accuracy)
    draw(accuracy, x, y, read, output / "contrast.png")
    results = {"seed": seed, "epochs": epochs, "alphas": ALPHAS, "accuracy": accuracy}
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"Saved in {output}: contrast.png, results.json")


if __name__ == "__main__":
    typer.run(main)
