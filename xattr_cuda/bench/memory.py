"""Memory of one step: the most that PyTorch allocated, and the most that a process of its own held.

python -m xattr_cuda.bench.memory CASE CONTESTANT [THREADS] prints what one contestant takes, as JSON.
"""

import ctypes
import gc
import json
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ..training.errors import UserError
from .cases import STEPS, Case
from .contestants import CONTESTANTS, Step
from .problem import pose

TIMEOUT = 1800  # seconds; compiling takes long


def peak_bytes(model: nn.Module, step: Step) -> int:
    """The most that a step had allocated at one time, gradients included, as PyTorch records its allocator."""
    step()
    model.zero_grad(set_to_none=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            step()
    assert record.profiler is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes; OSError or KeyError where there is none."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(dict(line.split(":", 1) for line in lines)[field].split()[0])


def _most_so_far() -> int:
    """The largest resident set of this process ever, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _give_back() -> None:
    """Return freed memory to the system, so that what a step takes is seen; glibc alone can be asked."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_bytes(step: Step) -> int:
    """How far the resident set of this process rises above what it is now while a step runs.

    On Linux the record is reset first; elsewhere only what exceeds the largest resident set so far is seen.
    """
    _give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status("VmRSS")
        step()
        return max(0, _status("VmHWM") - before)
    except (OSError, KeyError):
        before = _most_so_far()
        step()
        return max(0, _most_so_far() - before)


def of_process(case: Case, name: str) -> dict[str, int]:
    """`resident_bytes` and `peak_bytes` of a contestant in this process, which should be fresh.

    What is imported and traced on the way is taken first: by a step on two samples or, where a step is compiled for
    one batch size, by the step itself.
    """
    contestant, p = CONTESTANTS[name], pose(case)
    step = contestant.make(p)
    if contestant.group == "compiled":
        step()
        p.model.zero_grad(set_to_none=True)
    else:
        contestant.make(pose(case, batch=2))()
    return {"resident bytes": resident_bytes(step), "peak bytes": peak_bytes(p.model, step)}


def of_fresh_process(case: str, name: str, threads: int) -> dict[str, int]:
    """`of_process` in a new process; RuntimeError with its last line of complaint where it fails."""
    command = [sys.executable, "-m", "xattr_cuda.bench.memory", case, name, str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it took more than {TIMEOUT} seconds") from None
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1])
    found: dict[str, int] = json.loads(done.stdout)
    return found


def main(arguments: list[str]) -> None:
    """Print the bytes of one contestant of one case."""
    if len(arguments) not in (2, 3) or arguments[0] not in STEPS or arguments[1] not in CONTESTANTS:
        raise UserError("wanted: CASE CONTESTANT [THREADS], as `xattr-cuda bench --list` names them")
    if len(arguments) == 3:
        torch.set_num_threads(int(arguments[2]))
    print(json.dumps(of_process(STEPS[arguments[0]], arguments[1])))


if __name__ == "__main__":
    main(sys.argv[1:])
