"""Hands tasks to worker processes and outlives them: a kernel that hangs or crashes costs its own row alone."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .rows import Row
from .worker import Task, save

TASK_SECONDS = 120.0  # a task that says nothing for so long has come to a stop
POLL = 0.2

Tell = Callable[[str], object]


@dataclass
class Findings:
    """peaks: of the device, by name; rows: of all tasks, in their order; warnings: of the package, each once."""

    peaks: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def command() -> list[str]:
    """What starts a worker."""
    return [sys.executable, "-m", f"{__package__}.worker"]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file that is still being written."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _last_words(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:160] if lines else "it said nothing"


def supervise(
    tasks: Sequence[Task],
    deadline: float,
    tell: Tell = lambda words: None,
    start: Sequence[str] | None = None,
    task_seconds: float = TASK_SECONDS,
) -> Findings:
    """Have all tasks taken, by one worker after another where need be.

    deadline: in the seconds of time.monotonic; what is left then is not taken, and its rows say so. start: the command
    of a worker. Returns what was found.
    """
    found, left = Findings(), list(tasks)
    while left and time.monotonic() < deadline:
        taken, why = _one_worker(left, found, deadline, tell, list(start or command()), task_seconds)
        left = left[taken:]
        if why and left:
            found.rows += left[0].failed(why)
            tell(f"{left[0]}: {why}")
            left = left[1:]
    for task in left:
        found.rows += task.failed("not taken: the time was up")
    return found


def _one_worker(
    tasks: list[Task], found: Findings, deadline: float, tell: Tell, start: list[str], task_seconds: float
) -> tuple[int, str]:
    """Follow one worker to its end: how many tasks it has finished, and why the next one came to nothing."""
    with tempfile.TemporaryDirectory() as folder:
        given, results, said = (Path(folder, name) for name in ("tasks.json", "results.jsonl", "said"))
        save(tasks, found.peaks, given)
        with said.open("wb") as out:
            process = subprocess.Popen([*start, str(given), str(results)], stdout=out, stderr=subprocess.STDOUT)
        done, seen, last = 0, 0, time.monotonic()
        while True:
            ended = process.poll() is not None  # asked before reading, so that no line is missed
            lines = _lines(results)
            for line in lines[seen:]:
                last = time.monotonic()
                if "finished" in line:
                    done += 1
                    found.peaks = line["peaks"]
                    found.rows += [Row(**row) for row in line["rows"]]
                    found.warnings = list(dict.fromkeys([*found.warnings, *line["warnings"]]))
                else:
                    tell(line["started"])
            seen = len(lines)
            if ended:
                crashed = process.returncode != 0 and done < len(tasks) and seen > 2 * done
                silent = seen == 0
                return done, f"the process ended: {_last_words(said)}" if crashed or silent else ""
            now = time.monotonic()
            if now > deadline or now - last > task_seconds:
                process.kill()
                process.wait()
                return done, "not finished: the time was up" if now > deadline else f"no end after {task_seconds:.0f} s"
            time.sleep(POLL)
