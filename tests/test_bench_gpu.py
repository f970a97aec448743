"""The check of a GPU: its arguments, table, JSON, and that one failure hides no other result. All on the CPU."""

import importlib
import io
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

import xattr_cuda as xa
from xattr_cuda.bench.contestants import Contestant, double_backward_loss, eager
from xattr_cuda.bench.gpu import operators, peaks, steps, worker
from xattr_cuda.bench.gpu.rows import Row, remarks, table
from xattr_cuda.bench.gpu.supervise import supervise
from xattr_cuda.bench.gpu.worker import STICKY, Task, work
from xattr_cuda.ops import gpu

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
PEAKS = {"copy": 1e9, "bf16": 1e9, "fp16": 1e9, "tf32": 1e9, "fp32": 1e9}


def far(seconds=300.0):
    return time.monotonic() + seconds


@pytest.fixture
def scripts(monkeypatch):
    """The modules of benchmarks/, by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_a_rehearsal_writes_a_table_and_json(tmp_path):
    output = tmp_path / "check.json"
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--device", "cpu", "--no-extension", "--no-tests"]
    command += ["--cases", "paper", "--operators", "mask_mul", "gini", "--rounds", "2", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert set(found["peaks"]) == set(PEAKS)
    assert found["extension"] == "not asked for"
    assert found["machine"]["torch"] == torch.__version__
    rows = [Row(**row) for row in found["rows"]]
    assert not any(row.failed for row in rows)
    keys = {(row.kind, row.case, row.dtype) for row in rows}
    names = [("operator", "mask_mul"), ("operator", "gini"), ("step", "paper")]
    assert keys == {(*name, dtype) for name in names for dtype in ("float32", "bfloat16")}
    people = [row.contestant for row in rows if row.case == "paper" and row.dtype == "float32"]
    assert people == [*steps.NAMES, steps.REFERENCE]
    assert all(row.seconds > 0 and row.ratio > 0 for row in rows)
    for words in ("share of peak", "paper", "double backward", "mask_mul", "written: "):
        assert words in done.stdout


def test_a_machine_without_a_gpu_is_told_so(scripts, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU"):
        scripts("gpu_check").main([])


def test_arguments_choose_what_is_timed(scripts):
    check = scripts("gpu_check")
    everything = check.tasks(check.arguments([]))
    assert everything[0].kind == "peaks"
    assert {t.name for t in everything if t.kind == "operator"} == set(xa.ops.SCHEMAS)
    assert {t.name for t in everything if t.kind == "step"} == set(steps.CASES)
    assert {t.dtype for t in everything[1:]} == {"float32", "bfloat16"}
    few = check.tasks(check.arguments(["--cases", "paper", "--operators", "--dtypes", "float16", "--compile"]))
    assert [(t.kind, t.name, t.dtype, t.compiled) for t in few[1:]] == [("step", "paper", "float16", True)]
    with pytest.raises(SystemExit, match=r"no step papper; choose among paper, "):
        check.tasks(check.arguments(["--cases", "papper"]))
    with pytest.raises(SystemExit, match=r"no operator relu; choose among relu_mask, "):
        check.tasks(check.arguments(["--operators", "relu"]))


def test_the_package_is_laid_out_as_an_installation_has_it(scripts, tmp_path):
    scripts("gpu_check").lay_out(tmp_path / "package")
    command = [sys.executable, "-c", "import xattr_cuda.kernels.reference as r; print(r.__file__)"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "package")}
    )
    assert done.stdout.strip() == str(tmp_path / "package" / "xattr_cuda" / "kernels" / "reference" / "__init__.py")


def printed(rows):
    console = Console(width=140, file=io.StringIO())
    console.print(table(rows))
    return console.file.getvalue()


def test_a_failure_is_a_row_of_its_own():
    rows = [
        Row("step", "paper", "float32", "plain", 2e-3, 1.0, 1e-4, 1.0, 0.5, "of tf32"),
        Row("step", "paper", "float32", "attribute", failed="wrong gradients: off by 1"),
        Row("step", "paper", "float32", "attribute_loss", 3e-3, 1.5, no_graph="it synchronises", note="on ATen"),
    ]
    text = printed(rows)
    for words in ("2.000 ms", "100.0 us", "50% of tf32", "failed", "1.50x", "none"):
        assert words in text
    assert remarks(rows) == [
        "paper float32, attribute: wrong gradients: off by 1",
        "paper float32, attribute_loss: no graph: it synchronises",
        "paper float32, attribute_loss: on ATen",
    ]
    assert [Row(**json.loads(json.dumps(row.to_json()))) for row in rows] == rows


FAKE_WORKER = """
import json, os, sys, time
tasks = json.load(open(sys.argv[1]))["tasks"]
out = open(sys.argv[2], "a", buffering=1)
for task in tasks:
    print(json.dumps({"started": task["name"]}), file=out)
    if task["name"] == "crash":
        print("illegal memory access")
        sys.stdout.flush()
        os._exit(9)
    if task["name"] == "hang":
        time.sleep(600)
    row = {"kind": "step", "case": task["name"], "dtype": "float32", "contestant": "all"}
    line = {"finished": task["name"], "rows": [row], "peaks": {"copy": 1.0}, "warnings": ["xattr_cuda: slow"]}
    print(json.dumps(line), file=out)
    if task["name"] == "sticky":
        os._exit(3)
