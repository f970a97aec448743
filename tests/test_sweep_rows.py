"""Attribution of some rows: the numbers of the whole batch, at the cost of these rows."""

import re
from itertools import combinations, count
from typing import Any

import graphs
import pytest
import torch
from helpers import assert_same_step
from row_steps import loss_step, small_convnet, step
from steps import convnet
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import xattr_cuda as xa
from xattr_cuda.sweep import perceptron_function
from xattr_cuda.sweep.perceptron import Perceptron

B = 40
ROWS = {
    "the first": slice(0, 10),
    "a stretch": slice(7, 20),
    "the last": slice(-11, None),
    "every third, backwards": slice(38, 2, -3),
    "numbers": torch.tensor([5, 3, 39, 12]),
    "a mask": torch.arange(B) % 7 == 0,
    "none": torch.tensor([], dtype=torch.int64),
    "one": slice(4, 5),
    "all": slice(None),
    "all, in another order": torch.arange(B).flip(0),
}


def frozen(model: nn.Module) -> nn.Module:
    model[0].weight.requires_grad_(False)
    return model


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "a perceptron with one output": (lambda: xa.models.xmlp([20, 33, 40, 1]), (20,)),
    "a perceptron with three": (lambda: xa.models.xmlp([20, 33, 40, 3]), (20,)),
    "a perceptron, its first layer frozen": (lambda: frozen(xa.models.xmlp([20, 33, 40, 1])), (20,)),
    "a perceptron with learned slopes": (lambda: xa.models.xmlp([20, 33, 1], activation=nn.PReLU), (20,)),
    "a convnet": (small_convnet, (3, 8, 8)),
    "a convnet with the batch's moments": (lambda: small_convnet(scale=True), (3, 8, 8)),
}
FIRST = next(iter(NETWORKS))
PAIRS = [(FIRST, rows) for rows in ROWS]
PAIRS += [(network, rows) for network in NETWORKS if network != FIRST for rows in ("a stretch", "numbers")]


def drawn(network: str, batch: int = B) -> tuple[nn.Module, Tensor, Any]:
    build, sample = NETWORKS[network]
    model, x = build().double(), torch.randn(batch, *sample).double()
    outputs = 1 if network.startswith("a perceptron") and "three" not in network else 3
    return model, x, None if outputs == 1 else torch.randint(outputs, (batch,))


@pytest.mark.parametrize(("network", "rows"), PAIRS)
def test_every_number_is_that_of_double_backward(network, rows):
    model, x, target = drawn(network)
    assert_same_step(*(step(model, x, ROWS[rows], engine, target) for engine in ("sweep", "autograd")))
    assert_same_step(*(loss_step(model, x, ROWS[rows], engine) for engine in ("sweep", "autograd")))


