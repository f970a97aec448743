"""`xattr-cuda demo`: a prior that takes a network's eyes off a decoy, in under a minute."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from ..training import join
from ._console import make_folder, progress_bar, save_json, show_saved

if TYPE_CHECKING:
    from ..training.demo import DemoResult


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the table, the picture and the weights.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Draws the data, the weights and the order.", min=0, max=2**32 - 1)] = 0,
    epochs: Annotated[int, typer.Option(help="Passes over the 1,197 training images.", min=1)] = 20,
    strength: Annotated[float, typer.Option(help="Factor of the prior, 0 or more.")] = 30.0,
) -> None:
    """Teach a network to ignore a decoy, by a prior on its attribution.

    Handwritten digits carry a patch in one corner. In training its
    brightness gives the label away, in testing it misleads. The demo trains
    one network without and one with the prior that attribution should vanish
    in the corners, then shows test accuracy, the share of attribution left on
    the corners, and what a training step costs against plain training and
    against PyTorch's double backward.

    Under torchrun its processes train each network together, every one on its
    share of each batch, in an order of their own.

    Example: [bold]xattr-cuda demo --output demo --seed 1[/bold]
    """
    from .. import extras
    from ..training import demo as experiment
    from ..training import figures

    settings = experiment.DemoSettings(seed=seed, epochs=epochs, strength=strength)
    extras.load("matplotlib")  # before the work, not after it
    with join("cpu") as processes:
        folder, console = make_folder(output), Console(quiet=not processes.first)
        with progress_bar(console) as bar:
            result = experiment.run(settings, bar, processes)
            if result is None:
                return
            figures.save_attributions(result, folder / "attributions.png")
        save_json(result.to_json(), folder / "results.json")
        for name, network in result.networks.items():
            torch.save(network.state_dict(), folder / f"{name}.pt")
        _show(console, result)
        show_saved(console, folder, ["results.json", "attributions.png", "plain.pt", "prior.pt"])


def _show(console: Console, result: "DemoResult") -> None:
    table = Table(title="Decoy digits: 600 test images", title_justify="left")
    table.add_column("")
    table.add_column("without prior", justify="right")
    table.add_column("with prior", justify="right")
    plain, prior = result.plain, result.prior
    table.add_row("test accuracy", f"{plain.accuracy:.1%}", f"[bold]{prior.accuracy:.1%}[/bold]")
    table.add_row("|attribution| on the corners", f"{plain.corner_share:.1%}", f"[bold]{prior.corner_share:.1%}[/bold]")
    console.print(table)
    steps = Table(title="One training step", title_justify="left")
    for name in ("", "median", "ratio to plain"):
        steps.add_column(name, justify="right" if name else "left")
    for name, seconds in result.step_seconds.items():
        steps.add_row(name, f"{1e3 * seconds:.2f} ms", f"{result.ratios()[name]:.2f}")
    console.print(steps)
    console.print(
        f"{result.settings.timing_rounds} steps of each kind in turn; batch {result.settings.batch}; "
        f"CPU threads: {result.threads}; back end: {result.backend}.",
        highlight=False,
    )
    if result.backend_remark:
        console.print(f"Why not a faster back end: {result.backend_remark}.", highlight=False)
