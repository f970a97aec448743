"""The tests on a device: a process for each part of a file, several at once, and another one where a test brings its
process down.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).resolve().parent.parent / "tests"
BACKENDS = ("triton", "cuda")
FILES = {
    "test_ops_mlp.py": 4,
    "test_sweep_perceptron.py": 3,
    "test_ops_products.py": 3,
    "test_sweep_precision.py": 2,
    "test_ops_values.py": 3,
    "test_ops_autograd.py": 3,
    "test_sweep_exact.py": 2,
    "test_sweep_graphs.py": 1,
    "test_sweep_loss.py": 1,
    "test_gini.py": 1,
}
"""Files whose tests take every back end in turn, those first that compile most: processes for each back end."""
ALONE = {"test_gpu_steps.py": 4}  # of the files whose tests are of a GPU alone; others take one process
PROCESSES = max(2, min(12, (os.cpu_count() or 1) - 2))
RESTARTS = 20  # of one file: more often no test brings a process down, but something else
ENDED = (0, 1, 5)  # exit status of pytest: passed, failed, nothing to do

Say = Callable[[str], object]


class Part(NamedTuple):
    """What one process runs: of the tests of a file whose names match a keyword the `share`-th of `shares` parts."""

    file: str
    keyword: str = ""
    share: int = 0
    shares: int = 1

    def __str__(self) -> str:
        share = f", {self.share + 1} of {self.shares}" if self.shares > 1 else ""
        return f"{Path(self.file).name} ({self.keyword or 'all'}{share})"


@dataclass
class Outcomes:
    """Of one part: test to (outcome, why); collected: all of its tests; broken: why it could not be run."""

    file: str
    tests: dict[str, tuple[str, str]] = field(default_factory=dict)
    collected: set[str] = field(default_factory=set)
    broken: str = ""

    def read(self, log: Path) -> str:
        """Take a process's log; the test that was running when it ended, or an empty string."""
        running = ""
        for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
            found = json.loads(line)
            if "collected" in found:
                self.collected |= set(found["collected"])
            elif "started" in found:
                running = found["started"]
            else:
                self.tests.setdefault(found["test"], (found["outcome"], found["why"]))
                if found["outcome"] == "failed":
                    self.tests[found["test"]] = (found["outcome"], found["why"])
        return "" if running in self.tests else running


def command(file: str, keyword: str) -> list[str]:
    """How pytest is called; warnings stay warnings, since other releases of PyTorch and Triton have others."""
    chosen = ["-k", keyword] if keyword else []
    return [sys.executable, "-m", "pytest", "-p", "device_log", "-q", "-W", "default", *chosen, file]


def run_part(part: Part, deadline: float) -> Outcomes:
    """All tests of a part, in one process after another until each has an outcome or the time is up."""
    found = Outcomes(part.file)
    for _ in range(RESTARTS):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        with tempfile.TemporaryDirectory() as folder:
            log, done = Path(folder, "log"), Path(folder, "done")
            done.write_text("\n".join(found.tests), encoding="utf-8")
            share = f"{part.share}/{part.shares}"
            env = {"XATTR_DEVICE_LOG": str(log), "XATTR_DEVICE_DONE": str(done), "XATTR_DEVICE_SHARE": share}
            try:
                process = subprocess.run(
                    command(part.file, part.keyword),
                    cwd=TESTS,
                    env={**os.environ, **env},
                    capture_output=True,
                    text=True,
                    timeout=left,
                )
            except subprocess.TimeoutExpired:
                found.read(log)
                break
            running = found.read(log)
        if process.returncode in ENDED:
            break
        if running:
            found.tests[running] = ("failed", f"its process ended with status {process.returncode}")
        elif not found.collected:
            lines = [line for line in (process.stdout + process.stderr).splitlines() if line.strip()]
            found.broken = lines[-1][:300] if lines else f"exit status {process.returncode}"
            break
    return found


def summary(parts: Iterable[Outcomes]) -> dict[str, Any]:
    """Counts of all parts, and every failure with its reason."""
    counts = {"passed": 0, "failed": 0, "skipped": 0, "missing": 0}
    failures = []
    for found in parts:
        if found.broken:
            counts["failed"] += 1
            failures.append({"test": found.file, "why": found.broken})
        counts["missing"] += len(found.collected - set(found.tests))
        for test, (outcome, why) in found.tests.items():
            counts[outcome] += 1
            if outcome == "failed":
                failures.append({"test": test, "why": why})
    return {**counts, "failures": failures}


def counts(tests: dict[str, Any]) -> str:
    """How tests ended, from their summary."""
    return f"{tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped, {tests['missing']} not run"


def plan(device: str) -> list[Part]:
    """Tests of a GPU alone, then those that take every back end in turn; on the CPU, in a rehearsal, a few."""
    if device == "cpu":
        return in_shares("test_gini.py", "cpu and float32", 2)
    alone = sorted((path.name for path in TESTS.glob("test_gpu_*.py")), key=lambda name: -ALONE.get(name, 0))
    every = [in_shares(name, "", ALONE.get(name, 1)) for name in alone]
    every += [in_shares(file, backend, shares) for file, shares in FILES.items() for backend in BACKENDS]
    return [part for parts in every for part in parts]


def in_shares(file: str, keyword: str, shares: int) -> list[Part]:
    """The parts of a file, of about as many tests each."""
    return [Part(file, keyword, share, shares) for share in range(shares)]


def run_tests(device: str, deadline: float, say: Say) -> dict[str, Any]:
    """Run what a device can be tested with, several processes at once; returns what `summary` does.

    deadline: in the seconds of time.monotonic.
    """

    def run(part: Part) -> Outcomes:
        found = run_part(part, deadline)
        say(f"{part}: {counts(summary([found]))}")
        return found

    with ThreadPoolExecutor(PROCESSES) as pool:
        return summary(pool.map(run, plan(device)))
