"""`xattr-cuda train` stopped, continued and shared out: in processes of its own, under torchrun too."""

import json
import os
import re
import signal
import sys

import pytest
from processes import TORCHRUN, finish, start, wait_for
from test_cli import write_table

from xattr_cuda.cli import main
from xattr_cuda.training import protocol

pytestmark = pytest.mark.usefixtures("one_thread")

EPOCHS = 400


def command(*more, epochs=EPOCHS, output="out"):
    """Two networks: one method on two splits."""
    table = ("train", "data.csv", "--label", "outcome", "--hidden", "16,8", "--strength", 0.1, "--seeds", 2)
    return [*map(str, (*table, "--method", "xgradient", "--epochs", epochs, "--output", output, *more))]


def run(monkeypatch, folder, *arguments):
    """The command within this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["xattr-cuda", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def outcomes(folder):
    """What is known of every network, by the name of its file."""
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("runs/*seed*.json")}


def results(folder):
    """results.json without what a clock measured."""
    content = json.loads((folder / "results.json").read_text())
    return [{key: value for key, value in row.items() if key != "step_seconds"} for row in content["results"]]


def test_train_continues_where_a_signal_stopped_it_also_under_torchrun(tmp_path, monkeypatch):
    write_table(tmp_path / "data.csv")
    assert run(monkeypatch, tmp_path, *command(output="whole")) == 0
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert len(outcomes(whole)) == 2

    process = start("-m", "xattr_cuda", *command(), cwd=tmp_path)
    wait_for(lambda: outcomes(out), process)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 128 + signal.SIGTERM, err
    # Within a network or, should this machine be too busy to say so in time, after it.
    when = r"(after step \d+ .*; saved out/runs/.*; resume to|with 1 of 2 networks trained;|while steps were timed;)"
    assert re.fullmatch(rf"stopped by SIGTERM {when} continue.*\n", err)
    first = min(out.glob("runs/*seed*.json"))
    before = first.stat().st_mtime_ns

    status, stdout, err = finish(start(*TORCHRUN, "-m", "xattr_cuda", *command("--resume"), cwd=tmp_path))
    assert status == 0, err
    assert stdout.count("Saved in out") == 1  # one process speaks
    assert outcomes(out) == outcomes(whole)
    assert results(out) == results(whole)
    assert first.stat().st_mtime_ns == before
    assert not [path for path in (out / "runs").iterdir() if path.is_dir()]  # no checkpoint is left over


def test_resume_trains_what_is_missing_and_without_it_all_is_trained_anew(tmp_path, monkeypatch, capfd):
    write_table(tmp_path / "data.csv")
    trained = []
    train = protocol.train
    monkeypatch.setattr(protocol, "train", lambda *a, **k: trained.append(a[1:4:2]) or train(*a, **k))
    short = command(epochs=3)
    for more, count in (((), 2), (("--resume",), 0), (("--resume", "--method", "none"), 2), ((), 2)):
        trained.clear()
        assert run(monkeypatch, tmp_path, *short, *more) == 0
        assert len(trained) == count, more
    names = ["comparison.json", "xgradient-0.1-seed0.json", "xgradient-0.1-seed1.json"]
    assert sorted(os.listdir(tmp_path / "out" / "runs")) == names
    damaged = tmp_path / "out" / "runs" / names[-1]
    damaged.write_text("{")
    trained.clear()
    capfd.readouterr()
    assert run(monkeypatch, tmp_path, *short, "--resume") == 0
    assert len(trained) == 1
    assert "xgradient-0.1-seed1.json is refused: it is no JSON" in capfd.readouterr().err
    assert run(monkeypatch, tmp_path, *command("--resume", epochs=4)) == 2
    assert "out/runs is of another comparison: epochs is 3 there, 4 here; leave out --resume" in capfd.readouterr().err
    write_table(tmp_path / "data.csv", seed=1)
    assert run(monkeypatch, tmp_path, *short, "--resume") == 2
    assert "another comparison: data is " in capfd.readouterr().err
