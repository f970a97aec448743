"""Tuning: what is timed, who wins, and the command. All without a GPU."""

import math

import pytest
import torch
from rich.console import Console
from test_cli import assert_one_line_error, run

pytest.importorskip("triton", reason="Triton is not installed")

from tuning import CPU, a_choice
from xattr_cuda.kernels.triton import configs, tuned

import xattr_cuda as xa
from xattr_cuda.bench.cases import GiniCase, perceptron
from xattr_cuda.bench.gpu import tune
from xattr_cuda.cli import tune as command
from xattr_cuda.ops import gpu
from xattr_cuda.training.errors import UserError

TINY = perceptron("tiny", [20, 24, 17, 1], 9, 3)
pytestmark = pytest.mark.usefixtures("tuning_folder")


# ---- who wins ----


def tuned_by(times, results=None, family="elementwise"):
    """tune_one over a call that has these results, by candidate; times: of each in turn, or one for all its turns."""
    table, *others = configs.candidates(family)
    request = tuned.Request(family, "relu_mask", "float32", "", "1x64")
    current = []

    def call():
        config = tuned.chosen(family, "relu_mask", CPU, torch.float32, (1, 64), table)
        current[:] = [config]
        result = (results or {}).get(config.name + str(config.num_warps), torch.ones(3))
        if isinstance(result, Exception):
            raise result
        return result

    turns = {name: iter(t) if isinstance(t, list) else None for name, t in times.items()}

    def timer(run):
        run()
        name = current[0].name + str(current[0].num_warps)
        turn = turns.get(name)
        return next(turn) if turn is not None else times.get(name, 2.0)

    return table, others, tune.tune_one(request, table, [call], timer)


def name_of(config):
    return config.name + str(config.num_warps)


TABLE, FIRST, SECOND = map(name_of, configs.candidates("elementwise")[:3])


def test_the_fastest_candidate_wins():
    _, others, found = tuned_by({TABLE: 1.5, FIRST: 1.2, SECOND: 1.0})
    assert found.best is others[1]
    assert found.gain == pytest.approx(1.5)


def test_the_table_stays_where_it_is_as_fast():
    table, _, found = tuned_by({TABLE: 1.0, FIRST: 0.99})
    assert found.best is table
    assert found.gain == 1.0


def test_a_candidate_that_was_fast_by_chance_does_not_win():
    table, _, found = tuned_by({TABLE: 1.0, FIRST: [0.5, 1.1]})
    assert found.best is table
    table, _, found = tuned_by({TABLE: [2.0, 1.0], FIRST: 1.0})
    assert found.best is table


@pytest.mark.parametrize(
    "result", [torch.tensor([1.0, 1.0, 1.01]), torch.tensor([1, 1, math.nan]), RuntimeError("out of resource")]
)
def test_a_candidate_that_is_wrong_or_does_not_run_is_not_even_timed(result):
    _, others, found = tuned_by({TABLE: 1.5, FIRST: 0.1, SECOND: 1.0}, {FIRST: result})
    assert found.best is others[1]
    assert [config for config, _ in found.skipped] == [others[0]]


def test_a_device_that_has_failed_ends_the_search():
    with pytest.raises(torch.AcceleratorError):
        tuned_by({}, {FIRST: torch.AcceleratorError("an illegal memory access was encountered")})


def test_masks_that_differ_are_a_disagreement():
    bits = torch.zeros(100, dtype=torch.int32)
    assert not tune.disagreement((torch.ones(3), bits), (torch.ones(3), bits))
    assert "mask" in tune.disagreement((torch.ones(3), bits + 1), (torch.ones(3), bits))


# ---- what is timed ----


def test_the_calls_of_a_step_are_recorded_each_once():
    works = tune.recorded(perceptron("two", [64, 32, 32, 10], 9, 3), torch.float64, "cpu")
    assert {work.operator for work in works} <= set(xa.ops.SCHEMAS)
    assert len({work.signature for work in works}) == len(works) > 1
    for work in works:
        getattr(xa.ops, work.operator)(*work.arguments)


def test_a_vector_is_a_call_of_gini():
    (work,) = tune.recorded(GiniCase("g", 100, 1), torch.float32, "cpu")
    assert (work.operator, work.arguments[0].shape) == ("gini", (100,))


