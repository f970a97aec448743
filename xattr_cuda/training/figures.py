"""The pictures: attributions of the demonstration, and the comparison of methods on a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import extras
from .decoy import PATCH, SIDE
from .demo import DemoResult, explain

INK, QUIET, ACCENT = "#1f2430", "#8a90a0", "#c1442e"


def new_figure(width: float, height: float) -> Any:
    """A figure, inches, on the file-only canvas: no window system and no state shared with the caller's plots."""
    figure = extras.load("matplotlib.figure").Figure(figsize=(width, height), dpi=150)
    extras.load("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    return figure


def _outline_corners(axes: Any) -> None:
    rectangle = extras.load("matplotlib.patches").Rectangle
    far = SIDE - PATCH
    for row in (0, far):
        for column in (0, far):
            axes.add_patch(
                rectangle((column - 0.5, row - 0.5), PATCH, PATCH, fill=False, edgecolor=QUIET, linewidth=0.8)
            )


def chosen_examples(result: DemoResult, each: int = 4) -> Tensor:
    """Indices of test images: the first `each` that the network without prior gets wrong, the first it gets right."""
    predicted, _ = explain(result.networks["plain"], result.data.test_x)
    right = predicted == result.data.test_y
    return torch.cat([(~right).nonzero().flatten()[:each], right.nonzero().flatten()[:each]])


def _image(axes: Any, image: Tensor, **style: Any) -> Any:
    shown = axes.imshow(image.numpy(), interpolation="nearest", **style)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#d5d8df", linewidth=0.8)
    _outline_corners(axes)
    return shown


def save_attributions(result: DemoResult, path: Path) -> None:
    """Write a PNG: test digits, and their attributions without and with the prior, corners outlined.

    The two rows of attributions share one diverging scale, symmetric about zero. Raises OSError where it cannot be
    written, MissingPackageError where matplotlib is missing.
    """
    data, examples = result.data, chosen_examples(result)
    images, labels = data.test_x[examples], data.test_y[examples]
    explained = [explain(result.networks[name], images) for name in ("plain", "prior")]
    # A quantile and not the maximum: one saturated pixel would wash all the others out.
    limit = torch.cat([a.abs().flatten() for _, a in explained]).quantile(0.995).item() or 1.0
    columns = len(examples)
    figure = new_figure(1.15 * columns + 1.9, 5.2)
    grid = figure.add_gridspec(3, columns, left=0.13, right=0.9, top=0.81, bottom=0.03, wspace=0.12, hspace=0.3)
    rows = ["test digit", "without prior", "with prior"]
    shown = None
    for column in range(columns):
        for row, words in enumerate(rows):
            axes = figure.add_subplot(grid[row, column])
            if row == 0:
                _image(axes, images[column], cmap="gray_r", vmin=0, vmax=1)
                axes.set_title(f"label {labels[column]}", fontsize=9, color=INK, pad=4)
            else:
                predicted, attribution = explained[row - 1]
                shown = _image(axes, attribution[column], cmap="RdBu_r", vmin=-limit, vmax=limit)
                wrong = predicted[column] != labels[column]
                title = f"predicts {predicted[column]}"
                axes.set_title(title, fontsize=9, color=ACCENT if wrong else INK, pad=4)
            if column == 0:
                axes.set_ylabel(words, fontsize=9.5, color=INK, rotation=0, ha="right", va="center", labelpad=8)
    _legends(figure, result, shown)
    figure.savefig(path, facecolor="white", metadata={"Software": None})


def _legends(figure: Any, result: DemoResult, shown: Any) -> None:
    """Title, the figures behind the picture, and the colour bar of the attributions."""
    plain, prior = result.plain, result.prior
    figure.text(0.02, 0.945, "Decoy digits: where the prediction comes from", fontsize=13, color=INK, weight="bold")
    figure.text(
        0.02,
        0.895,
        f"Test accuracy {plain.accuracy:.1%} without the prior, {prior.accuracy:.1%} with it; |attribution| on the "
        f"outlined corners {plain.corner_share:.1%} and {prior.corner_share:.1%}.",
        fontsize=9,
        color="#565c6b",
    )
    bar = figure.colorbar(shown, cax=figure.add_axes((0.925, 0.05, 0.012, 0.42)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, color=QUIET, labelcolor=INK)
    bar.ax.set_title("attribution\nof the\nprediction", fontsize=7.5, color=INK, pad=6)


def save_comparison(
    names: Sequence[str], scores: Sequence[Sequence[float]], *, score: str, title: str, path: Path
) -> None:
    """Write a PNG with a row a method: every split's score as a dot, the mean with its standard deviation over it.

    names: methods, the first on top. scores: one sequence of values a method. score: the axis label.
    Raises OSError where it cannot be written, MissingPackageError where matplotlib is missing.
    """
    figure = new_figure(7.0, 1.3 + 0.5 * len(names))
    axes = figure.add_subplot()
    for row, values in enumerate(scores):
        spread = torch.tensor(values, dtype=torch.float64)
        deviation = spread.std().item() if len(values) > 1 else 0.0
        axes.plot(values, [row] * len(values), "o", color=QUIET, alpha=0.45, markersize=5, markeredgewidth=0)
        axes.errorbar(
            spread.mean().item(), row, xerr=deviation, fmt="o", color=ACCENT, markersize=7, capsize=3, linewidth=1.6
        )
        axes.annotate(
            f"{spread.mean().item():.3f}", (spread.mean().item(), row), (0, 8), textcoords="offset points",
            ha="center", fontsize=8.5, color=INK,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.set_xlabel(score, color=INK)
    axes.set_title(title, loc="left", fontsize=11, color=INK, weight="bold")
    axes.grid(axis="x", color="#e6e8ee")
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, facecolor="white", metadata={"Software": None})
