"""The pictures: ratios as bars, and the growth of a step as lines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import extras
from ..training.figures import INK, QUIET, new_figure
from .cases import Case
from .measure import Measurement
from .scaling import NAMES, Point

COLOURS = ("#5b8c5a", "#7a5195", "#00838f", "#b07aa1", "#4e79a7", "#9c755f", "#d37295", "#6b6ecf", "#bcbd22")
_BY_NAME = {"plain": QUIET, "double backward": "#c9a227", "attribute": "#c1442e", "attribute_loss": "#2f6f9f"}


def _colours(names: Sequence[str]) -> dict[str, str]:
    """One colour a name; the four that always take part keep theirs."""
    rest = iter([c for c in COLOURS if c not in _BY_NAME.values()] * len(names))
    return {name: _BY_NAME.get(name) or next(rest) for name in names}


def _bare(axes: Any) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def save_bars(measured: Sequence[Measurement], path: Path) -> None:
    """Write a PNG: a group of bars a case, the ratio of every contestant to the plain step, a mark where that is 1.

    Thin lines are the 20th and 80th percentile over the rounds. Raises OSError where it cannot be written,
    MissingPackageError where matplotlib is missing.
    """
    cases = [m for m in measured if isinstance(m.case, Case)]
    names = [n for n in dict.fromkeys(n for m in cases for n in m.results) if n != "plain"]
    colours, height = _colours(names), 0.8 / max(1, len(names))
    figure = new_figure(8.0, 1.5 + len(cases) * (0.25 + 0.16 * len(names)))
    axes = figure.add_subplot()
    for k, name in enumerate(names):
        for row, m in enumerate(cases):
            result = m.results.get(name)
            y = row - 0.4 + (k + 0.5) * height
            if result is not None and result.failed is not None:
                axes.annotate(f"{name} failed", (0, y), (3, 0), textcoords="offset points", va="center", fontsize=7)
            if result is None or result.ratio is None or result.ratios is None:
                continue
            axes.barh(y, result.ratio, height * 0.9, color=colours[name], label=name)
            axes.plot(result.ratios[::2], [y, y], color=INK, linewidth=0.8)
            right = max(result.ratio, result.ratios.p80)
            axes.annotate(
                f"{result.ratio:.2f}",
                (right, y),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                color=INK,
            )
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(cases)), [f"{m.case.name}" for m in cases])
    axes.set_ylim(len(cases) - 0.45, -0.55)
    axes.set_xlim(left=0)
    axes.set_xlabel("time of a training step over the plain step (dotted: plain)", color=INK, fontsize=9)
    axes.grid(axis="x", color="#e6e8ee")
    _bare(axes)
    _legend(figure, axes)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.45 / figure.get_figheight()))
    figure.savefig(path, facecolor="white", metadata={"Software": None})


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="upper center", ncols=min(5, len(once)), frameon=False, fontsize=8)


def save_scaling(points: Sequence[Point], path: Path) -> None:
    """Write a PNG of four panels: milliseconds of a step over batch, width, depth and classes, logarithmic axes."""
    axes_names = list(dict.fromkeys(p.axis for p in points))
    figure = new_figure(8.0, 6.0)
    axes: Any = None
    for k, axis in enumerate(axes_names):
        axes = figure.add_subplot(2, 2, k + 1)
        here = [p for p in points if p.axis == axis]
        for name in NAMES:
            seconds = [p.results[name].seconds for p in here]
            middle = [s.p50 * 1e3 for s in seconds if s is not None]
            axes.plot([p.value for p in here], middle, "o-", color=_BY_NAME[name], label=name, markersize=3.5)
        axes.set_xscale("log", base=2 if axis != "classes" else 10)
        axes.set_yscale("log")
        axes.set_xticks([p.value for p in here], [str(p.value) for p in here])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(axis, color=INK, fontsize=9)
        axes.set_ylabel("milliseconds a step", color=INK, fontsize=9)
        ticker = extras.load("matplotlib.ticker")
        axes.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.grid(color="#e6e8ee")
        _bare(axes)
    if axes is not None:
        _legend(figure, axes)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(path, facecolor="white", metadata={"Software": None})