@pytest.mark.parametrize("who", ["C++", "Python"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("rows", ["the first", "numbers", "none"])
def test_the_node_of_a_perceptron_has_the_gradient_of_a_cotangent(outputs, who, rows, monkeypatch):
    if who == "Python":
        monkeypatch.setattr(Perceptron, "_node", perceptron_function)
    model, x = xa.models.xmlp([20, 33, 33, outputs]).double(), torch.randn(B, 20).double()
    u = torch.randn(B, outputs).double()
    assert_same_step(*(step(model, x, ROWS[rows], engine, cotangent=u) for engine in ("sweep", "autograd")))
    assert_same_step(*(loss_step(model, x, ROWS[rows], engine) for engine in ("sweep", "autograd")))


# PyTorch itself cannot view an empty batch as [0, -1], as "functional" and "sizes" do.
EDGES = [(name, rows) for name in ("functional", "sizes", "several outputs") for rows in ("none", "all")]


@pytest.mark.parametrize(("name", "rows"), [*((name, "one") for name in graphs.CASES), *EDGES])
def test_networks_of_every_structure_have_the_rows_of_the_whole(name, rows):
    model, inputs = graphs.build(name, batch=4)
    model.eval()
    with torch.no_grad():
        u = pytree.tree_map(torch.randn_like, model(*(x.clone() for x in inputs)))
    chosen = {"one": slice(2, 3), "none": slice(0, 0), "all": torch.tensor([2, 0, 3, 1])}[rows]
    whole, part = (xa.attribute(model, inputs, cotangent=u, rows=r) for r in (None, chosen))
    torch.testing.assert_close(pytree.tree_leaves(part.output), pytree.tree_leaves(whole.output))
    torch.testing.assert_close(part.attribution, tuple(a[chosen] for a in whole.attribution))

    def gradients(result, rows):
        total = sum(y.sin().sum() for y in pytree.tree_leaves(result.output))
        total = total + sum(a[rows].square().sum() for a in result.attribution)
        found = torch.autograd.grad(total, list(model.parameters()), allow_unused=True, materialize_grads=True)
        return list(found)

    torch.testing.assert_close(gradients(part, slice(None)), gradients(whole, chosen))


class Rows(TorchDispatchMode):
    """(operator, rows of its first tensor) of the calls of the package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "xattr":
            first = next(a for a in args if isinstance(a, Tensor))
            self.calls.append((func._schema.name.removeprefix("xattr::"), len(first)))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(xa.ops.extension is None, reason="the C++ extension was not built")
@pytest.mark.parametrize("loss", [False, True], ids=["attribute", "attribute_loss"])
def test_a_perceptron_takes_each_row_through_one_chain_in_native_calls(loss):
    model, x = xa.models.xmlp([20, 33, 33, 1]), torch.randn(B, 20)
    with Rows() as seen:
        if loss:
            total, _, a = xa.attribute_loss(model, x, lambda y: y.square().mean(), rows=0.25)
        else:
            output, a = xa.attribute(model, x, rows=0.25)
            total = output.square().mean()
        (total + xa.priors.l1(a)).backward()
    forward, backward = seen.calls[:2], sorted(seen.calls[2:])
    assert forward == [("mlp_attribute", 10), ("mlp_attribute", 30)]
    assert backward == [("mlp_attribute_backward", 10), ("mlp_attribute_backward", 30)]


def test_a_parametrised_weight_is_computed_once_a_step():
    calls = count()

    class Twice(nn.Module):
        def forward(self, w):
            next(calls)
            return 2 * w

    model = xa.models.xmlp([5, 6, 2])
    torch.nn.utils.parametrize.register_parametrization(model[0], "weight", Twice())
    xa.attribute(model, torch.randn(7, 5), 0)  # traces it
    before = next(calls)
    xa.attribute(model, torch.randn(7, 5), 0, rows=slice(0, 2)).attribution.sum().backward()
    assert next(calls) == before + 2


def test_several_inputs_have_these_rows_each():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4, bias=False), nn.Linear(5, 4, bias=False)

        def forward(self, x, y):
            return torch.relu(self.a(x) + self.b(y))

    model, xs = Two(), (torch.randn(9, 3), torch.randn(9, 5))
    whole, part = (xa.attribute(model, xs, 1, rows=r) for r in (None, torch.tensor([8, 2])))
    for a, b in zip(part.attribution, whole.attribution, strict=True):
        torch.testing.assert_close(a, b[[8, 2]])
    with pytest.raises(ValueError, match=re.escape("`inputs[1]` has 4 rows and `inputs[0]` 9")):
        xa.attribute(model, (xs[0], xs[1][:4]), 1, rows=slice(0, 2))


def test_targets_are_those_of_the_whole_batch():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 5, 1, bias=False))
    x = torch.randn(4, 3, 6, 6)
    targets: list[Any] = [(2, 1, 3), [(0, 1, 2), (1, 2, 3), (4, 0, 0), (3, 5, 5)]]
    for target in targets:
        whole, part = (xa.attribute(model, x, target, rows=r) for r in (None, torch.tensor([3, 1])))
        torch.testing.assert_close(part.attribution, whole.attribution[[3, 1]])
        torch.testing.assert_close(part.output, whole.output)
    with pytest.raises(ValueError, match="list of 2 for a batch of 4"):
        xa.attribute(model, x, [(0, 1, 2), (1, 2, 3)], rows=slice(0, 2))


@pytest.mark.parametrize("engine", ["sweep", "autograd"])
def test_a_step_without_gradients_has_the_same_numbers(engine):
    for network in ("a perceptron with one output", "a perceptron with three", "a convnet"):
        model, x, target = drawn(network)
        u = torch.randn_like(model(x))
        with torch.no_grad():
            whole, part = (xa.attribute(model, x, target, rows=r) for r in (None, slice(3, 9)))
            weighted = [xa.attribute(model, x, cotangent=u, rows=r) for r in (None, slice(3, 9))]
            loss = [xa.attribute_loss(model, x, lambda y: y.square().mean(), rows=r) for r in (None, slice(3, 9))]
        torch.testing.assert_close(part.attribution, whole.attribution[3:9])
        torch.testing.assert_close(weighted[1].attribution, weighted[0].attribution[3:9])
        torch.testing.assert_close(loss[1].attribution, loss[0].attribution[3:9])
        torch.testing.assert_close(loss[1].loss, loss[0].loss)
        assert not any(t.requires_grad for t in (*part, *weighted[1], *loss[1]))


def test_channels_last_stays_channels_last():
    model = convnet(8, 16, 4).to(memory_format=torch.channels_last)
    x = torch.randn(6, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    whole = xa.attribute(model, x, 1).attribution
    for rows in (slice(0, 2), torch.tensor([5, 2])):
        part = xa.attribute(model, x, 1, rows=rows).attribution
        torch.testing.assert_close(part, whole[rows])
        assert part.is_contiguous(memory_format=torch.channels_last)


def test_autocast_is_applied_to_both_parts():
    for network in ("a perceptron with one output", "a convnet"):
        model, x, target = drawn(network)
        model, x = model.float(), x.float()
        with torch.autocast("cpu", torch.bfloat16):
            whole, part = (xa.attribute(model, x, target, rows=r) for r in (None, slice(0, 32)))
            loss, _, a = xa.attribute_loss(model, x, lambda y: y.float().square().mean(), rows=slice(0, 32))
        assert part.output.dtype == whole.output.dtype == torch.bfloat16
        torch.testing.assert_close(part.attribution, whole.attribution[:32], rtol=0.05, atol=0.05)
        (loss + a.float().square().mean()).backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def shares(batch: int, size: int) -> list[Tensor]:
    return [torch.tensor(rows) for rows in combinations(range(batch), size)]


@pytest.mark.parametrize("prior", ["l1", "total_variation"])
def test_priors_that_are_means_over_rows_are_unbiased_and_so_are_their_gradients(prior):
    model, x = small_convnet().double(), torch.randn(5, 3, 8, 8).double()

    def value(rows):
        found = getattr(xa.priors, prior)(xa.attribute(model, x, 2, rows=rows).attribution)
        return torch.cat(
            [found.detach().reshape(1), *map(torch.flatten, torch.autograd.grad(found, model.parameters()))]
        )

    every = [value(rows) for rows in shares(5, 2)]  # each share of two rows is as likely as another
    torch.testing.assert_close(torch.stack(every).mean(0), value(None), rtol=1e-9, atol=1e-12)


def test_gini_is_no_mean_over_rows():
    model, x = xa.models.xmlp([6, 16, 1]).double(), torch.randn(5, 6).double()
    values = [xa.priors.gini(xa.attribute(model, x, rows=rows).attribution).detach() for rows in shares(5, 2)]
    whole = xa.priors.gini(xa.attribute(model, x).attribution).detach()
    assert (torch.stack(values).mean() - whole).abs() > 1e-3


def test_rows_are_drawn_evenly_and_by_the_generator():
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    first, again = (xa.sample_rows(50, 0.2, g) for g in generators)
    assert torch.equal(first, again)
    assert len(first) == 10 == len(first.unique())
    assert torch.equal(first, first.sort().values)
    drawn = torch.stack([xa.sample_rows(20, 0.25) for _ in range(800)])
    counts = torch.bincount(drawn.flatten(), minlength=20)
    assert (counts - 200).abs().max() < 6 * (800 * 0.25 * 0.75) ** 0.5
    assert [len(xa.sample_rows(*args)) for args in ((3, 0.01), (0, 0.5), (4, 1), (8, 0.99))] == [1, 0, 4, 8]


def test_a_fraction_draws_what_sample_rows_draws():
    model, x = xa.models.xmlp([6, 16, 1]), torch.randn(12, 6)
    rows = xa.sample_rows(12, 0.5, torch.Generator().manual_seed(5))
    want = xa.attribute(model, x).attribution[rows]
    got = xa.attribute(model, x, rows=0.5, generator=torch.Generator().manual_seed(5)).attribution
    torch.testing.assert_close(got, want)
    sweep = xa.Sweep(model, lambda y: y.mean())
    assert len(sweep(x, rows=0.25).attribution) == 3
    assert len(sweep(x, rows=1.0).attribution) == 12
    empty = xa.attribute(model, x[:0], rows=0.25)
    assert empty.attribution.shape == (0, 6)
    assert empty.output.shape == (0, 1)


def test_the_operator_that_parts_rows_is_one_that_compiled_graphs_may_call():
    torch.library.opcheck(torch.ops.xattr_rows.parted.default, (torch.tensor([2, 0]), 5))


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "out of range": (torch.tensor([0, 12]), IndexError, "out of range; wanted 0 to 11"),
    "negative": (torch.tensor([-1]), IndexError, "out of range; wanted 0 to 11"),
    "twice": (torch.tensor([3, 3]), ValueError, "there twice"),
    "too many": (torch.arange(13), ValueError, "13 numbers for a batch of 12"),
    "floating": (torch.tensor([0.5]), TypeError, "dtype torch.float32; wanted integers"),
    "a matrix": (torch.zeros(2, 2, dtype=torch.int64), ValueError, "has shape [2, 2]"),
    "a short mask": (torch.ones(3, dtype=torch.bool), ValueError, "a mask of 3 for a batch of 12"),
    "a fraction of zero": (0.0, ValueError, "is 0.0; wanted a number over 0, up to 1"),
    "more than all": (1.5, ValueError, "is 1.5; wanted a number over 0, up to 1"),
    "an int": (3, TypeError, "`rows` is a int"),
    "a list": ([0, 1], TypeError, "`rows` is a list"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("engine", ["sweep", "autograd"])
def test_wrong_rows_are_refused(name, engine):
    rows, error, message = WRONG[name]
    with pytest.raises(error, match=re.escape(message)):
        xa.attribute(xa.models.xmlp([6, 8, 1]), torch.randn(12, 6), rows=rows, engine=engine)


def test_wrong_generators_and_fractions_are_refused():
    model, x, generator = xa.models.xmlp([6, 8, 1]), torch.randn(12, 6), torch.Generator()
    for rows in (None, slice(0, 2), torch.tensor([1])):
        with pytest.raises(ValueError, match="`generator` draws a fraction of the rows"):
            xa.attribute(model, x, rows=rows, generator=generator)
    with pytest.raises(TypeError, match="`fraction` is a str"):
        xa.sample_rows(3, "a")
    with pytest.raises(ValueError, match="a fraction of rows is 2"):
        xa.sample_rows(3, 2)


@pytest.mark.parametrize("loss", [False, True], ids=["attribute", "attribute_loss"])
@pytest.mark.parametrize("network", ["a perceptron with three", "a convnet", "a convnet with the batch's moments"])
def test_a_compiled_step_gives_every_parameter_its_gradient(network, loss):
    model, x, target = drawn(network, batch=12)
    model, x = model.float(), x.float()
    sweep = xa.Sweep(model, (lambda y: y.square().mean()) if loss else None)

    def of(x, rows):
        if loss:
            value, _, a = sweep(x, rows=rows)
        else:
            output, a = sweep(x, target, rows=rows)
            value = output.sin().sum()
        return value + a.square().sum()

    def gradients(of, rows):
        model.zero_grad(set_to_none=True)
        of(x, rows).backward()
        return [p.grad.clone() for p in model.parameters()]

    torch.compiler.reset()
    compiled = torch.compile(of, fullgraph=True, backend="aot_eager")
    for rows in (torch.tensor([3, 1, 7]), torch.tensor([2, 11, 0]), slice(0, 4)):
        torch.testing.assert_close(gradients(compiled, rows), gradients(of, rows))
    with pytest.raises(ValueError, match="there twice"):
        compiled(x, torch.tensor([3, 3, 1]))


def test_what_a_compiled_step_cannot_choose_is_refused_when_it_is_called():
    sweep, x = xa.Sweep(xa.models.xmlp([6, 8, 1])), torch.randn(12, 6)
    torch.compiler.reset()
    compiled = torch.compile(lambda x, **options: sweep(x, **options).attribution, backend="aot_eager", fullgraph=True)
    for options in ({"rows": torch.arange(12) < 3}, {"rows": 0.25, "generator": torch.Generator()}):
        with pytest.raises(Exception, match=re.escape("row numbers, not a mask") if len(options) == 1 else "enerator"):
            compiled(x, **options)
