"""Long runs as processes of their own: killed, stopped by real signals, continued; and several under torchrun."""

import json
import os
import signal
from pathlib import Path

import fit_ranks
import pytest
import torch
from fit_job import Job
from processes import TORCHRUN, finish, start, wait_for

from xattr_cuda.training import Processes

HERE = Path(__file__).parent


def steps_in(folder):
    """Steps of the checkpoints in a folder."""
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.pt"))


def test_a_run_that_is_killed_and_stopped_continues_to_the_same_weights(tmp_path):
    """Kill -9, SIGTERM and Ctrl-C within a step, sent to the worker of the loader too."""
    whole = Job(workers=1)
    whole.fit(epochs=8)
    checkpoints, held, go = (tmp_path / name for name in ("checkpoints", "held", "go"))
    common = (HERE / "fit_job.py", tmp_path, "--epochs", 8, "--workers", 1, "--resume", "--hold")

    process = start(*common, 23)
    wait_for(held.exists, process)
    os.killpg(process.pid, signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    assert steps_in(checkpoints) == [15, 20]  # 22 were done: less than one interval of 5 is lost

    at = 20
    for number, steps in ((signal.SIGTERM, 3), (signal.SIGINT, 8)):
        held.unlink()
        go.unlink(missing_ok=True)
        process = start(*common, steps)
        wait_for(held.exists, process)
        os.killpg(process.pid, number)
        go.touch()
        at += steps
        want = f"stopped by {number.name} after step {at} (epoch {at // 6 + 1} of 8); saved "
        want += f"{checkpoints}/step-{at:010d}.pt; resume to continue\n"
        assert finish(process) == (128 + number, "", want)

    rest = Job(workers=1, seed=70)
    assert rest.fit(checkpoints, 8, resume=True).resumed == checkpoints / f"step-{at:010d}.pt"
    got, want = rest.weights(), whole.weights()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_two_processes_under_torchrun_train_as_one_and_stop_and_continue_together(tmp_path):
    """In DDP on the batches of one process; with dropout, whose masks every process draws for itself; and sharded."""
    status, out, err = finish(start(*TORCHRUN, HERE / "fit_ranks.py", tmp_path))
    assert status == 0, err
    alone = fit_ranks.Job(Processes())
    history = alone.fit(None).history
    found = [json.loads((tmp_path / f"found{rank}.json").read_text()) for rank in (0, 1)]
    assert [(each["rank"], each["world"]) for each in found] == [(0, 2), (1, 2)]
    for each in found:
        assert each["differ"].startswith("processes differ: checkpoint is ")
        assert each["demo"] == found[0]["demo"]  # one network, on both
        assert each["history"] == [pytest.approx(figures, rel=1e-4) for figures in history]
        # The signal came to the process that does not write, within step 8 of 18.
        assert each["dropout"] == each["sharded"] == [128 + signal.SIGTERM, True, 10]
    assert found[0]["demo"][0] > 0.3  # of ten classes: it has learned
    weights = torch.load(tmp_path / "weights.pt")
    for name, weight in alone.weights().items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-6)
    lines = [line for line in err.splitlines() if line.startswith("stopped by ")]  # one of them speaks
    assert [line.partition("; ")[0] for line in lines] == 2 * ["stopped by SIGTERM after step 8 (epoch 2 of 3)"]
    assert [line.partition(": loss ")[0] for line in out.splitlines()] == [
        f"Training: epoch {epoch} of 3" for epoch in (1, 2, 3)
    ]
