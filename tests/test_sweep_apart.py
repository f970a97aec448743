"""Which networks are known to treat samples apart, and what is done about the others."""

from typing import Any

import pytest
import torch
from helpers import assert_same_step
from row_steps import small_convnet, step
from torch import Tensor, nn

import xattr_cuda as xa
from xattr_cuda.sweep.run import Run


def apart(model: nn.Module, x: Tensor) -> bool:
    return Run.start(model, [x], ()).treats_samples_apart()


class Function(nn.Module):
    """A function of the input and, where it takes one, of a parameter."""

    def __init__(self, function: Any, size: tuple[int, ...] = (4,)) -> None:
        super().__init__()
        self.function, self.p = function, nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.p)


APART = {
    "a view by the batch's size": lambda x, p: x.view(x.size(0), -1) * p[0],
    "a view without it": lambda x, p: x.view(-1, 2, 4).flatten(1) * p[0],
    "features in another order": lambda x, p: x.transpose(1, 2) * p[0],
    "factors of features": lambda x, p: x * p,
    "a mean over features": lambda x, p: x.mean((1, 2), keepdim=True) * p,
    "all rows by a slice": lambda x, p: x[:, 1:] * p,
}
MIXED = {
    "a mean over the batch": lambda x, p: x.mean(0, keepdim=True) + x * p,
    "a factor of the batch's size": lambda x, p: x * p / x.size(0),
    "a slice as long as the batch": lambda x, p: (x.flatten(1) * p[0])[:, : x.size(0)],
    "the batch turned round": lambda x, p: x.flip(0) * p,
    "the batch rolled": lambda x, p: x.roll(1, 0) * p,
    "sums along the batch": lambda x, p: x.cumsum(0) * p,
    "samples beside features": lambda x, p: (x.sum(2).transpose(0, 1) * 1).transpose(0, 1) * p[0],
    "each with each": lambda x, p: (x.sum(2).unsqueeze(1) + x.sum(2)) * p[0],
}


@pytest.mark.parametrize("name", APART)
def test_functions_that_treat_samples_apart_are_known(name):
    assert apart(Function(APART[name]), torch.randn(6, 2, 4))


@pytest.mark.parametrize("name", MIXED)
def test_functions_that_may_mix_samples_are_attributed_whole(name):
    model, x = Function(MIXED[name]).double(), torch.randn(6, 2, 4).double()
    assert not apart(model, x)
    u = torch.randn_like(model(x)).detach()
    assert_same_step(*(step(model, x, slice(1, 3), engine, cotangent=u) for engine in ("sweep", "autograd")))


def test_a_factor_of_each_sample_is_attributed_whole():
    factor = torch.rand(6, 1, 1)
    model, x = Function(lambda x, p: x * p), torch.randn(6, 2, 4)
    given = Function(lambda x, p: x * p, (6, 1, 1))
    assert apart(model, x)
    assert not apart(given, x)

    class Weighted(nn.Module):
        def forward(self, x, w):
            return x * w

    whole, part = (xa.attribute(Weighted(), x, (0, 0), constants=(factor,), rows=r) for r in (None, slice(2, 4)))
    torch.testing.assert_close(part.attribution, whole.attribution[2:4])


class Halves(nn.Module):
    def forward(self, x):
        return x / 2


class Own(xa.Layer):
    def forward(self, params, h):
        return h / 2, ()

    def tangent(self, frame, v):
        return v / 2

    def cotangent(self, frame, g):
        return g / 2


def test_a_rule_of_ones_own_is_attributed_whole_unless_it_says_that_it_treats_samples_apart():
    class Said(Own):
        apart = True

    x = torch.randn(6, 3).double()
    model = nn.Sequential(nn.Linear(3, 2, bias=False), Halves(), nn.PReLU()).double()
    for rule, known in ((Own, False), (Said, True)):
        xa.register_rule(Halves, lambda module, rule=rule: rule())
        model = nn.Sequential(*model)  # another module, so that it is traced anew
        assert apart(model, x) is known
        assert_same_step(*(step(model, x, slice(1, 3), engine, target=1) for engine in ("sweep", "autograd")))


def test_moments_of_the_batch_are_taken_once_and_of_all_rows():
    models = [small_convnet(scale=True).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(8, 3, 8, 8).double()
    xa.attribute(models[0], x, 0)
    xa.attribute(models[1], x, 0, rows=slice(0, 3))
    for a, b in zip(models[0].buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert not apart(models[1], x)
    assert apart(models[1].eval(), x)


def column(mix: Any) -> Any:
    """A network with one output a row, whose rows `mix` takes apart or together."""
    return lambda x, p: mix(x.flatten(-1) @ p.unsqueeze(1))


ONE_COLUMN = {  # networks with one output a row, which are one chain only where row i depends on row i alone
    "a product along the batch": lambda x, p: p.sum().expand(6, 6).triu() @ (x @ p.unsqueeze(1)),
    "the batch turned round": column(lambda y: y.flip(0)),
    "sums along the batch": column(lambda y: y.cumsum(0)),
    "the batch less its mean": column(lambda y: y - y.mean(0)),
    "the first rows alone": column(lambda y: y[:4]),
    "rows added": column(lambda y: y.sum(0, keepdim=True)),
    "more rows than samples": column(lambda y: torch.cat([y, y], 0)),
    "features as rows": lambda x, p: x.reshape(-1, 1) * p[0],
    "features before samples": lambda x, p: (x * p).transpose(0, 1).sum(1, keepdim=True),
    "apart": column(lambda y: y.relu()),
}


@pytest.mark.parametrize("weighted", ["given", "trained", "not given"])
@pytest.mark.parametrize("name", ONE_COLUMN)
def test_one_output_a_row_equals_double_backward_however_rows_depend_on_samples(name, weighted):
    model, x = Function(ONE_COLUMN[name]).double(), torch.randn(6, 4).double().requires_grad_()
    assert (name == "apart") == apart(model, x)
    u = None
    if weighted != "not given":
        u = torch.randn_like(model(x)).detach().requires_grad_(weighted == "trained")
    steps = []
    for engine in ("sweep", "autograd"):
        output, attribution = xa.attribute(model, x, cotangent=u, engine=engine)
        leaves = [t for t in (x, model.p, u) if t is not None and t.requires_grad]
        found = torch.autograd.grad(output.sin().sum() + attribution.sin().sum(), leaves)
        steps.append((output, attribution, *found))
    torch.testing.assert_close(*steps)
