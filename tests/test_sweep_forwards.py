"""What a forward does in Python is what the sweeps compute, or an error: numbers, gradients and the model's state."""

import copy
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from forwards import FORWARDS, SCALES, Base, change, model_of
from torch import nn

import xattr_cuda as xa


@pytest.fixture(autouse=True)
def _globals():
    state = np.random.get_state()  # noqa: NPY002
    yield
    SCALES[0] = 1.0
    np.random.set_state(state)  # noqa: NPY002


def stepped(model: Base, x: torch.Tensor, seed: int, engine: Any) -> list[torch.Tensor | None]:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    output, attribution = xa.attribute(model, x, 1, engine=engine)
    loss = output.sin().sum() + attribution.sin().sum()
    return [output, attribution, *torch.autograd.grad(loss, [x, *model.parameters()], allow_unused=True)]


def state_of(model: Base) -> Any:
    buffers = [buffer.tolist() for buffer in model.buffers()]
    return buffers, model.count, list(model.log), model.drop.training, sorted(vars(model))


def assert_same(got: list[torch.Tensor | None], want: list[torch.Tensor | None]) -> None:
    for a, b in zip(got, want, strict=True):
        zero = torch.zeros_like(a if b is None else b) if a is not None or b is not None else torch.zeros(())
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b)


@pytest.mark.parametrize("name", FORWARDS)
def test_a_forward_is_what_eager_computes_at_every_step_or_refused(name):
    function, refusal = FORWARDS[name]
    model = model_of(function)
    twin, x = copy.deepcopy(model), torch.randn(2, 3).double()
    if refusal is not None:
        before = state_of(model)
        with pytest.raises(xa.LayerError, match=refusal):
            stepped(model, x, 0, "sweep")
        assert state_of(model) == before
        return
    for seed in range(4):
        assert_same(stepped(model, x, seed, "sweep"), stepped(twin, x, seed, "autograd"))
        assert state_of(model) == state_of(twin)
        change([model, twin])


def test_a_forward_of_the_instance_is_refused():
    model, x = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU()), torch.randn(2, 3)
    xa.attribute(model, x, 0)
    model[0].forward = lambda h: h * 2
    with pytest.raises(xa.UnsupportedLayerError, match=r"layer '0' .*forward of its own"):
        xa.attribute(model, x, 0)


def test_hooks_of_all_modules_are_refused():
    model, x = nn.Sequential(nn.Linear(3, 3, bias=False)), torch.randn(2, 3)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(xa.UnsupportedLayerError, match="hooks of all modules"):
        xa.attribute(model, x, 0)
    handle.remove()
    xa.attribute(model, x, 0)


def test_children_that_are_registered_in_another_order_are_seen():
    model = model_of(lambda m, x: m.b(m.a(x).relu()))
    twin, x = copy.deepcopy(model), torch.randn(2, 3).double()
    xa.attribute(model, x, 0)
    a = model.a
    del model.a
    model.a = a
    assert_same(stepped(model, x, 0, "sweep")[:3], stepped(twin, x, 0, "autograd")[:3])


def test_a_parameter_that_was_none_is_seen():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_parameter("w", None)

        def forward(self, x):
            return x if self.w is None else x * self.w

    model, x = Optional(), torch.randn(2, 3)
    torch.testing.assert_close(xa.attribute(model, x, 0).output, x)
    model.w = nn.Parameter(torch.full((3,), 2.0))
    torch.testing.assert_close(xa.attribute(model, x, 0).output, 2 * x)


def test_threads_that_trace_at_once_leave_pytorch_as_it_was():
    models = [model_of(FORWARDS["a partial"][0]) for _ in range(16)]
    x = torch.randn(2, 3).double()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda model: xa.attribute(model, x, 0).attribution, models))
    for model, attribution in zip(models, found, strict=True):
        torch.testing.assert_close(attribution, xa.attribute(model, x, 0, engine="autograd").attribution)
    nn.Linear(2, 2)(torch.randn(1, 2))


def test_the_programs_of_a_model_are_bounded():
    from xattr_cuda.sweep import program

    model, x = model_of(FORWARDS["a nested object"][0]), torch.randn(2, 3).double()
    for step in range(program._LIMIT + 9):
        model.config.inner.factor = float(step)
        xa.attribute(model, x, 0)
    assert len(program._programs[model]) == program._LIMIT
