"""The command line, run as its user runs it: in processes of its own."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from xattr_cuda.cli import main
from xattr_cuda.training import demo
from xattr_cuda.training.decoy import load_decoy_digits

PNG = b"\x89PNG\r\n\x1a\n"


def environment():
    # One thread: two that wait for each other on a busy machine take ten times as long as one.
    return {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}


def run(*arguments, folder, timeout=120, python=("-m", "xattr_cuda")):
    """The finished process of one command, run in `folder`."""
    command = [sys.executable, *python, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def assert_one_line_error(process, words, code=2):
    assert process.returncode == code, process.stderr
    assert process.stderr.startswith("xattr-cuda: ")
    assert process.stderr.count("\n") == 1
    assert words in process.stderr
    assert "Traceback" not in process.stderr + process.stdout


def write_table(path, rows=90, seed=0, **columns):
    """A CSV of numbers with gaps, a text column and a label in words; `columns` adds or replaces some."""
    rng = random.Random(seed)
    table = {"size": [], "weight": [], "colour": [], "flag": [], "outcome": []}
    for _ in range(rows):
        size = rng.gauss(10, 3)
        table["size"].append(f"{size:.3f}")
        table["weight"].append("" if rng.random() < 0.1 else f"{rng.gauss(0, 1):.3f}")
        table["colour"].append(rng.choice(["red", "green", "blue", ""]))
        table["flag"].append(rng.choice(["True", "False"]))
        table["outcome"].append("yes" if size + rng.gauss(0, 1) > 10 else "no")
    table.update({name: [value(i) for i in range(rows)] for name, value in columns.items()})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return path


@pytest.mark.parametrize("command", [[], ["demo"], ["train"], ["bench"], ["doctor"]])
def test_help_teaches_with_an_example_in_80_columns(command, tmp_path):
    process = run(*command, "--help", folder=tmp_path)
    assert process.returncode == 0
    assert f"xattr-cuda {' '.join(command) or 'demo'}" in process.stdout
    assert "Example: " in process.stdout or not command
    assert max(map(len, process.stdout.splitlines())) <= 80


def test_without_arguments_help_is_shown(tmp_path):
    process = run(folder=tmp_path)
    assert process.returncode == 0
    assert all(word in process.stdout for word in ("demo", "train", "bench", "doctor"))


def test_doctor_proves_the_back_ends_and_exits_0(tmp_path):
    process = run("doctor", folder=tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    assert torch.__version__ in process.stdout
    assert any(line.startswith("│ reference │ works") for line in process.stdout.splitlines())
    assert not any("wrong" in line for line in process.stdout.splitlines())


def test_demo_lifts_accuracy_and_keeps_its_results(tmp_path):
    process = run("demo", "--epochs", 8, "--seed", 1, "--output", "kept/here", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert max(map(len, process.stdout.splitlines())) <= 80
    folder = tmp_path / "kept" / "here"
    results = json.loads((folder / "results.json").read_text())
    assert results["prior"]["accuracy"] - results["plain"]["accuracy"] >= 0.08
    assert results["prior"]["corner_share"] < 0.3 * results["plain"]["corner_share"]
    assert set(results["step"]["ratio_to_plain"]) == {"plain", "prior (sweep)", "prior (double backward)"}
    assert results["threads"] >= 1
    assert results["backend"] in ("reference", "cpu")
    picture = (folder / "attributions.png").read_bytes()
    assert picture.startswith(PNG)
    assert len(picture) > 20_000
    settings, data = demo.DemoSettings(seed=1), load_decoy_digits(1)
    for name in ("plain", "prior"):
        model = demo.make_network(settings)
        model.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
        assert demo.evaluate(model, data).accuracy == pytest.approx(results[name]["accuracy"], abs=0.005)


def test_train_reads_a_csv_with_text_gaps_and_a_label_in_words(tmp_path):
    write_table(tmp_path / "data.csv")
    process = run(
        *(
            "train",
            "data.csv",
            "--label",
            "outcome",
            "--method",
            "all",
            "--epochs",
            15,
            "--seeds",
            2,
            "--hidden",
            "16,8",
        ),
        *("--prior", "l1", "--strength", "0.01,0.1", "--samples", 2, "--output", "out"),
        folder=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    assert max(map(len, process.stdout.splitlines())) <= 80
    assert "outcome = yes" in process.stdout
    assert "54 rows to train, 18 to validate, 18 to test" in process.stdout.replace("\n", " ")
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [r["method"] for r in content["results"]] == ["xgradient", "eg", "ig", "gradient", "none"]
    assert content["data"]["features"] == 6  # size, weight, flag, three colours
    assert all(len(r["test_auc"]["values"]) == 2 and r["step_seconds"] > 0 for r in content["results"])
    assert max(r["test_auc"]["mean"] for r in content["results"]) > 0.8
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(PNG)


def test_train_on_nhefs_follows_the_protocol(tmp_path):
    process = run(
        *("train", "--dataset", "nhefs", "--method", "xgradient", "--method", "none", "--seeds", 2, "--epochs", 40),
        folder=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    content = json.loads((tmp_path / "train" / "results.json").read_text())
    assert content["data"]["rows"] == {"train": 100, "validation": 100, "test": 1429}
    assert content["settings"]["hidden"] == [512, 128, 32]
    assert all(0.55 < r["test_auc"]["mean"] < 0.95 for r in content["results"])


def test_train_takes_the_positive_value_and_drops_columns(tmp_path):
    write_table(tmp_path / "data.csv", note=lambda i: f"note {i}")
    common = ("train", "data.csv", "--label", "outcome", "--seeds", 1, "--epochs", 2, "--method", "none", "--hidden", 4)
    process = run(*common, "--positive", "no", "--drop", "note", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "outcome = no" in process.stdout


GOOD = ("train", "good.csv", "--label", "outcome", "--epochs", 1, "--seeds", 1)
WRONG = {
    "no such file": (("train", "none.csv", "--label", "y"), "there is no file none.csv"),
    "a folder": (("train", ".", "--label", "y"), "is a folder"),
    "empty file": (("train", "empty.csv", "--label", "y"), "is empty"),
    "not text": (("train", "binary.csv", "--label", "y"), "is not UTF-8 text"),
    "ragged rows": (("train", "ragged.csv", "--label", "y"), "does not read as CSV"),
    "no data set": (("train",), "give a CSV file"),
    "no label": (("train", "good.csv"), "--label COLUMN"),
    "missing column": (("train", "good.csv", "--label", "death"), "no column 'death'; it has 'size'"),
    "missing column to drop": ((*GOOD, "--drop", "death"), "no column 'death' to drop"),
    "label with three values": (("train", "good.csv", "--label", "colour"), "missing values; remove those rows"),
    "label of numbers": (("train", "good.csv", "--label", "size"), "wanted exactly two"),
    "unknown positive": ((*GOOD, "--positive", "maybe"), "no value 'maybe'"),
    "free text": (("train", "notes.csv", "--label", "outcome"), "'note' is text with 90 distinct values"),
    "infinite": (("train", "infinite.csv", "--label", "outcome"), "'weight' has infinite values"),
    "too few rows": (("train", "short.csv", "--label", "outcome"), "has 12 rows; wanted at least 30"),
    "more training rows than rows": ((*GOOD, "--train-rows", 500), "wanted at least 2 in each part"),
    "unknown prior": ((*GOOD, "--prior", "l7"), "no prior 'l7'; choose one of gini, l1, l2"),
    "unknown method": ((*GOOD, "--method", "magic"), "no method 'magic'"),
    "unknown data set": (("train", "--dataset", "mnist"), "no data set 'mnist'"),
    "data set and file": ((*GOOD, "--dataset", "nhefs"), "--dataset brings its own"),
    "negative strength": ((*GOOD, "--strength", "-1"), "wanted finite numbers, 0 or more"),
    "strength in words": ((*GOOD, "--strength", "much"), "--strength is 'much'"),
    "learning rate 0": ((*GOOD, "--learning-rate", 0), "learning rate is 0.0"),
    "widths in words": ((*GOOD, "--hidden", "a,b"), "--hidden is 'a,b'"),
    "no seeds": ((*GOOD, "--seeds", 0), "--seeds"),
    "epochs in words": (("demo", "--epochs", "many"), "--epochs"),
    "negative demo strength": (("demo", "--strength", "-3"), "strength is -3.0"),
    "output is a file": (("demo", "--output", "good.csv"), "cannot be made"),
    "unknown option": (("demo", "--speed"), "--speed"),
    "unknown command": (("dance",), "dance"),
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write_table(folder / "good.csv")
    write_table(folder / "short.csv", rows=12)
    write_table(folder / "notes.csv", note=lambda i: f"note {i}")
    write_table(folder / "infinite.csv", weight=lambda i: "inf" if i == 3 else str(i))
    (folder / "empty.csv").write_bytes(b"")
    (folder / "binary.csv").write_bytes(b"a,y\n\xff\xfe,1\n")
    (folder / "ragged.csv").write_text("a,y\n1,0\n1,2,3,4\n")
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_on_stderr(name, tables, monkeypatch, capfd):
    """All of them within this process, for the seconds that 30 processes take; four in their own below."""
    arguments, words = WRONG[name]
    monkeypatch.chdir(tables)
    monkeypatch.setattr(sys, "argv", ["xattr-cuda", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capfd.readouterr()
    finished = subprocess.CompletedProcess(sys.argv, stopped.value.code, captured.out, captured.err)
    assert_one_line_error(finished, words)


@pytest.mark.parametrize("name", ["no such file", "unknown prior", "negative demo strength", "unknown command"])
def test_a_mistake_is_one_line_on_stderr_of_a_process(name, tables):
    arguments, words = WRONG[name]
    assert_one_line_error(run(*arguments, folder=tables), words)


@pytest.mark.parametrize(
    ("library", "arguments"),
    [
        ("sklearn", ["demo"]),
        ("matplotlib", ["demo"]),
        ("pandas", GOOD),
        ("causaldata", ["train", "--dataset", "nhefs"]),
    ],
)
def test_a_missing_extra_says_how_to_install_it(library, arguments, tables):
    script = f"import sys; sys.modules[{library!r}] = None; from xattr_cuda.cli import main; main()"
    process = run(*arguments, folder=tables, python=("-c", script))
    assert_one_line_error(process, f"needs {library}, which is not installed: pip install xattr_cuda[demo]")


def test_the_package_and_its_help_need_no_extras(tmp_path):
    script = (
        "import sys\n"
        "for name in ('sklearn', 'matplotlib', 'pandas', 'causaldata'): sys.modules[name] = None\n"
        "import xattr_cuda\n"
        "from xattr_cuda.cli import main; main()"
    )
    assert run("train", "--help", folder=tmp_path, python=("-c", script)).returncode == 0


def assert_ctrl_c_is_one_line_and_130(*arguments, folder, into_work):
    """Interrupt a command, told to write to `out` in `folder`, so many seconds after it has begun its work."""
    # A shell may start background jobs with SIGINT ignored; the command must see it all the same.
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from xattr_cuda.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments, "--output", "out"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (folder / "out").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(into_work)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == "xattr-cuda: interrupted\n"


def test_ctrl_c_is_one_line_and_130(tmp_path):
    assert_ctrl_c_is_one_line_and_130("demo", "--epochs", "5000", folder=tmp_path, into_work=1)
