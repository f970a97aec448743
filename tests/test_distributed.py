"""Jobs of many processes: gradients are those of one process on the whole batch, or the job is refused.

One job of two processes runs every case of `distributed_jobs.py`, small; one of four runs the example, which compares
X-ResNet-18 and the X-MLP.
"""

import os
import re
import runpy
import subprocess
import sys
from functools import partial

import distributed_jobs as jobs
import pytest
import torch
from distributed_refusals import REFUSALS
from gloo import found_by
from helpers import relative_error
from torch import nn

import xattr_cuda as xa

OF_PARTS = {"parts_in_ddp_without_sync", "parts_in_fsdp_without_sync", "parts_in_fsdp_forward_before_backward"}


@pytest.fixture(scope="module")
def seed(request):
    return request.config.option.seed


@pytest.fixture(scope="module")
def found(seed, tmp_path_factory):
    """What each of two processes returned from every case."""
    return found_by(jobs.run, 2, tmp_path_factory.mktemp("job"), seed, seconds=400)


def of_one_process(name, seed, title):
    """What a case should return."""
    model, (x, labels) = jobs.network(name, seed), jobs.batch(seed)
    if title == "weights_after_training_in_fsdp":
        share = type("Whole", (), {"model": model})
        return jobs.trained(share, xa.Sweep(model), None, x, labels)
    if title.startswith("of_the_loss"):
        jobs.of_loss(xa.Sweep(model, nn.CrossEntropyLoss()), x, labels).backward()
        return jobs.gradients(model)
    if title.startswith("rows"):
        jobs.with_mean(partial(xa.Sweep(model), rows=jobs.ROWS), x, labels).backward()
        return jobs.gradients(model)
    if title == "fsdp_with_frozen_layers":
        jobs.layers(model)[0].requires_grad_(False)
    x.requires_grad_(title == "fsdp_with_the_gradient_of_the_input")
    (jobs.with_mean if title in OF_PARTS else jobs.with_gini)(xa.Sweep(model), x, labels).backward()
    return {**jobs.gradients(model), **({"x": x.grad} if x.requires_grad else {})}


def plain(name):
    """The name of a parameter without what wrappers have put in."""
    return re.sub(r"module\.|_fsdp_wrapped_module\.|_orig_mod\.", "", name)


@pytest.mark.parametrize(("name", "title"), [(name, title) for name in jobs.NETWORKS for title in jobs.titles(name)])
def test_two_processes_have_what_one_has(found, seed, name, title):
    want = of_one_process(name, seed, title)
    for each in found:
        got = each[title, name]
        assert not isinstance(got, str), got
        got = {plain(key): value for key, value in got.items()}
        assert got.keys() == want.keys()
        for key in want:
            error = relative_error(got[key], want[key])
            assert error <= 1e-5, f"{key}: relative error {error:.3g}"


@pytest.mark.parametrize("name", jobs.NETWORKS)
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_job_in_bf16_is_as_good_as_its_double_backward(found, seed, how, name):
    model, (x, labels) = jobs.network(name, seed).double(), jobs.batch(seed)
    jobs.with_mean(xa.Sweep(model), x.double(), labels).backward()
    truth = jobs.gradients(model)
    for each in found:
        results = [each[how, engine, name] for engine in ("sweep", "autograd")]
        assert not any(isinstance(result, str) for result in results), results
        together = [torch.cat([g[key].double().flatten() for key in truth]) for g in (*results, truth)]
        got, own = (relative_error(g, together[-1]) for g in together[:2])
        assert min(got, own) > 1e-4  # it was bf16
        assert got <= 2 * own + torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("title", REFUSALS)
def test_what_cannot_be_right_is_refused_with_a_reason(found, title):
    assert [each["refused", title] for each in found] == [None, None]


def test_four_processes_have_the_gradients_of_one_on_networks_of_the_package(seed, request):
    script = request.config.rootpath / "examples" / "distributed_check.py"
    command = [sys.executable, *["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"], str(script)]
    options = [f"--engine={e}" for e in ("ddp", "fsdp2", "hsdp")] + [f"--model={m}" for m in ("xmlp", "xresnet18")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "NO_COLOR": "1", "PYTHONUTF8": "1"}
    process = subprocess.run(
        [*command, *options, f"--seed={seed}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    rows = re.findall(r"(xmlp|xresnet18) *│ *(\w+) *│ *([\d.e+-]+)", process.stdout)
    assert len(rows) == 6
    assert all(0 < float(difference) <= 1e-5 for _, _, difference in rows)


def test_the_large_job_learns(request, monkeypatch, capsys):
    """The example, in a job of one process: this one."""
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(key, value)
    script = runpy.run_path(str(request.config.rootpath / "examples" / "large_job.py"))
    job, threads = {name: script[name] for name in ("Engine", "Model", "Precision")}, torch.get_num_threads()
    try:
        script["main"](job["Engine"].fsdp2, job["Model"].xmlp, job["Precision"].bf16, epochs=2)
    finally:
        torch.set_num_threads(threads)
    accuracies = [float(a) for a in re.findall(r"accuracy ([\d.]+)%", capsys.readouterr().out)]
    assert len(accuracies) == 2
    assert accuracies[-1] > 90  # of four classes
