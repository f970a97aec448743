"""The example of a long run: in this process, and under torchrun, which a signal stops."""

import importlib.util
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from processes import TORCHRUN, finish, start, wait_for

SCRIPT = Path(__file__).parents[1] / "examples" / "long_run.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("long_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard and what it imports
def test_it_learns_without_the_corners_and_continues_to_the_same_weights(example, tmp_path, capsys):
    example.main(tmp_path / "whole", epochs=3)
    capsys.readouterr()
    example.main(tmp_path / "parts", epochs=1, board=True)
    example.main(tmp_path / "parts", epochs=3, resume=True, board=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" of ")[0] for line in lines if line.startswith("Training")] == [
        "Training: epoch 1",
        "Training: continuing after step 19",
        "Training: epoch 2",
        "Training: epoch 3",
    ]
    accuracy = float(re.search(r"^57 steps, test accuracy (\d+\.\d)%; saved in .*parts$", lines[-1])[1])
    assert accuracy > 60  # of ten classes; corners alone would give 10
    want, got = (torch.load(tmp_path / name / "weights.pt") for name in ("whole", "parts"))
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert len(list((tmp_path / "parts" / "board").glob("events.*"))) == 2


def test_under_torchrun_a_signal_saves_it(tmp_path):
    checkpoints = tmp_path / "out" / "checkpoints"
    command = (*TORCHRUN, SCRIPT, "--output", tmp_path / "out", "--epochs", 10_000)
    process = start(*command)
    wait_for(lambda: checkpoints.is_dir() and any(checkpoints.glob("*.pt")), process)
    os.kill(process.pid, signal.SIGTERM)  # torchrun alone, which tells its processes
    _, out, err = finish(process)
    (step,) = re.findall(r"^stopped by SIGTERM after step (\d+) \(epoch \d+ of 10000\); saved .*; resume", err, re.M)
    content = torch.load(checkpoints / f"step-{int(step):010d}.pt")
    assert content["identity"]["processes"] == 2
    assert content["place"]["step"] == int(step)
    assert out.count("epoch 1 of") <= 1  # one process speaks
