"""Tuning on a GPU: candidates are compiled, checked and timed there, and what is kept is launched."""

import pytest
import torch

import xattr_cuda as xa
from xattr_cuda.bench.cases import perceptron
from xattr_cuda.bench.gpu import tune
from xattr_cuda.ops import gpu

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that PyTorch can use"),
    pytest.mark.usefixtures("tuning_folder"),
]


def test_a_small_case_is_tuned_and_its_choices_are_in_force(monkeypatch):
    monkeypatch.setattr(tune, "SETTINGS", ((torch.bfloat16, "highest"),))
    monkeypatch.setattr(tune, "GAIN", 0.0)  # whichever candidate is the fastest is kept
    found, failed = tune.tune([perceptron("tiny", [40, 64, 32, 1], 200, 3)], "cuda", lambda *_: None, sides=((64, 96),))
    assert not failed
    assert {one.request.operator for one in found} >= {*tune.ELEMENTWISE, "perceptron"}
    assert all(one.table_time > 0 and one.best_time > 0 for one in found)
    wrong = [why for one in found for _, why in one.skipped if why.startswith("wrong")]
    assert not wrong
    path = tune.keep(found)
    kept = sum(one.best != one.table for one in found)
    assert gpu.tuning() == f"{kept} configurations measured on this device, from {path}"
    z = torch.randn(64, 96, device="cuda").bfloat16()
    assert torch.equal(xa.ops.relu_mask(z)[0], z.relu())