def test_products_that_pytorch_takes_leave_their_masks_to_be_tuned(emulated):
    t, matrix, bits = torch.randn(9, 40), torch.randn(40, 33), torch.zeros(9, 2, dtype=torch.int32)
    works = [tune.Work("linear_relu_mask", (t, matrix.T, None)), tune.Work("matmul_mask", (t, matrix, bits, None))]
    works += [tune.Work("matmul_mask", (t, matrix, None, None)), tune.Work("relu_mask", (t, None))]
    first, second = tune.by_parts(works)
    assert (first.operator, second.operator) == ("relu_mask", "mask_mul")
    assert torch.equal(first.arguments[0], t @ matrix)
    assert second.arguments[1] is bits


def test_tuning_a_case_puts_what_is_faster_in_force_and_keeps_the_rest(emulated, monkeypatch):
    monkeypatch.setattr(tune, "SETTINGS", ((torch.bfloat16, "highest"),))
    monkeypatch.setattr(tune, "_candidates", lambda family: configs.candidates(family)[-2:])
    old = tuned.Request("gini", "gini", "float32", "", "64"), configs.candidates("gini")[1]
    tuned.save(CPU, dict([old]))
    told = []

    def timer(call):
        call()
        trial = tuned._trial
        return 1.0 if trial.config is configs.candidates(trial.request.family)[-1] else 2.0

    found, failed = tune.tune([TINY], "cpu", lambda *words: told.append(words), timer, sides=((8, 64),))
    assert not failed
    assert {one.request.operator for one in found} >= {*tune.ELEMENTWISE, "perceptron"}
    assert len({one.request for one in found}) == len(found)
    assert all(one.gain == 2 for one in found if one.best is not one.table)
    assert any(words.startswith("tiny, bfloat16: ") for words, _, _ in told)
    path = tune.keep(found)
    expected = {one.request: one.best for one in found if one.best is not one.table}
    assert len(expected) > 3
    assert tuned.of_device(CPU).choices == {**expected, old[0]: old[1]}
    assert gpu.tuning() == f"{len(expected) + 1} configurations measured on this device, from {path}"
    console = Console(width=100, record=True)
    console.print(command.table(found))
    text = console.export_text()
    assert "relu_mask" in text
    assert "2.00x" in text


# ---- the commands ----


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_command_says_what_it_needs(tmp_path):
    process = run("bench", "--tune", "--case", "paper", folder=tmp_path)
    assert_one_line_error(process, "--tune times kernels on a GPU, and none runs here: torch")
    assert not process.stdout


def test_an_unknown_case_is_an_error_of_one_line(tmp_path):
    assert_one_line_error(run("bench", "--tune", "--case", "nowhere", folder=tmp_path), "there is no case 'nowhere'")


def test_a_failing_device_is_an_error_that_keeps_nothing(emulated, monkeypatch, tuning_folder):
    def fail(*_):
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(tune, "tune", fail)
    with pytest.raises(UserError, match="the device failed, and nothing was kept"):
        command.tune_kernels(Console(quiet=True), [TINY])
    assert not [*tuning_folder.iterdir()]


def test_the_command_shows_a_table_and_names_the_file(emulated, monkeypatch, tuning_folder):
    request, config = a_choice()
    found = tune.Found(request, configs.candidates("elementwise")[0], config, 3.0, 2.0)
    monkeypatch.setattr(tune, "tune", lambda *_: ([found], ["gini is not tuned: RuntimeError: no"]))
    console = Console(width=100, record=True)
    command.tune_kernels(console, [TINY])
    text = console.export_text()
    assert "1.50x" in text
    assert "gini is not tuned" in text
    (path,) = tuning_folder.iterdir()
    assert f"Saved in {path}" in text
    assert tuned.of_device(CPU).choices == {request: config}


def test_doctor_says_whether_configurations_were_measured_here(emulated):
    assert gpu.tuning().startswith("none: kernels take the package's configurations; `xattr-cuda bench --tune`")
    path = tuned.save(CPU, dict([a_choice()]))
    assert gpu.tuning() == f"1 configurations measured on this device, from {path}"


def test_doctor_says_why_nothing_can_be_tuned(monkeypatch):
    monkeypatch.setattr(gpu, "unavailable", lambda: "torch sees no GPU")
    assert gpu.tuning() == "none: torch sees no GPU"
