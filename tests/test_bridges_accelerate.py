"""Hugging Face Accelerate around a step with a prior: precision, and the example on one and on two processes."""

import copy
import re

import pytest
import torch
from helpers import relative_error
from test_examples import EXAMPLES, run, run_group
from torch import nn

import xattr_cuda as xa

accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")

EXAMPLE = EXAMPLES / "accelerate_prior.py"
EPOCHS = 3

# A fresh process that imports once and forks both workers.
TWO_PROCESSES = f"""
import sys
from pathlib import Path
import accelerate
import accelerate_prior

def job():
    accelerate_prior.main(epochs={EPOCHS}, batch=64, accumulate=2, strength=0.05, save=Path("two.pt"))

accelerate.debug_launcher(job, num_processes=2)
"""


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_prepared_sweep_has_the_gradients_of_the_plain_one(precision):
    model, x, labels = xa.models.xmlp([6, 16, 3]), torch.randn(8, 6), torch.randint(3, (8,))
    twin = copy.deepcopy(model)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    try:
        sweep, optimizer = accelerator.prepare(xa.Sweep(model), torch.optim.SGD(model.parameters(), 0.1))
        output, attribution = sweep(x, labels)
        assert output.dtype == attribution.dtype == torch.float32
        accelerator.backward(nn.functional.cross_entropy(output, labels) + xa.priors.l1(attribution))
        gradients = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        assert accelerator.unwrap_model(sweep).model is model
    finally:
        accelerator.free_memory()
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    start = copy.deepcopy(twin)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output, attribution = xa.attribute(twin, x, labels)
    (nn.functional.cross_entropy(output.float(), labels) + xa.priors.l1(attribution.float())).backward()
    for p, q, before, g in zip(model.parameters(), twin.parameters(), start.parameters(), gradients, strict=True):
        assert relative_error(g, q.grad) <= 1e-6
        assert relative_error(p, before - 0.1 * q.grad) <= 1e-6


def test_the_example_trains_on_two_processes_as_on_one(tmp_path):
    process = run(EXAMPLE, "--epochs", EPOCHS, "--save", "one.pt", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert not process.stderr
    assert "1 process(es), 2 batches a step" in process.stdout
    sparsity = [float(found) for found in re.findall(r"Gini coefficient of the attribution ([\d.]+)", process.stdout)]
    assert sparsity[0] < sparsity[1]
    assert "2 process(es), 2 batches a step" in run_group(TWO_PROCESSES, tmp_path)
    one, two = (torch.load(tmp_path / name) for name in ("one.pt", "two.pt"))
    assert one.keys() == two.keys()
    assert one
    for name, value in one.items():
        assert relative_error(two[name], value) <= 1e-5, name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.pt", "two.pt"]
