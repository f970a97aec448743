"""The examples, run as their reader runs them: in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
CONTRAST = EXAMPLES / "contrast.py"
EPOCHS = 4
TWIN, XDNN = "with biases", "X-DNN"


def run(script: Path, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """The finished process of one script, run in `folder`."""
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def run_group(code: str, folder: Path) -> str:
    """What a fresh process prints that runs `code` in `folder` and forks others; none of them outlives a timeout."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONPATH": f"{EXAMPLES}:{EXAMPLES.parent}"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)
    try:
        printed, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, errors
    return printed


@pytest.fixture(scope="module")
def contrast(request, tmp_path_factory):
    """The process, its folder and the parsed results.json of a short run with a fresh seed."""
    folder = tmp_path_factory.mktemp("contrast")
    process = run(CONTRAST, "--output", "out", "--epochs", EPOCHS, "--seed", request.config.option.seed, folder=folder)
    assert process.returncode == 0, process.stderr
    return process, folder / "out", json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))


def test_contrast_leaves_the_x_dnn_s_accuracy_as_it_is_and_lowers_its_twin_s(contrast):
    _, _, results = contrast
    xdnn, twin = results["accuracy"][XDNN], results["accuracy"][TWIN]
    assert results["alphas"] == pytest.approx([k / 10 for k in range(1, 11)])
    assert len(xdnn) == len(twin) == 10
    assert set(xdnn) == {xdnn[-1]}
    assert min(xdnn[-1], twin[-1]) > 0.5  # ten classes: both have learned
    assert twin[0] < twin[-1] - 0.1


def test_contrast_prints_the_table_that_it_saves(contrast):
    process, _, results = contrast
    rows = [line.split("│")[1:-1] for line in process.stdout.splitlines() if line.startswith("│")]
    columns = results["alphas"], results["accuracy"][TWIN], results["accuracy"][XDNN]
    want = [[f"{alpha:.1f}", f"{twin:.1%}", f"{xdnn:.1%}"] for alpha, twin, xdnn in zip(*columns, strict=True)]
    assert [[cell.strip() for cell in row] for row in rows] == want
    assert not process.stderr


def test_contrast_draws_a_picture_and_leaves_nothing_else(contrast):
    process, folder, _ = contrast
    assert sorted(path.name for path in folder.iterdir()) == ["contrast.png", "results.json"]
    assert "Saved in out: contrast.png, results.json" in process.stdout
    picture = (folder / "contrast.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(picture[16:20], "big") == 1200  # pixels wide, by the header
    assert len(picture) > 10_000  # not an empty page


def test_contrast_repeats_with_its_seed(contrast, tmp_path):
    _, _, results = contrast
    process = run(CONTRAST, "--output", ".", "--epochs", EPOCHS, "--seed", results["seed"], folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == results


def test_contrast_explains_its_options(tmp_path):
    process = run(CONTRAST, "--help", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert all(option in process.stdout for option in ("--output", "--seed", "--epochs"))
    assert not list(tmp_path.iterdir())
