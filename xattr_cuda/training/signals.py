"""SIGTERM and SIGINT as requests: to finish the step, save, and stop."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """A run was asked to stop and has saved what is needed to continue it.

    A script that does not catch it exits with status 128 + the signal's number, as shells have it.
    """

    def __init__(self, received: signal.Signals, message: str) -> None:
        super().__init__(128 + received)
        self.received = received
        self.message = message
        self.announced = False

    def __str__(self) -> str:
        return self.message


@contextmanager
def announced(first: bool) -> Iterator[None]:
    """Say on stderr why the block was left, if it was `Stopped`; of several processes only the first one does."""
    try:
        yield
    except Stopped as stopped:
        if first and not stopped.announced:
            print(stopped, file=sys.stderr, flush=True)
            stopped.announced = True
        raise


class StopRequests:
    """While entered, notes the first SIGTERM or SIGINT in `received`; a second one does at once what it always did.

    wanted: False for nothing of this. What the process ignores it goes on ignoring. Outside of the main thread, where
    Python knows no signals, nothing is noted.
    """

    def __init__(self, wanted: bool = True) -> None:
        self._wanted = wanted
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def obey(self, words: str) -> None:
        """Raise `Stopped` if a signal was received: "stopped by SIGTERM" and `words`."""
        if self.received is not None:
            raise Stopped(self.received, f"stopped by {self.received.name} {words}")

    @contextmanager
    def for_this_process_alone(self) -> Iterator[None]:
        """Processes that the block starts never see the signals, which a terminal, Slurm and torchrun send to all.

        A DataLoader's worker that they ended would take the run along.
        """
        if not self._before or not hasattr(signal, "pthread_sigmask"):
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __enter__(self) -> "StopRequests":
        if self._wanted and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
        else:
            signal.signal(number, self._originally(signal.Signals(number)))
            signal.raise_signal(number)

    def _originally(self, number: signal.Signals) -> Any:
        """The handler before this one and those that it was entered within."""
        handler = self._before[number]
        outer = getattr(handler, "__self__", None)
        return outer._originally(number) if isinstance(outer, StopRequests) else handler
