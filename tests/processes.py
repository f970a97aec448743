"""Processes that tests start, stop and kill; none outlives its test."""

import os
import signal
import subprocess
import sys
import time

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def environment():
    # One thread: two that wait for each other on a busy machine take ten times as long as one.
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "COLUMNS": "80", "NO_COLOR": "1"}


def start(*arguments, **options):
    """A Python process in a session of its own, so that all that it starts can be ended with it."""
    command = [sys.executable, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(), start_new_session=True, **pipes, **options)


def finish(process, timeout=120):
    """(status, stdout, stderr), within the time or not at all."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, out, err


def wait_for(condition, process, seconds=90):
    """Wait until `condition()` holds; fails where the process ends before, or the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"nothing happened: {finish(process)}")
        time.sleep(0.02)
