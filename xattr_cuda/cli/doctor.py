"""`xattr-cuda doctor`: what is installed, what works here, and what to do about the rest."""

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..ops import gpu

COLOURS = {"works": "green", "not here": "yellow", "wrong": "red"}


def doctor() -> None:
    """Show versions, what was built, and which back ends work here.

    Every back end is proved: its operators and a training step are run and
    compared with the float64 reference. The exit code is 0 unless a back end
    that should work gives wrong results; then it is 1.

    Example: [bold]xattr-cuda doctor[/bold]
    """
    from . import health

    console = Console()
    facts = Table(title="Installation", title_justify="left", show_header=False)
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in {**health.versions(), **health.build()}.items():
        facts.add_row(escape(name), escape(value))
    facts.add_row("CPU threads", str(torch.get_num_threads()))
    facts.add_row("tuning of GPU kernels", escape(gpu.tuning()))
    console.print(facts)
    found = health.backends()
    table = Table(title="Back ends", title_justify="left")
    table.add_column("back end", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("what was found, and what to do", overflow="fold")
    for backend in found:
        colour = COLOURS[backend.state]
        table.add_row(backend.name, f"[{colour}]{backend.state}[/{colour}]", escape(backend.words))
    console.print(table)
    served = Table(title="Operators: the back end that serves them", title_justify="left")
    for column in ("operator", "on the CPU", "on the GPU"):
        served.add_column(column, no_wrap=True)
    for name, where in health.operators().items():
        served.add_row(name, *where)
    console.print(served)
    if any(backend.state == "wrong" for backend in found):
        raise typer.Exit(1)
