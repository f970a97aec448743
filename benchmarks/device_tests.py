"""The tests on a device: a process a file, several at once, and another one where a test brings its process down."""

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
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
OPERATORS = ("values", "autograd")
SWEEPS = tuple(f"test_sweep_{name}.py" for name in ("exact", "loss", "precision", "perceptron", "graphs"))
DTYPES = ("float32", "float64", "bfloat16", "float16")
PROCESSES = max(2, min(12, (os.cpu_count() or 1) - 2))
RESTARTS = 20  # of one file: more often no test brings a process down, but something else
ENDED = (0, 1, 5)  # exit status of pytest: passed, failed, nothing to do

Say = Callable[[str], object]
Plan = list[tuple[str, str]]
"""(test file, what the names of its tests must match) for every process."""


@dataclass
class Outcomes:
    """Of one file: test to (outcome, why); collected: all of its tests; broken: why it could not be run."""

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


def run_file(file: str, keyword: str, deadline: float) -> Outcomes:
    """All tests of a file, in one process after another until each has an outcome or the time is up."""
    found = Outcomes(file)
    for _ in range(RESTARTS):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        with tempfile.TemporaryDirectory() as folder:
            log, done = Path(folder, "log"), Path(folder, "done")
            done.write_text("\n".join(found.tests), encoding="utf-8")
            env = {**os.environ, "XATTR_DEVICE_LOG": str(log), "XATTR_DEVICE_DONE": str(done)}
            try:
                process = subprocess.run(
                    command(file, keyword), cwd=TESTS, env=env, capture_output=True, text=True, timeout=left
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


def plan(device: str) -> Plan:
    """Tests of a GPU alone, then those that take every back end in turn; on the CPU, in a rehearsal, a few."""
    if device == "cpu":
        return [("test_gini.py", "cpu and float32")]
    others = " and ".join(f"not {dtype}" for dtype in DTYPES)
    operators = [f"test_ops_{name}.py" for name in OPERATORS]
    backends = ("triton", "cuda")
    return [
        *((path.name, "") for path in sorted(TESTS.glob("test_gpu_*.py"))),
        *((file, f"{name} and {which}") for name in backends for file in operators for which in (*DTYPES, others)),
        *((file, "triton") for file in ("test_ops_products.py", "test_gini.py")),
        *((file, name) for name in backends for file in ("test_ops_mlp.py", *SWEEPS)),
    ]


def run_tests(device: str, deadline: float, say: Say) -> dict[str, Any]:
    """Run what a device can be tested with, several processes at once; returns what `summary` does.

    deadline: in the seconds of time.monotonic.
    """
    found: dict[tuple[str, str], Outcomes] = {}

    def run(part: tuple[str, str]) -> None:
        found[part] = run_file(*part, deadline)
        say(f"{part[0]} ({part[1] or 'all'}): {counts(summary([found[part]]))}")

    parts = plan(device)
    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(run, parts))
    return summary([found[part] for part in parts])
