"""A pytest plugin for runs on a device that a test may bring down: `pytest -p device_log`.

XATTR_DEVICE_LOG names a file that gets a line of JSON for what was collected, and for the start and the outcome of each
test, as it happens; XATTR_DEVICE_DONE one that lists tests to leave out, a line each; XATTR_DEVICE_SHARE, as in `1/4`,
which part of the tests this process has, counted from 0. After an error that leaves the device of no use to the process
the run ends, so that another process can go on with the rest.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

STICKY = 3  # exit status
SIGNS = ("CUDA error", "illegal memory access", "unspecified launch failure", "device-side assert")

_unusable = False


def _write(**line: Any) -> None:
    with open(os.environ["XATTR_DEVICE_LOG"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@pytest.hookimpl(trylast=True)  # of what keywords have left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share, shares = map(int, os.environ["XATTR_DEVICE_SHARE"].split("/"))
    everything = [*items]
    first, end = (len(items) * i // shares for i in (share, share + 1))
    done = set(Path(os.environ["XATTR_DEVICE_DONE"]).read_text(encoding="utf-8").splitlines())
    items[:] = [item for item in items[first:end] if item.nodeid not in done]
    config.hook.pytest_deselected(items=[item for item in everything if item not in items])


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    _write(collected=[item.nodeid for item in session.items])


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    _write(started=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    global _unusable
    if report.when == "call" or report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message if crash is not None else str(report.longrepr or "")
        _write(test=report.nodeid, outcome=report.outcome, why=" ".join(why.split())[:300])
        _unusable = _unusable or (report.failed and any(sign in report.longreprtext for sign in SIGNS))


def pytest_runtest_logfinish(nodeid: str, location: Any) -> None:
    if _unusable:
        pytest.exit("the device is of no more use to this process", returncode=STICKY)
