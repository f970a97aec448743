"""When a run is saved, how it is continued, and how it stops."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from .checkpoints import Folder, RefusedError, read
from .distributed import Processes, Talk
from .errors import UserError
from .log import Log, say
from .signals import SIGNALS, Stopped, StopRequests
from .state import Randomness, Trained, differing


@dataclass
class Place:
    """How far a run is: steps of the optimiser in all, whole epochs, and batches of the epoch after them."""

    step: int = 0
    epoch: int = 0
    batch: int = 0


@dataclass
class Saver:
    """The state of one run, which it saves in `folder` and finds there again; with no folder it does nothing.

    identity: what must be the same in a run that continues another. epochs: how many there will be.
    """

    folder: Folder | None
    every: int | timedelta
    epochs: int
    trained: Trained
    random: Randomness
    log: Log
    identity: Mapping[str, Any]
    processes: Processes
    talk: Talk
    requests: StopRequests
    place: Place = field(default_factory=Place)
    resumed: Path | None = None
    saved: Path | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.every, timedelta) and self.every < 1:
            raise ValueError(f"every is {self.every}; wanted at least 1 step, or a timedelta")
        self._saved_place, self._saved_at = Place(step=-1), time.monotonic()
        self._epoch_start: dict[str, Any] = {}

    def start(self, resume: bool) -> None:
        """Continue from the newest sound checkpoint, or see to it that there is none to be overwritten.

        Raises ValueError where the processes were told different things, and would soon wait for each other for ever.
        """
        told = {"checkpoint": self.folder and str(self.folder.path), "resume": resume, "epochs": self.epochs}
        everyone = self.talk.all({**told, **self.identity})
        if problem := next(filter(None, (differing(everyone[0], each) for each in everyone)), None):
            raise ValueError(f"processes differ: {problem}; wanted the same on all of them")
        if self.folder is None:
            return
        found, problem = self.talk.all(self._find(resume) if self.processes.first else (None, None))[0]
        if problem is not None:
            raise UserError(problem)
        if found is None:
            return
        try:
            self._restore(read(found))
        except RefusedError as error:
            raise UserError(f"{found} is refused on process {self.processes.rank}: {error}") from None
        self.resumed = self.saved = found
        self._saved_place = replace(self.place)

    def rest_of_epoch(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of this epoch that are still to come; those before them are drawn again, and dropped."""
        for sampler in (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
            if set_epoch := getattr(sampler, "set_epoch", None):
                set_epoch(self.place.epoch)
        if self.folder is None:
            return iter(loader)
        now = self.random.state()
        if self.place.batch == 0:
            self._epoch_start = now
        else:
            self.random.restore(self._epoch_start)
        with self.requests.for_this_process_alone():
            batches = iter(loader)
        for _ in range(self.place.batch):
            next(batches, None)
        if self.place.batch > 0:
            self.random.restore(now)
        return batches

    def check(self) -> None:
        """Between two steps: save if it is time to, and stop if a signal asked for it, on all processes alike."""
        if self.folder is None:
            return
        done = self.place.epoch >= self.epochs
        asked = [float(self.requests.received is number) for number in SIGNALS]
        due, *stops = self.talk.total([float(self.processes.first and self._due()), *asked])
        received = [number for number, votes in zip(SIGNALS, stops, strict=True) if votes]
        if (due or received or done) and self.place != self._saved_place:
            self._save()
        if received:
            raise Stopped(received[-1], self._farewell(received[-1].name))

    def _due(self) -> bool:
        if isinstance(self.every, timedelta):
            return time.monotonic() - self._saved_at >= self.every.total_seconds()
        return self.place.step % self.every == 0 and self.place.step != self._saved_place.step

    def _farewell(self, name: str) -> str:
        where = f"epoch {min(self.place.epoch + 1, self.epochs)} of {self.epochs}"
        return f"stopped by {name} after step {self.place.step} ({where}); saved {self.saved}; resume to continue"

    def _find(self, resume: bool) -> tuple[Path | None, str | None]:
        """(the checkpoint to continue from, what is wrong)."""
        assert self.folder is not None
        self.folder.tidy()
        if resume:
            try:
                return self.folder.find(self._accept, say), None
            except UserError as error:
                return None, str(error)
        if there := self.folder.checkpoints():
            return None, f"{there[0]} is a checkpoint of an earlier run: resume it, or choose another folder"
        return None, None

    def _accept(self, content: Mapping[str, Any]) -> None:
        if missing := {"identity", "place", "trained", "each"} - content.keys():
            raise RefusedError(f"it lacks {', '.join(sorted(missing))}")
        if difference := differing(content["identity"], self.identity):
            raise RefusedError(f"it is of another run: {difference}")
        self.trained.accept(content["trained"])

    def _save(self) -> None:
        assert self.folder is not None
        mine = {"now": self.random.state(), "epoch start": self._epoch_start, "log": self.log.state()}
        each = self.talk.all(mine)
        trained = self.trained.state()
        if self.processes.first:
            content = {"identity": dict(self.identity), "place": asdict(self.place), "trained": trained, "each": each}
            self.saved = self.folder.save(content, self.place.step)
        (self.saved, *_) = self.talk.all(self.saved)  # nobody goes on, or ends, before it is on disk
        self._saved_place, self._saved_at = replace(self.place), time.monotonic()

    def _restore(self, content: Mapping[str, Any]) -> None:
        mine = content["each"][self.processes.rank]
        self.trained.restore(content["trained"])
        vars(self.place).update(content["place"])
        self.log.restore(mine["log"])
        self._epoch_start = mine["epoch start"]
        self.random.restore(mine["now"])
