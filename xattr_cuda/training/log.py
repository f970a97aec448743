"""What a run shows while it goes on: a bar, lines where there is no terminal, TensorBoard."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .board import Board
from .distributed import Processes, Talk
from .state import Means

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

RATE = "samples/s"


def say(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr, flush=True)


def progress_bar(console: "Console") -> "Progress":
    """A progress bar in words, parts done, time and a run's figures; it vanishes when the work is done."""
    from rich import progress
    from rich.table import Column
    from rich.text import Text

    class Figures(progress.ProgressColumn):
        def render(self, task: progress.Task) -> Text:
            return Text(task.fields.get("figures", ""))

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        Figures(table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=console,
        transient=True,
    )


def in_words(figures: Mapping[str, float]) -> str:
    """As in `loss 0.4321, prior 0.0123, 12,345 samples/s`."""
    return ", ".join(f"{v:,.0f} {name}" if name == RATE else f"{name} {v:.4g}" for name, v in figures.items())


def samples_in(batch: Any) -> int:
    """Rows of the first tensor in a batch, however deep it lies in tuples, lists and dictionaries; 1 without any."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    for part in parts:
        return samples_in(part)
    return 1


class Rate:
    """Samples a second of all processes, since it was made or last taken."""

    def __init__(self) -> None:
        self._samples, self._since = 0, time.perf_counter()

    def add(self, samples: int) -> None:
        """So many more."""
        self._samples += samples

    def take(self, talk: Talk) -> float:
        """The rate; it then starts anew."""
        (samples,) = talk.total([float(self._samples)])
        seconds = time.perf_counter() - self._since
        self._samples, self._since = 0, time.perf_counter()
        return samples / max(seconds, 1e-9)


class Log:
    """The figures of one run: means of its terms over some steps and over epochs, metrics, samples a second.

    They are those of all processes together; the first one shows them.
    """

    def __init__(self, processes: Processes, talk: Talk, every: int) -> None:
        if every < 1:
            raise ValueError(f"log_every is {every}; wanted at least 1 step")
        self.history: list[dict[str, float]] = []
        self._first, self._talk, self._every = processes.first, talk, every
        self._recent, self._epoch = Means(), Means()
        self._bar: Progress | None = None
        self._board: Board | None = None
        self._lines: tuple[str, str] | None = None  # what comes before and after the number of the epoch
        self._shown = ""
        self._metrics: dict[str, float] = {}

    @contextmanager
    def opened(
        self,
        progress: "Progress | bool",
        title: str,
        batches: int | None,
        epochs: int,
        step: int,
        tensorboard: str | Path | None,
    ) -> Iterator[None]:
        """Show the run while the block runs, from `step` on. Without a terminal, `True` stands for a line an epoch.

        Sets `draws`: whether there is a log that takes images.
        """
        self._rates = Rate(), Rate()  # over some steps, and over the epoch
        # Where only the first process was told to show something, all must take part in its figures.
        shown, self.draws = map(bool, self._talk.total([float(progress is not False), float(tensorboard is not None)]))
        self._wanted = shown or self.draws
        with ExitStack() as stack:
            if self._first and tensorboard is not None:
                self._board = Board(tensorboard, step)
                stack.callback(self._board.close)
            if self._first and progress is True:
                from rich.console import Console

                console = Console()
                if step:
                    print(f"{title}: continuing after step {step}", flush=True)
                self._lines = None if console.is_terminal else (f"{title}: epoch ", f" of {epochs}: ")
                progress = stack.enter_context(progress_bar(console)) if console.is_terminal else False
            if self._first and not isinstance(progress, bool):
                self._bar = progress
                self._task = progress.add_task(title, total=batches and batches * epochs, completed=step)
            yield

    def step(self, terms: Mapping[str, Tensor], batch: Any, step: int) -> None:
        """The step with this number is done."""
        self._epoch.add(terms)
        if self._wanted:
            self._recent.add(terms)
            for rate in self._rates:
                rate.add(samples_in(batch))
            if step % self._every == 0:
                means, speed = self._recent.take(self._talk), {RATE: self._rates[0].take(self._talk)}
                self._shown = in_words({**means, **self._metrics, **speed})
                if self._board is not None:
                    self._board.scalars({**means, **speed}, step)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=self._shown)

    def epoch(self, epoch: int, step: int, metrics: float | Mapping[str, float], images: Mapping[str, Tensor]) -> None:
        """So many epochs are done, the last one with these metrics and attributions."""
        self._metrics = dict(metrics) if isinstance(metrics, Mapping) else {"metric": metrics}
        figures = {**self._epoch.take(self._talk), **self._metrics}
        self.history.append(figures)
        if self._board is not None:
            self._board.scalars({f"epoch/{name}": value for name, value in figures.items()}, step)
            self._board.images(images, step)
        if self._wanted:
            rate = self._rates[1].take(self._talk)
            if self._lines is not None:
                print(str(epoch).join(self._lines) + in_words({**figures, RATE: rate}), flush=True)
            self._rates = Rate(), Rate()  # the time that metrics took does not count

    def state(self) -> dict[str, Any]:
        """What this process must remember."""
        return {"recent": self._recent.state(), "epoch": self._epoch.state(), "history": self.history}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._recent.restore(state["recent"])
        self._epoch.restore(state["epoch"])
        self.history[:] = state["history"]
