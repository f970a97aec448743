"""What was measured, one row a contestant, as a table of the terminal and as JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..report import markdown_table


@dataclass
class Row:
    """One contestant of a case or an operator.

    seconds: median of a call whose launches the host makes; graph_seconds: of one replayed as a CUDA graph; ratio and
    graph_ratio: to the first contestant. share: of the device's measured peak, `of` says which: bandwidth of a copy, or
    matrix products of that dtype. failed: why there are no figures; no_graph: why the graph has none; note: what else
    there is to know.
    """

    kind: str
    case: str
    dtype: str
    contestant: str
    seconds: float | None = None
    ratio: float | None = None
    graph_seconds: float | None = None
    graph_ratio: float | None = None
    share: float | None = None
    of: str = ""
    failed: str = ""
    no_graph: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and words."""
        return asdict(self)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.3f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _share(row: Row) -> str:
    return "-" if row.share is None else f"{row.share:.0%} {row.of}"


def table(rows: Iterable[Row]) -> Table:
    """Every row; ratios are to the first contestant of its case."""
    found = Table(
        title="On the device: medians, and ratios to the first contestant of each case",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in ("case", "dtype", "contestant"):
        found.add_column(name, no_wrap=name != "contestant")
    for name in ("eager", "ratio", "graph", "ratio", "share of peak"):
        found.add_column(name, justify="right", no_wrap=True)
    before: tuple[str, str] | None = None
    for row in rows:
        key = (row.case, row.dtype)
        if before not in (None, key):
            found.add_section()
        first = key if key != before else ("", "")
        before = key
        if row.failed:
            found.add_row(*first, row.contestant, "[red]failed[/red]")
            continue
        graph = "none" if row.no_graph else _time(row.graph_seconds)
        found.add_row(
            *first,
            row.contestant,
            _time(row.seconds),
            _ratio(row.ratio),
            graph,
            _ratio(row.graph_ratio),
            _share(row),
        )
    return found


def remarks(rows: Sequence[Row]) -> list[str]:
    """A line for every row without figures, or without those of a graph, that says why; and all notes."""
    found = []
    for row in rows:
        words = (row.failed, f"no graph: {row.no_graph}" if row.no_graph else "", row.note)
        found += [f"{row.case} {row.dtype}, {row.contestant}: {one}" for one in words if one]
    return found


COMPARED = ("double backward", "attribute", "attribute_loss")
_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def markdown(rows: Iterable[Row], machine: dict[str, Any]) -> str:
    """The steps as a table of ratios to the plain one, replayed as CUDA graphs and launched one by one."""
    by_case: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row.kind == "step":
            by_case.setdefault((row.case, row.dtype), {})[row.contestant] = row
    lines = []
    for (case, dtype), found in by_case.items():
        chosen = [found.get(name) for name in COMPARED]
        if any(one is None or one.graph_ratio is None for one in chosen):
            continue
        cells = [f"{_ratio(one.graph_ratio)} ({_ratio(one.ratio)})" for one in chosen if one is not None]
        lines.append([case, _DTYPES.get(dtype, dtype), *cells])
    where = f"{machine.get('device', 'CPU')}; PyTorch {machine['torch']}, Triton {machine['triton']}."
    return (
        f"{where}\n\n{markdown_table(['case', 'dtype', 'double backward', '`attribute`', '`attribute_loss`'], lines)}"
    )
