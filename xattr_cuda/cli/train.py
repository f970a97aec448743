"""`xattr-cuda train`: attribution priors compared on a table with a binary label."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table as Grid

from ..training import Processes, join
from ..training.errors import UserError
from ._console import make_folder, progress_bar, save_json, show_saved

if TYPE_CHECKING:
    from ..training.protocol import Comparison, Settings
    from ..training.tabular import Table

DATASETS = ("nhefs",)
DEFAULT_METHODS = ["xgradient", "none"]


def train(
    csv: Annotated[Path | None, typer.Argument(help="A CSV file with a header line.", show_default=False)] = None,
    label: Annotated[str | None, typer.Option(help="Column with the binary label.", show_default=False)] = None,
    positive: Annotated[
        str | None, typer.Option(help="Label value to predict; else the greater one.", show_default=False)
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Column to leave out; may repeat.", show_default=False)] = None,
    dataset: Annotated[
        str | None, typer.Option(help="In place of a file: nhefs, 1,629 smokers.", show_default=False)
    ] = None,
    prior: Annotated[str, typer.Option(help="gini, l1 or l2.")] = "gini",
    strength: Annotated[
        str, typer.Option(help="Factor of the prior; of several, as in 0.1,1,10, validation picks one a method.")
    ] = "0.3",
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="xgradient, eg, ig, gradient, none, or all; may repeat. By default xgradient and none.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Gradients a row for eg and ig.", min=1)] = 1,
    no_bias: Annotated[bool, typer.Option("--no-bias", help="The bias-free network for every method.")] = False,
    hidden: Annotated[str, typer.Option(help="Widths of the hidden layers.")] = "512,128,32",
    epochs: Annotated[int, typer.Option(help="Full-batch steps.", min=1)] = 100,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    seeds: Annotated[int, typer.Option(help="Number of random splits.", min=1)] = 10,
    train_rows: Annotated[
        int | None, typer.Option(help="Training rows: 100 for nhefs, else 60 %.", min=2, show_default=False)
    ] = None,
    validation_rows: Annotated[
        int | None, typer.Option(help="Validation rows: 100 for nhefs, else 20 %.", min=2, show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for results.json, the chart and runs/.")] = Path("train"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what --output holds in runs/.")] = False,
) -> None:
    """Compare attribution priors on a table with a binary label.

    Follows the protocol of Hesse et al. 2021: random splits, imputation and
    scaling fitted on the training rows, Adam on full batches, the epoch with
    the best validation ROC-AUC kept, and the ROC-AUC of the rows that are left
    reported. Text columns are coded one-hot.

    xgradient trains a bias-free network by sweeps. eg (Expected Gradients),
    ig (Integrated Gradients) and gradient train one with biases by double
    backward. none has no prior.

    What is trained is kept in the output folder, in runs/. After Ctrl-C,
    SIGTERM or worse, the same command with --resume skips it and goes on
    where it stopped, to the same figures; it may ask for more methods,
    strengths and seeds. Under torchrun the networks are shared out among its
    processes, each of which trains its own alone.

    Example: [bold]xattr-cuda train --dataset nhefs --method all[/bold]

    Example: [bold]xattr-cuda train data.csv --label outcome --prior l1[/bold]
    """
    from ..training import protocol

    settings = protocol.Settings(
        prior=prior,
        strengths=_numbers("strength", strength, float),
        epochs=epochs,
        learning_rate=learning_rate,
        hidden=_numbers("hidden", hidden, int),
        samples=samples,
        no_bias=no_bias,
    )
    methods = _methods(method)
    table = _load(csv, label, drop or [], positive, dataset)
    with join("cpu") as processes:
        _run(table, (train_rows, validation_rows), methods, settings, seeds, output, resume, processes)


def _run(
    table: "Table",
    asked: tuple[int | None, int | None],
    methods: list[str],
    settings: "Settings",
    seeds: int,
    output: Path,
    resume: bool,
    processes: Processes,
) -> None:
    """Train and show; `asked` are the rows of training and of validation, None for the default."""
    from .. import extras
    from ..training import protocol, tabular
    from ..training.distributed import Talk
    from ..training.runs import Runs

    sizes = [rows or default for rows, default in zip(asked, tabular.default_sizes(table), strict=True)]
    extras.load("matplotlib")  # before the work, not after it
    tabular.split(table, 0, *sizes)  # a split that cannot be made is refused before anything is trained
    folder, console = make_folder(output), Console(quiet=not processes.first)
    _introduce(console, table, sizes)
    identity = _identity(table, settings, sizes)
    share = len(protocol.jobs(methods, settings, seeds)[:: processes.world])  # of the first process
    with Talk(processes) as talk, progress_bar(console) as bar:
        task = bar.add_task("Networks", total=share)

        def advance() -> None:
            bar.advance(task)
            for finished in bar.task_ids[1:]:
                bar.remove_task(finished)

        runs = Runs(folder / "runs", identity, resume=resume, processes=processes, talk=talk)
        results = protocol.compare(
            lambda seed: tabular.split(table, seed, *sizes),
            methods,
            settings,
            seeds,
            advance,
            runs=runs,
            processes=processes,
            talk=talk,
            progress=bar,
        )
    if processes.first:
        _save(folder, table, settings, sizes, results)
        _show(console, settings, results)
        show_saved(console, folder, ["results.json", "comparison.png", "runs/"])


def _identity(table: "Table", settings: "Settings", sizes: Sequence[int]) -> dict[str, Any]:
    """What the outcome of every network depends on, besides its method, strength and seed."""
    data = hashlib.sha256(table.features.tobytes() + table.labels.tobytes()).hexdigest()
    shared = {name: value for name, value in asdict(settings).items() if name != "strengths"}
    return {"data": data, "train rows": sizes[0], "validation rows": sizes[1], **shared}


def _numbers(option: str, text: str, kind: type[Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        words = "whole numbers" if kind is int else "numbers"
        raise UserError(f"--{option} is {text!r}; wanted {words} with commas between them") from None


def _methods(asked: Sequence[str] | None) -> list[str]:
    from ..training.methods import METHODS

    for name in asked or []:
        if name not in (*METHODS, "all"):
            raise UserError(f"there is no method {name!r}; choose among {', '.join(METHODS)} or all")
    if asked and "all" in asked:
        return list(METHODS)
    return list(dict.fromkeys(asked or DEFAULT_METHODS))


def _load(
    csv: Path | None, label: str | None, drop: Sequence[str], positive: str | None, dataset: str | None
) -> "Table":
    from ..training import tabular

    if dataset is not None:
        if dataset not in DATASETS:
            raise UserError(f"there is no data set {dataset!r}; choose {', '.join(DATASETS)}, or give a CSV file")
        if csv is not None or label is not None or drop or positive is not None:
            raise UserError(
                "--dataset brings its own file and label; leave out the file, --label, --positive and --drop"
            )
        return tabular.load_nhefs()
    if csv is None:
        raise UserError("give a CSV file and its --label, or --dataset nhefs")
    if label is None:
        raise UserError(f"say which column of {csv} is the label: --label COLUMN")
    return tabular.load_csv(csv, label, drop, positive)


def _test_rows(table: "Table", sizes: Sequence[int]) -> int:
    return len(table.labels) - sum(sizes)


def _introduce(console: Console, table: "Table", sizes: Sequence[int]) -> None:
    share = table.labels.mean()
    console.print(
        f"{table.name}: {len(table.labels)} rows, {len(table.columns)} features after coding; predicting "
        f"{table.label} = {table.positive} ({share:.0%} of rows) against {table.negative}.\n"
        f"Each split: {sizes[0]} rows to train, {sizes[1]} to validate, {_test_rows(table, sizes)} to test.",
        highlight=False,
        markup=False,
    )


def _save(
    folder: Path, table: "Table", settings: "Settings", sizes: Sequence[int], results: "Sequence[Comparison]"
) -> None:
    from ..training import figures, protocol

    rows = dict(zip(("train", "validation", "test"), (*sizes, _test_rows(table, sizes)), strict=True))
    data = {"name": table.name, "features": len(table.columns), "label": table.label, "positive": table.positive}
    content = {
        "data": {**data, "rows": rows},
        "settings": asdict(settings),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "results": protocol.to_json(list(results)),
    }
    save_json(content, folder / "results.json")
    splits = len(results[0].outcomes)
    figures.save_comparison(
        [result.method for result in results],
        [result.values("test_auc") for result in results],
        score="test ROC-AUC: dots are splits, bars mean and standard deviation",
        title=f"{table.name}: {settings.prior} prior, {splits} random splits",
        path=folder / "comparison.png",
    )


def _show(console: Console, settings: "Settings", results: "Sequence[Comparison]") -> None:
    splits = len(results[0].outcomes)
    grid = Grid(title=f"{settings.prior} prior, {splits} random splits, mean ± deviation", title_justify="left")
    for name in ("method", "strength", "test ROC-AUC", "Gini of |attr.|", "step, ms"):
        grid.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    best = max(results, key=lambda result: result.spread("test_auc")[0])
    for result in results:
        auc, gini = ("{:.3f} ± {:.3f}".format(*result.spread(field)) for field in ("test_auc", "gini"))
        auc = f"[bold]{auc}[/bold]" if result is best else auc
        strength = "-" if result.method == "none" else f"{result.strength:g}"
        grid.add_row(result.method, strength, auc, gini, f"{1e3 * result.step_seconds:.2f}")
    console.print(grid)
    console.print(
        f"Gini: of the mean |Integrated Gradients| over the test rows. Step: median of interleaved full-batch steps; "
        f"CPU threads: {torch.get_num_threads()}; gradients a row for eg and ig: {settings.samples}.",
        highlight=False,
        markup=False,
    )
