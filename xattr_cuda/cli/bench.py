"""`xattr-cuda bench`: what a training step with a prior costs against the same step without one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape

from ..training.errors import UserError
from ._console import make_folder, progress_bar, save_json, show_saved
from .tune import tune_kernels

if TYPE_CHECKING:
    from ..bench.measure import Measurement
    from ..bench.scaling import Point

COLUMNS = 100


def bench(
    case: Annotated[
        list[str] | None,
        typer.Option(help="A case or a group of them; may repeat. By default quick.", show_default=False),
    ] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="Name cases and contestants, and stop.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Time compiled steps too; compiling takes long.")] = False,
    sampled: Annotated[bool, typer.Option("--sampled", help="Time EG and IG priors too.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="All contestants: --compile and --sampled.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Peaks of allocated and of resident memory.")] = False,
    count: Annotated[bool, typer.Option("--count", help="FLOPs, bytes, launches; also as on a GPU.")] = False,
    scaling: Annotated[bool, typer.Option("--scaling", help="Growth with batch, width, depth, classes.")] = False,
    overhead: Annotated[bool, typer.Option("--overhead", help="What a step costs beside its kernels.")] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Find the fastest GPU kernels for the cases; keep them.")
    ] = False,
    rounds: Annotated[
        int | None, typer.Option(help="Rounds of every case; else by its size.", min=1, show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; else PyTorch's own number.", min=1, show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for bench.json, bench.md and charts.", show_default=False)
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(help="Markdown file with marked tables to renew.", show_default=False)
    ] = None,
) -> None:
    """Time training steps with a prior against plain ones, in turn.

    Contestants take turns in one process, on the same model and batch; the
    figures are ratios of medians. Before timing, the gradients of everyone
    are compared with eager autograd in float64; where they disagree nothing
    is reported and the exit code is 1.

    With --tune nothing else is measured: the GPU kernels of these cases are
    timed in several configurations, and the fastest are used from then on.

    Example: [bold]xattr-cuda bench[/bold]  (three cases, under a minute)

    Example: [bold]xattr-cuda bench --case image-10 --sampled --count[/bold]

    Example: [bold]xattr-cuda bench --case all --memory --output bench[/bold]
    """
    from ..bench import overhead as beside
    from ..bench import run
    from ..bench import scaling as growth
    from ..bench.cases import chosen
    from ..bench.check import WrongGradientsError

    console = _console()
    if list_cases:
        _list(console)
        return
    cases = chosen(case or ["quick"])
    if tune:
        tune_kernels(console, cases)
        return
    _prepare(output, readme, scaling)
    if threads is not None:
        torch.set_num_threads(threads)
    threads = torch.get_num_threads()
    with progress_bar(console) as bar:
        task = bar.add_task("", total=None)

        def tell(words: str, done: int, total: int) -> None:
            bar.update(task, description=words, completed=done, total=total)

        try:
            who = run.groups(compiled, sampled, everything)
            measured = run.run(cases, who, rounds, threads, count, memory, tell)
            points = growth.scale(rounds, tell) if scaling else []
            small = beside.measure(rounds) if overhead else None
        except WrongGradientsError as error:
            bar.stop()
            typer.echo(f"xattr-cuda: {error}", err=True)
            raise typer.Exit(1) from None
    _show(console, measured)
    if small is not None:
        console.print(beside.words(small), highlight=False)
    if output is not None:
        _save(console, output, measured, points, small)
    elif points:
        _show_points(console, points)
    if readme is not None:
        _renew(console, readme, measured, points, small)


def _console() -> Console:
    """A terminal's own width up to 100 columns; 100 where the output is no terminal."""
    console = Console()
    console.width = min(console.width, COLUMNS) if console.is_terminal else COLUMNS
    return console


