"""What was measured as a table of the terminal, as Markdown and as JSON."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from .. import ops
from .._version import __version__
from .cases import GROUPS, Case, GiniCase
from .measure import Measurement, Result
from .on_gpu import BY_LAYER, OnGpu
from .overhead import words as words_of_overhead
from .scaling import Point, to_json

BLOCKS = ("machine", "perceptrons", "convolutional", "operations", "launches", "gini", "overhead", "charts")
CHARTS = {"steps.png": "Time of a training step over the plain step", "scaling.png": "Time of a step as networks grow"}


def processor() -> str:
    """The model name of the processor, in the system's words."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Everything that decides a figure; no date and no name of a host."""
    return {
        "processor": processor(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "xattr_cuda": __version__,
        "back end": "C++ kernels" if ops.extension else "reference",
    }


def machine_line() -> str:
    """The same as a sentence."""
    m = machine()
    return (
        f"{m['processor']} ({m['vector instructions']}), threads: {m['threads']}; PyTorch {m['torch']}; "
        f"xattr_cuda {m['xattr_cuda']}, {m['back end']}."
    )


def times(value: float | None) -> str:
    """A ratio as a table shows it."""
    return "-" if value is None else f"{value:.2f}x"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def terminal_table(measured: Sequence[Measurement]) -> Table:
    """A row a contestant, in at most 100 columns; what was not measured has no column."""
    table = Table(
        title="Ratios to the first contestant of each case; steps with an L1 prior, fp32",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("case", no_wrap=True)
    table.add_column("contestant")
    for name in ("median", "ratio", "p20-p80"):
        table.add_column(name, justify="right", no_wrap=True)
    extra = [key for key in _EXTRA if any(key in r.more for m in measured for r in m.results.values())]
    for key in extra:
        table.add_column(_EXTRA[key], justify="right", no_wrap=True)
    for m in measured:
        for i, (name, result) in enumerate(m.results.items()):
            first = m.case.name if i == 0 else ""
            if result.seconds is None or result.ratios is None:
                table.add_row(first, name, "[red]failed[/red]")
                continue
            spread = f"{result.ratios.p20:.2f}-{result.ratios.p80:.2f}"
            more = [_shown(key, result) for key in extra]
            table.add_row(first, name, _seconds(result.seconds.p50), times(result.ratio), spread, *more)
        table.add_section()
    return table


def remarks(measured: Sequence[Measurement]) -> list[str]:
    """Lines below the table: why contestants failed, the least FLOPs of a case, and what could not be measured."""
    lines = []
    for m in measured:
        lines += [f"{m.case.name}, {name}: {r.failed}" for name, r in m.results.items() if r.failed]
        if m.floors:
            words = ", ".join(f"{name} {times(value)}" for name, value in m.floors.items())
            lines.append(f"{m.case.name}: least FLOPs over plain: {words}")
        lines += m.remarks
    return lines


_EXTRA = {  # what may have been measured beside time: the column's head
    "peak ratio": "memory",
    "resident ratio": "RSS",
    "flops ratio": "FLOPs",
    "bytes ratio": "bytes",
    "launches": "ops",
}


def _shown(key: str, result: Result) -> str:
    value = result.more.get(key)
    return f"{value:.0f}" if key == "launches" and value is not None else times(value)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratio_table(measured: Sequence[Measurement], key: str | None = None) -> str:
    """A row a case, a column a contestant that took part: ratios of time or, with a key, of what else was measured."""
    names = [n for n in dict.fromkeys(n for m in measured for n in m.results) if n != "plain"]
    if key is not None:
        names = [n for n in names if any(n in m.results and key in m.results[n].more for m in measured)]
    rows = []
    for m in measured:
        assert isinstance(m.case, Case)
        cells = []
        for name in names:
            result = m.results.get(name, Result())
            cells.append(_cell(result.failed) or times(result.ratio if key is None else result.more.get(key)))
        rows.append([m.case.title, str(m.case.batch), *cells])
    heads = [f"`{n}`" if n.startswith("attribute") else n for n in names]
    return markdown_table(["network", "batch", *heads], rows)


def _cell(words: str | None) -> str:
    return (words or "").replace("|", "/")


def _has(measured: Sequence[Measurement], key: str) -> bool:
    return any(key in r.more for m in measured for r in m.results.values())


def tables(measured: Sequence[Measurement]) -> str:
    """Time and, where measured, memory of these cases, over the plain step."""
    parts = ["Time:", _ratio_table(measured)]
    for key, words in (("peak ratio", "Peak of allocated memory:"), ("resident ratio", "Peak of resident memory:")):
        if _has(measured, key):
            parts += [words, _ratio_table(measured, key)]
    return "\n\n".join(parts if len(parts) > 2 else parts[1:])


def operations(measured: Sequence[Measurement]) -> str:
    """FLOPs beside their floor, bytes and launches of `attribute` and `attribute_loss`; cases that were counted."""
    rows = []
    for m in measured:
        plain, ours, loss = (m.results[n].more for n in ("plain", "attribute", "attribute_loss"))
        if "flops" not in plain or "flops" not in ours or "flops" not in loss:
            continue
        one, two = times(m.floors["one chain"]), times(m.floors["two chains"])
        assert isinstance(m.case, Case)
        own = one if m.case.chains == 1 else two
        row = [f"{times(ours['flops ratio'])} ({own})", f"{times(loss['flops ratio'])} ({one})"]
        row += [times(ours["bytes ratio"]), times(loss["bytes ratio"])]
        row.append(" / ".join(f"{one['launches']:.0f}" for one in (plain, ours, loss)))
        rows.append([m.case.name, *row])
    heads = [
        *("case", "FLOPs of `attribute` (floor)", "of `attribute_loss` (floor)"),
        *("bytes of `attribute`", "of `attribute_loss`", "launches: plain / each"),
    ]
    return markdown_table(heads, rows)


_ON_GPU = (  # the heads of what is counted for a GPU, two lines each
    *("\ncase", "\ntype", "\nsweeps", "\nlaunches", "eager\nlaunches", "\nMB"),
    *("over\nfloor", "by\nlayer", "with\nlib.", "\neager", "\nFLOPs"),
)
ON_GPU_WORDS = (
    "launches: of the network / of the whole step, with criterion and prior. MB: moved by the network; over floor: "
    "over the least layer by layer; by layer: likewise with every layer on the package's own kernels; with lib.: that "
    "over the least of convolutions out of which nothing else comes; eager: double backward. FLOPs: over the least."
)


def _on_gpu_rows(measured: Sequence[Measurement]) -> list[list[str]]:
    """A row a case and dtype, of what was counted for a GPU."""

    def row(name: str, one: OnGpu) -> list[str]:
        launches = [f"{one.network[w].launches}/{one.step[w].launches}" for w in ("attribute", "double backward")]
        ratios: list[float | None] = [one.over_least("attribute"), one.over_least(BY_LAYER), one.over_library(BY_LAYER)]
        ratios += [one.over_least("double backward"), one.over_flops("attribute")]
        moved = f"{one.network['attribute'].bytes / 1e6:#.4g}"
        return [name, one.dtype, "whole" if one.whole else "layers", *launches, moved, *map(times, ratios)]

    return [row(m.case.name, one) for m in measured for one in m.on_gpu]


def on_gpu_table(measured: Sequence[Measurement]) -> Table:
    """What was counted for a GPU, in at most 80 columns."""
    title = "A step on a GPU, counted without one"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for i, head in enumerate(_ON_GPU):
        table.add_column(head, justify="left" if i < 3 else "right", no_wrap=True)
    for row in _on_gpu_rows(measured):
        table.add_row(*row)
    return table


def on_gpu_markdown(measured: Sequence[Measurement]) -> str:
    """The same in Markdown."""
    heads = [
        *("case", "dtype", "sweeps", "launches", "of double backward", "MB", "over floor", "by layer"),
        *("by layer, of a library's", "double backward", "FLOPs"),
    ]
    return markdown_table(heads, _on_gpu_rows(measured))


def gini_table(measured: Sequence[Measurement]) -> str:
    """The Gini coefficient with its gradient over one sort."""
    rows = []
    for m in measured:
        assert isinstance(m.case, GiniCase)
        cells = [_cell(r.failed) or times(r.ratio) for name, r in m.results.items() if name != "torch.sort"]
        rows.append([str(m.case.n), *cells])
    return markdown_table(["numbers", "`gini` over torch.sort", "pairwise form over torch.sort"], rows)


def _steps(measured: Sequence[Measurement]) -> list[Measurement]:
    return [m for m in measured if isinstance(m.case, Case)]


def readme_blocks(
    measured: Sequence[Measurement], charts: Sequence[str], overhead: dict[str, float] | None = None
) -> dict[str, str]:
    """The contents of the README's blocks, by name, of which every case was measured; `charts`: their paths there."""
    by_name = {m.case.name: m for m in measured}
    found = {}
    for group in ("perceptrons", "convolutional"):
        if all(name in by_name for name in GROUPS[group]):
            found[group] = tables([by_name[name] for name in GROUPS[group]])
    if len(found) == 2:
        found["machine"] = machine_line()
        steps = _steps(measured)
        if all("flops" in m.results["plain"].more for m in steps):
            found["operations"] = operations(steps)
        if all(m.on_gpu for m in steps):
            found["launches"] = on_gpu_markdown(steps)
        if all(name in by_name for name in GROUPS["gini"]):
            found["gini"] = gini_table([by_name[name] for name in GROUPS["gini"]])
        if overhead is not None:
            found["overhead"] = words_of_overhead(overhead)
    if charts:
        found["charts"] = "\n\n".join(f"![{CHARTS[Path(path).name]}]({path})" for path in charts)
    return found


def markdown(measured: Sequence[Measurement]) -> str:
    """The whole report."""
    parts = ["# Benchmark", "Training step with an L1 prior (fp32), ratios to the plain step.", machine_line()]
    steps, gini = _steps(measured), [m for m in measured if isinstance(m.case, GiniCase)]
    if steps:
        parts += ["## Steps", tables(steps)]
        if any("flops" in m.results["plain"].more for m in steps):
            parts += ["## Operations", operations(steps)]
        if any(m.on_gpu for m in steps):
            parts += ["## A step on a GPU, counted without one", on_gpu_markdown(steps), ON_GPU_WORDS]
    if gini:
        parts += ["## Gini coefficient", gini_table(gini)]
    return "\n\n".join(parts) + "\n"


def content(
    measured: Sequence[Measurement], points: Sequence[Point] = (), overhead: dict[str, float] | None = None
) -> dict[str, Any]:
    """What `bench.json` holds."""
    return {
        "machine": machine(),
        "cases": {m.case.name: m.to_json() for m in measured},
        "scaling": to_json(list(points)),
        "overhead": overhead,
    }