"""


@pytest.fixture
def fake(tmp_path):
    path = tmp_path / "worker.py"
    path.write_text(FAKE_WORKER)
    return [sys.executable, str(path)]


def test_a_kernel_that_brings_its_process_down_costs_its_own_row_alone(fake):
    names = ["one", "crash", "sticky", "two", "crash", "three"]
    found = supervise([Task("step", name) for name in names], far(), start=fake)
    assert [row.case for row in found.rows] == names
    failed = {row.failed for row in found.rows if row.failed}
    assert failed == {"the process ended: illegal memory access"}
    assert [row.case for row in found.rows if row.failed] == ["crash", "crash"]
    assert found.peaks == {"copy": 1.0}
    assert found.warnings == ["xattr_cuda: slow"]


def test_a_kernel_that_hangs_is_given_up(fake):
    told = []
    found = supervise([Task("step", n) for n in ("one", "hang", "two")], far(), told.append, fake, task_seconds=3)
    assert [bool(row.failed) for row in found.rows] == [False, True, False]
    assert "no end after 3 s" in found.rows[1].failed
    assert told[:2] == ["one", "hang"]


def test_what_is_left_when_the_time_is_up_says_so(fake):
    found = supervise([Task("step", n) for n in ("one", "hang", "two")], time.monotonic() + 4, start=fake)
    assert [row.failed for row in found.rows] == ["", "not finished: the time was up", "not taken: the time was up"]


def test_a_worker_that_cannot_start_says_why():
    start = [sys.executable, "-c", "raise ImportError('no such thing')"]
    found = supervise([Task("step", "one")], far(), start=start)
    assert found.rows[0].failed == "the process ended: ImportError: no such thing"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_worker_goes_on_after_an_error_and_reports_warnings(monkeypatch, tmp_path):
    def run(task, found):
        if task.name == "bad":
            raise ValueError("odd shape")
        warnings.warn("xattr_cuda: on the reference, since Triton is missing", stacklevel=1)
        return [Row("step", task.name, task.dtype, "all")]

    monkeypatch.setattr(worker, "run", run)
    assert work([Task("step", n, device="cpu") for n in ("bad", "good")], {}, tmp_path / "out") == 0
    finished = [line for line in lines_of(tmp_path / "out") if "finished" in line]
    assert finished[0]["rows"][0]["failed"] == "ValueError: odd shape"
    assert finished[1]["rows"][0]["failed"] == ""
    assert finished[1]["warnings"] == ["xattr_cuda: on the reference, since Triton is missing"]


def test_a_worker_whose_device_is_lost_ends(monkeypatch, tmp_path):
    monkeypatch.setattr(worker, "run", lambda task, found: [])
    monkeypatch.setattr(worker, "_unusable", lambda device: True)
    assert work([Task("step", n, device="cpu") for n in ("one", "two")], {}, tmp_path / "out") == STICKY
    assert len(lines_of(tmp_path / "out")) == 2


def test_a_worker_ends_after_a_capture_that_failed(monkeypatch, tmp_path):
    monkeypatch.setattr(worker, "run", lambda task, found: [Row("step", task.name, task.dtype, "all", no_graph="no")])
    assert work([Task("step", n, device="cpu") for n in ("one", "two")], {}, tmp_path / "out") == STICKY
    assert len(lines_of(tmp_path / "out")) == 2


def test_wrong_gradients_are_not_timed(monkeypatch):
    people = dict(steps.CONTESTANTS)
    wrong = eager(lambda p: 1.01 * double_backward_loss(p))
    people["attribute"] = Contestant("one percent off", "base", wrong, double_backward_loss)
    monkeypatch.setattr(steps, "CONTESTANTS", people)
    rows = {row.contestant: row for row in steps.measure("paper", torch.float32, PEAKS, 1, "cpu")}
    assert rows["attribute"].failed.startswith("wrong gradients")
    assert rows["attribute"].seconds is None
    assert rows["attribute_loss"].ratio > 0


@pytest.mark.parametrize("op", [op for op in xa.ops.SCHEMAS if op != "gini"])
def test_an_operator_is_timed_against_what_computes_the_same(op):
    """In PyTorch, or by the reference where PyTorch has nothing of the kind."""
    arguments = operators.ARGUMENTS[op](op, operators.SMALL, torch.float64, "cpu")
    near = operators.pytorch(op, arguments)
    if near is None:
        assert op.startswith("mlp_")
        return
    got, want = near(), getattr(xa.ops, op)(*arguments)
    got, want = (t if isinstance(t, Tensor) else t[0] for t in (got, want))
    torch.testing.assert_close(got.view_as(want), want)


def test_wrong_values_of_an_operator_are_not_timed(monkeypatch):
    true = xa.ops.mask_mul

    def wrong(*arguments):
        return true(*arguments) if xa.ops.active() == "reference" else 2 * true(*arguments)

    monkeypatch.setattr(xa.ops, "mask_mul", wrong)
    near, fused = operators.measure("mask_mul", torch.float32, PEAKS, 1, "cpu")
    assert near.seconds > 0
    assert fused.failed.startswith("wrong values")


def test_kernels_in_cuda_and_in_triton_are_timed_side_by_side(monkeypatch):
    def wrong(*arguments):
        return 2 * xa.kernels.reference.mask_mul(*arguments)

    monkeypatch.setattr(gpu, "NATIVE", frozenset(["mask_mul"]))
    monkeypatch.setattr(gpu, "native_unavailable", lambda: "")
    monkeypatch.setattr(gpu, "use_native", lambda on, force=False: None)
    monkeypatch.setattr(gpu, "below", lambda op: getattr(xa.kernels.reference, op))
    near, *found = operators.measure("mask_mul", torch.float32, PEAKS, 1, "cpu")
    assert [row.contestant for row in (near, *found)] == ["PyTorch", "cuda", "triton"]
    assert all(row.seconds > 0 and row.share for row in found)
    monkeypatch.setattr(gpu, "below", lambda op: wrong)
    _, cuda, triton = operators.measure("mask_mul", torch.float32, PEAKS, 1, "cpu")
    assert cuda.seconds > 0
    assert triton.failed.startswith("wrong values")
    (_, only) = operators.measure("gini", torch.float32, PEAKS, 1, "cpu")
    assert only.contestant == "fused"


def test_an_operator_that_fell_back_to_the_reference_says_so(monkeypatch):
    monkeypatch.setattr(gpu, "unavailable", lambda: "no GPU")
    assert operators.on_reference("mask_mul") == "it runs on the reference: no GPU"
    monkeypatch.setattr(gpu, "unavailable", lambda: "")
    monkeypatch.setattr(gpu, "failures", {"mask_mul": "CompilationError: no"})
    assert operators.on_reference("mask_mul") == "it runs on the reference: CompilationError: no"
    pytest.importorskip("triton")
    assert operators.on_reference("relu_mask") == ""
    assert "no Triton kernel" in operators.on_reference("new_operator")


def test_an_operator_without_arguments_is_a_row_that_says_so():
    (row,) = operators.measure("new_operator", torch.float32, PEAKS, 1, "cpu")
    assert "no arguments" in row.failed


def test_shares_are_of_what_limits_an_operator():
    a = torch.ones(100, 100)
    share, of = operators.shares("mask_mul", (a, a), a, 1.0, PEAKS)
    assert (share, of) == (120_000 / 1e9, "of copy")
    share, of = operators.shares("linear_relu_mask", (a, a), a, 1.0, {**PEAKS, "fp32": 1e3, "tf32": 1e3})
    assert share == 2e6 / 1e3
    assert of in ("of fp32", "of tf32")


@pytest.mark.parametrize(("dtype", "precision", "name"), [
    (torch.float32, "highest", "fp32"), (torch.float32, "high", "tf32"), (torch.bfloat16, "high", "bf16"),
    (torch.float16, "highest", "fp16")])  # fmt: skip
def test_the_peak_is_that_of_the_precision_in_force(dtype, precision, name):
    with peaks.matmul_precision(precision):
        assert peaks.product_peak(PEAKS, dtype) == (name, 1e9)


CRASHING = """
import os
import pytest