def _list(console: Console) -> None:
    from ..bench.cases import CASES, GROUPS, Case
    from ..bench.contestants import CONTESTANTS

    console.print("[bold]Cases[/bold]")
    for name, case in CASES.items():
        batch = f", batch {case.batch}" if isinstance(case, Case) else ""
        console.print(f"  {name}: {case.title}{batch}", highlight=False, markup=False)
    console.print("[bold]Groups[/bold]")
    for name, members in GROUPS.items():
        console.print(f"  {name}: {', '.join(members) if name != 'all' else 'every case'}", highlight=False)
    console.print("[bold]Contestants[/bold]")
    option = {"compiled": " (--compile)", "sampled": " (--sampled)"}
    for name, one in CONTESTANTS.items():
        console.print(f"  {name}: {one.words}{option.get(one.group, '')}", highlight=False, markup=False)


def _prepare(output: Path | None, readme: Path | None, scaling: bool) -> None:
    """Refuse before the work what would fail after it."""
    from .. import extras
    from ..bench import markers, report

    if output is not None:
        make_folder(output)
    if readme is not None:
        markers.require(_read(readme), list(report.BLOCKS), str(readme))
        make_folder(readme.parent / "docs")
    if output is not None or readme is not None:
        extras.load("matplotlib")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _show(console: Console, measured: "list[Measurement]") -> None:
    from ..bench import report

    console.print(report.terminal_table(measured))
    console.print(escape(report.machine_line()), highlight=False)
    for line in report.remarks(measured):
        console.print(escape(line), highlight=False)
    if any(result.more for m in measured for result in m.results.values()):
        console.print(
            "memory: peak of what PyTorch allocated; RSS: rise of the resident set, both in a process of its own; "
            "ops: operators that compute or copy.",
            highlight=False,
        )
    if any(m.on_gpu for m in measured):
        console.print(report.on_gpu_table(measured))
        console.print(escape(report.ON_GPU_WORDS), highlight=False)


def _show_points(console: Console, points: "list[Point]") -> None:
    for point in points:
        ratios = ", ".join(f"{n} {r.ratio:.2f}x" for n, r in point.results.items() if r.ratio and n != "plain")
        console.print(f"{point.axis} {point.value}: {ratios}", highlight=False)


def _charts(folder: Path, names: tuple[str, str], measured: "list[Measurement]", points: "list[Point]") -> list[str]:
    """Write the charts of what was measured; their names."""
    from ..bench import charts
    from ..bench.cases import Case

    made = []
    if any(isinstance(m.case, Case) for m in measured):
        charts.save_bars(measured, folder / names[0])
        made.append(names[0])
    if points:
        charts.save_scaling(points, folder / names[1])
        made.append(names[1])
    return made


def _save(
    console: Console,
    folder: Path,
    measured: "list[Measurement]",
    points: "list[Point]",
    overhead: dict[str, float] | None,
) -> None:
    from ..bench import report

    save_json(report.content(measured, points, overhead), folder / "bench.json")
    (folder / "bench.md").write_text(report.markdown(measured), encoding="utf-8")
    made = _charts(folder, ("bench.png", "scaling.png"), measured, points)
    show_saved(console, folder, ["bench.json", "bench.md", *made])


def _renew(
    console: Console,
    readme: Path,
    measured: "list[Measurement]",
    points: "list[Point]",
    overhead: dict[str, float] | None,
) -> None:
    """Rewrite the blocks of which everything was measured; charts only with them, so that both are of one run."""
    from ..bench import markers, report

    new = report.readme_blocks(measured, [], overhead)
    if "machine" in new:
        made = _charts(readme.parent / "docs", ("steps.png", "scaling.png"), measured, points)
        new = report.readme_blocks(measured, [f"docs/{name}" for name in made], overhead)
    readme.write_text(markers.rewrite(_read(readme), new, str(readme)), encoding="utf-8")
    kept = [name for name in report.BLOCKS if name not in new]
    console.print(f"Renewed in {readme}: {', '.join(new) or 'nothing'}", highlight=False, soft_wrap=True)
    if kept:
        words = "measure all their cases for that: --case all --count --overhead"
        console.print(f"Left as they were: {', '.join(kept)} ({words})", highlight=False, soft_wrap=True)
