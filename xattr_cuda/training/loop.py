"""`fit`, the training loop of a long run: it shows what goes on, and continues where it was stopped.

    result = fit(step, model, optimizer, loader, epochs=90, checkpoint="runs/a", resume=True)

`step(batch)` is the caller's: it returns the loss, or its terms by name, and `fit` does the rest.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from . import distributed
from .checkpoints import Folder
from .log import Log
from .saving import Saver
from .signals import StopRequests, announced
from .state import Randomness, Stateful, Trained, generators_of

if TYPE_CHECKING:
    from rich.progress import Progress

Terms = Tensor | Mapping[str, Tensor]
"""A loss [], or the terms whose sum it is, by name: {"loss": ..., "prior": ...}."""


class Schedule(Stateful, Protocol):
    """What moves on with every step of the optimiser: a learning rate's scheduler, `xa.priors.schedule`."""

    def step(self) -> Any:
        """One step further."""


@dataclass(frozen=True)
class FitResult:
    """steps: of the optimiser, in all. history: figures of every epoch: means of the terms over it, and its metrics.

    resumed: the checkpoint that the run was continued from. saved: the last one.
    """

    steps: int
    history: list[dict[str, float]]
    resumed: Path | None
    saved: Path | None


def fit(
    step: Callable[[Any], Terms],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[Any],
    *,
    epochs: int,
    schedules: Sequence[Schedule] = (),
    scaler: torch.amp.GradScaler | None = None,
    metric: Callable[[], float | Mapping[str, float]] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    every: int | timedelta = timedelta(minutes=10),
    keep: int = 3,
    settings: Mapping[str, Any] | None = None,
    also: Mapping[str, Stateful | torch.Generator] | None = None,
    progress: "Progress | bool" = True,
    title: str = "Training",
    tensorboard: str | Path | None = None,
    images: Callable[[], Mapping[str, Tensor]] | None = None,
    log_every: int = 10,
    processes: distributed.Processes | None = None,
) -> FitResult:
    """Train `model` for `epochs` passes over `loader`: for every batch, `step(batch)`, backward, `optimizer.step()`.

    step: from a batch to the loss, or to its terms by name, which are added up and shown apart. loader: any iterable
    that can be iterated once an epoch; where its sampler has a `set_epoch`, that is called. schedules: their `step()`
    is called after every step of the optimiser. metric: called after every epoch.

    checkpoint: a folder in which the run is saved `every` so many steps or so much time, at its end, and when SIGTERM
    or SIGINT asks it to stop: then the step is finished, the run saved, and `Stopped`, a SystemExit, raised. A second
    signal acts at once. The last `keep` checkpoints are kept. resume: continue from the newest sound checkpoint, if
    there is any, in the middle of an epoch too, to the weights of a run that never stopped: bit by bit on a CPU, and
    on a GPU where its kernels are deterministic. The batches of the epoch before that place are drawn again and
    dropped. settings: plain values that say which run this is; a checkpoint with others is refused. also: what else has
    a state, by name: a generator that `step` draws from, an average of the weights.

    progress: False for none, or a bar of the caller's. tensorboard: the folder of a log. images: called after every
    epoch for attributions [N, H, W] or [N, C, H, W] by name, which that log shows in colours. log_every: steps between
    two figures.

    processes: those that run this loop together, by default all of the process group. Each calls `fit` with its share
    of the data and as many batches as the others; `metric` and `images` are called on all. The first one writes and
    shows. The folder of checkpoints must be one that all of them see.
    """
    if resume and checkpoint is None:
        raise ValueError("resume: there is nothing to resume from without a folder, `checkpoint`")
    processes = distributed.current(processes)
    also, batches = dict(also or {}), length(loader)
    parts: dict[str, Stateful] = {"scaler": scaler} if scaler is not None else {}
    parts |= {f"schedule {number}": schedule for number, schedule in enumerate(schedules)}
    parts |= {name: part for name, part in also.items() if not isinstance(part, torch.Generator)}
    random = Randomness([*generators_of(loader), *also.values()])
    identity = {"optimizer": type(optimizer).__name__, "generators": len(random.own)}
    identity |= {"processes": processes.world, "batches an epoch": batches}
    wanted = StopRequests(checkpoint is not None)
    with announced(processes.first), distributed.Talk(processes) as talk, wanted as requests:
        log = Log(processes, talk, log_every)
        saver = Saver(
            folder=Folder(checkpoint, keep) if checkpoint is not None else None,
            every=every,
            epochs=epochs,
            trained=Trained(model, optimizer, parts),
            random=random,
            log=log,
            identity={**identity, **(settings or {})},
            processes=processes,
            talk=talk,
            requests=requests,
        )
        saver.start(resume)
        place = saver.place
        with log.opened(progress, title, batches, epochs, place.step, tensorboard):
            while place.epoch < epochs:
                for batch in saver.rest_of_epoch(loader):
                    terms = named(step(batch))
                    update(terms, optimizer, scaler, schedules)
                    place.step, place.batch = place.step + 1, place.batch + 1
                    log.step(terms, batch, place.step)
                    saver.check()
                place.epoch, place.batch = place.epoch + 1, 0
                metrics, shown = metric() if metric else {}, images() if images and log.draws else {}
                log.epoch(place.epoch, place.step, metrics, shown)
                saver.check()
    return FitResult(place.step, log.history, saver.resumed, saver.saved)


def length(loader: Any) -> int | None:
    """Batches an epoch, None where the loader does not know."""
    try:
        return len(loader)
    except TypeError:
        return None


def named(terms: Terms) -> Mapping[str, Tensor]:
    """A loss alone is the term `loss`."""
    return {"loss": terms} if isinstance(terms, Tensor) else terms


def update(
    terms: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    schedules: Sequence[Schedule] = (),
) -> None:
    """One step of the optimiser, down the gradient of the sum of the terms."""
    first, *others = terms.values()
    loss = sum(others, start=first)
    optimizer.zero_grad()
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    for schedule in schedules:
        schedule.step()
