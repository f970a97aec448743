"""`xattr-cuda bench --tune`: the fastest configurations of the GPU kernels on this machine, as a table and a file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..ops import gpu
from ..training.errors import UserError
from ._console import progress_bar

if TYPE_CHECKING:
    from ..bench.cases import Case, GiniCase
    from ..bench.gpu.tune import Found


def tune_kernels(console: Console, cases: "Sequence[Case | GiniCase]") -> None:
    """Tune for the cases, show what was found and put it in force; UserError where no kernel runs."""
    from ..bench.gpu import tune

    if reason := gpu.unavailable():
        raise UserError(f"--tune times kernels on a GPU, and none runs here: {reason}; run it where one does")
    with progress_bar(console) as bar:
        task = bar.add_task("", total=None)

        def tell(words: str, done: int, total: int) -> None:
            bar.update(task, description=words, completed=done, total=total)

        try:
            found, failed = tune.tune(cases, gpu.device(), tell)
        except torch.AcceleratorError as error:
            raise UserError(f"the device failed, and nothing was kept: {error}") from None
    console.print(table(found))
    for line in failed:
        console.print(escape(line), highlight=False)
    path = tune.keep(found)
    console.print(f"Saved in {path}; kernels take it from now on.", highlight=False, soft_wrap=True)


def table(found: "Sequence[Found]") -> Table:
    """A row a request; a gain where another configuration than the table's is faster."""
    shown = Table(
        title="Configurations: the package's, and the fastest here",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in ("operator", "shape", "dtype", "package", "fastest"):
        shown.add_column(name)
    shown.add_column("gain", justify="right", no_wrap=True)
    for one in found:
        request = one.request
        won = one.best != one.table
        words = f"{request.shape} {request.what}".strip()
        gain = f"{one.gain:.2f}x" if won else "-"
        shown.add_row(request.operator, words, request.dtype, str(one.table), str(one.best) if won else "same", gain)
    return shown