@pytest.mark.parametrize("n", range(4))
def test_one(n):
    if n == 1:
        os._exit(9)
    if n == 2:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

def test_skipped():
    pytest.skip("no reason")
"""


def test_a_test_that_brings_its_process_down_is_one_failure(scripts, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    path = tmp_path / "test_crashing.py"
    path.write_text(CRASHING)
    tests = scripts("device_tests")
    found = tests.summary([tests.run_part(part, far()) for part in tests.in_shares(str(path), "", 2)])
    assert {key: found[key] for key in ("passed", "failed", "skipped", "missing")} == {
        "passed": 2,
        "failed": 2,
        "skipped": 1,
        "missing": 0,
    }
    assert [failure["test"].rpartition("::")[2] for failure in found["failures"]] == ["test_one[1]", "test_one[2]"]
    assert "ended with status 9" in found["failures"][0]["why"]
    assert "illegal memory access" in found["failures"][1]["why"]


def test_a_test_file_that_cannot_be_run_is_a_failure(scripts, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    path = tmp_path / "test_broken.py"
    path.write_text("import nothing_of_the_kind\n")
    tests = scripts("device_tests")
    found = tests.summary([tests.run_part(tests.Part(str(path)), far())])
    assert found["failed"] == 1


def test_every_test_of_the_plan_is_there(scripts):
    tests = scripts("device_tests")
    for device in ("cpu", "cuda"):
        parts = tests.plan(device)
        assert parts
        assert all((tests.TESTS / part.file).exists() for part in parts)
        assert sorted(parts) == sorted({one for part in parts for one in tests.in_shares(*part[:2], part.shares)})


def test_a_kept_report_is_shown_again_and_renews_the_table_of_a_readme(scripts, tmp_path, capsys):
    def row(contestant, ratio):
        return Row("step", "paper", "bfloat16", contestant, 1e-3, 2 * ratio, 1e-4, ratio).to_json()

    names = {"plain": 1.0, "double backward": 2.5, "attribute": 1.5, "attribute_loss": 1.25}
    machine = {"device": "a GPU", "torch": "2.13", "triton": "3.9"}
    report = {"machine": machine, "extension": "built", "rows": [row(*pair) for pair in names.items()]}
    (tmp_path / "r.json").write_text(json.dumps(report))
    (tmp_path / "R.md").write_text("<!-- bench:gpu -->\nold\n<!-- /bench:gpu -->\n")
    code = scripts("gpu_check").main(["--report", str(tmp_path / "r.json"), "--readme", str(tmp_path / "R.md")])
    assert code == 0
    text = (tmp_path / "R.md").read_text()
    assert "a GPU; PyTorch 2.13, Triton 3.9." in text
    assert "| paper | bf16 | 2.50x (5.00x) | 1.50x (3.00x) | 1.25x (2.50x) |" in text
    assert "old" not in text
    assert "attribute_loss" in capsys.readouterr().out
