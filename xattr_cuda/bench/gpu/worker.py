"""Takes tasks in turn and writes what each has found: run in a process of its own, since a kernel may bring it down.

python -m xattr_cuda.bench.gpu.worker TASKS RESULTS
"""

import json
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..check import few_words
from . import operators, peaks, steps
from .rows import Row

STICKY = 3  # exit status: the device may be of no more use to this process


@dataclass(frozen=True)
class Task:
    """kind: `peaks`, `operator` or `step`; name: of the operator or the case; compiled: compiled steps as well."""

    kind: str
    name: str = ""
    dtype: str = "float32"
    rounds: int = 30
    compiled: bool = False
    device: str = "cuda"
    precision: str = "high"

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.dtype}" if self.name else self.kind

    def failed(self, why: str) -> list[Row]:
        """What is known of the task where it came to nothing."""
        return [] if self.kind == "peaks" else [Row(self.kind, self.name, self.dtype, "all", failed=why)]


def run(task: Task, found: dict[str, float]) -> list[Row]:
    """The rows of one task; peaks are written into `found`, and read from it."""
    torch.set_float32_matmul_precision(task.precision)
    dtype = getattr(torch, task.dtype)
    if task.kind == "peaks":
        found.update(peaks.measure(task.device))
        return []
    if task.kind == "operator":
        return operators.measure(task.name, dtype, found, task.rounds, task.device)
    return steps.measure(task.name, dtype, found, task.rounds, task.device, task.compiled)


def _unusable(device: str) -> bool:
    """Whether the device refuses all further work, as it does after an access out of bounds."""
    try:
        if device != "cpu":
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def work(tasks: list[Task], found: dict[str, float], results: Path) -> int:
    """Take the tasks; a line of JSON to `results` before and after each. Returns the exit status."""
    with results.open("a", encoding="utf-8", buffering=1) as file:

        def write(**line: Any) -> None:
            file.write(json.dumps(line) + "\n")

        for task in tasks:
            write(started=str(task))
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                try:
                    rows = run(task, found)
                except Exception as error:  # the finding; what is to come may still work
                    rows = task.failed(few_words(error))
            said = [" ".join(str(w.message).split()) for w in warned if "xattr_cuda" in str(w.message)]
            write(finished=str(task), rows=[row.to_json() for row in rows], peaks=found, warnings=said)
            # A capture that has failed may leave the generator of random numbers as if it went on.
            if _unusable(task.device) or any(row.no_graph for row in rows):
                return STICKY
            if task.device != "cpu":
                torch.cuda.empty_cache()
            if task.compiled:
                torch.compiler.reset()
    return 0


def save(tasks: list[Task], found: dict[str, float], path: Path) -> None:
    """What `main` reads."""
    path.write_text(json.dumps({"tasks": [asdict(t) for t in tasks], "peaks": found}), encoding="utf-8")


def main() -> int:
    """Command line: a file of tasks, and one to append results to."""
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return work([Task(**t) for t in given["tasks"]], given["peaks"], Path(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
