"""The benchmark: cases, contestants' gradients, refusals, counts, memory."""

import functools
import statistics
import types

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from xattr_cuda.bench import count, measure, memory
from xattr_cuda.bench.cases import CASES, GINI, GROUPS, STEPS, Case, chosen, perceptron
from xattr_cuda.bench.check import WrongGradientsError, few_words
from xattr_cuda.bench.contestants import CONTESTANTS, Contestant, double_backward_loss, eager, selected
from xattr_cuda.bench.gini import gini_steps
from xattr_cuda.bench.problem import pose
from xattr_cuda.ops import SCHEMAS
from xattr_cuda.training.errors import UserError

EVERYONE = frozenset({"base", "share", "compiled", "sampled", "floor"})


def _convnet(dtype):
    layers = [nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(36, 3, bias=False)).to(dtype)


TINY = perceptron("tiny", [6, 9, 5, 1], 12, 3)
TINY_10 = perceptron("tiny-10", [6, 9, 5, 10], 12, 3)
IMAGES = Case("images", "a small convnet", _convnet, (2, 6, 6), 5, 3, 3, channels_last=True)


@pytest.fixture
def quick_compiler(monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@pytest.mark.parametrize("name", STEPS)
def test_a_case_draws_a_model_that_takes_its_batch(name):
    case = STEPS[name]
    model, x, labels = case.draw(torch.float32, 2)
    assert x.shape == (2, *case.sample)
    assert model(x).shape == (2, case.classes)
    assert labels.dtype == torch.int64
    assert all(p.any() for p in model.parameters())
    assert case.chains == (1 if case.classes == 1 else 2)
    assert x.is_contiguous(memory_format=torch.channels_last) == case.channels_last or x.dim() < 4


def test_groups_stand_for_cases_and_a_case_is_taken_once():
    assert [c.name for c in chosen(["narrow", "quick"])] == ["narrow", "paper", "paper-512"]
    assert [c.name for c in chosen(["all"])] == list(CASES)
    assert set(GROUPS["perceptrons"]) | set(GROUPS["convolutional"]) == set(STEPS)
    with pytest.raises(UserError, match="no case 'papper'; choose among paper, "):
        chosen(["papper"])


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", [TINY, TINY_10, IMAGES], ids=lambda case: case.name)
def test_every_contestant_has_the_gradients_of_its_reference(case):
    p, steps, failed = measure.prepare(case, groups=EVERYONE)
    assert not failed
    assert list(steps) == list(selected(p, EVERYONE))
    assert ("bare products" in steps) == (case.widths is not None)


def test_what_does_not_belong_to_a_group_does_not_take_part():
    names = list(selected(pose(TINY), frozenset({"base"})))
    assert names == ["plain", "double backward", "attribute", "attribute_loss"]
    assert all(one.words and one.group in EVERYONE for one in CONTESTANTS.values())


def _with(**others):
    return {"plain": CONTESTANTS["plain"], **others}


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32,)], ids=["always", "in float32"])
def test_wrong_gradients_are_refused(dtypes):
    def loss(p):
        return double_backward_loss(p) * (1.001 if p.x.dtype in dtypes else 1)

    wrong = Contestant("a thousandth too much", "base", eager(loss), double_backward_loss)
    with pytest.raises(
        WrongGradientsError, match="tiny is not timed: the gradient of parameter 0 by 'wrong' is off by"
    ):
        measure.prepare(TINY, _with(wrong=wrong))


def test_gradients_that_are_no_numbers_are_refused_even_without_a_reference():
    nan = Contestant("nothing", "sampled", eager(lambda p: double_backward_loss(p) * float("nan")), None)
    with pytest.raises(WrongGradientsError, match="by 'nan' is off by nan"):
        measure.prepare(TINY, _with(nan=nan))


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32,)], ids=["always", "in float32"])
def test_who_cannot_run_is_reported_with_the_reason(dtypes, monkeypatch):
    def loss(p):
        if p.x.dtype in dtypes:
            raise ValueError("no room\nand much more")
        return double_backward_loss(p)

    monkeypatch.setitem(CONTESTANTS, "attribute", Contestant("fails", "base", eager(loss), double_backward_loss))
    m = measure.measure(TINY, rounds=2)
    assert m.results["attribute"].failed == "failed: ValueError: no room"
    assert list(m.results) == ["plain", "double backward", "attribute", "attribute_loss"]
    assert m.to_json()["results"]["attribute"] == {"failed": "failed: ValueError: no room"}


def test_a_sampled_contestant_that_memory_cannot_hold_is_not_run(monkeypatch):
    monkeypatch.setattr("xattr_cuda.bench.check.available_bytes", lambda: 1000)
    _, steps, failed = measure.prepare(TINY, groups=frozenset({"base", "sampled"}))
    assert set(failed) == {"EG(1)", "EG(8)", "IG(16)"}
    assert all("GiB" in why for why in failed.values())
    assert set(steps) == {"plain", "double backward", "attribute", "attribute_loss"}
    monkeypatch.setattr("xattr_cuda.bench.gini.available_bytes", lambda: 1000)
    assert list(gini_steps(100)[1]) == ["pairwise"]


def test_few_words_are_few():
    assert few_words(ValueError("x" * 500)) == "ValueError: " + "x" * 85 + "..."
    assert few_words(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_measurement_says_when_it_is_where():
    told = []
    m = measure.measure(TINY, rounds=3, tell=lambda *args: told.append(args))
    assert told[0] == ("tiny: checking gradients", 0, 1)
    assert told[-1] == ("tiny: timing in turn", 6, 6)
    assert m.results["plain"].ratio == 1
    assert all(r.seconds.p20 <= r.seconds.p50 <= r.seconds.p80 for r in m.results.values())


def test_gini_is_timed_against_a_sort():
    m = measure.measure(GINI["gini-100"], rounds=2)
    assert list(m.results) == ["torch.sort", "gini", "pairwise"]
    assert m.to_json()["n"] == 100


def test_quantiles_and_ratios_of_rounds():
    values = torch.rand(101).tolist()
    got = measure.quantiles(values)
    want = torch.tensor(values).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
    assert list(got) == pytest.approx(want)
    assert measure.quantiles([3.0]) == (3, 3, 3)
    found = measure.summarise({"plain": [1.0, 2.0, 4.0], "other": [3.0, 4.0, 6.0]})
    assert found["other"].ratio == 2
    assert found["other"].ratios.p50 == statistics.median([3, 2, 1.5])
    assert found["plain"].ratios == (1, 1, 1)


QUARTER = ("plain", "attribute, rows=1/4")
KNOWN = {  # FLOPs of `attribute` over those of the plain step
    "paper": 1.58, "image-1": 1.47, "image-10": 2.10, "narrow": 1.50, "survival": 1.39,
    "small-vgg": 2.00, "xresnet18": 2.02, "xvgg16": 2.00,
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_counted_flops_are_those_of_the_formula(name):
    p = pose(STEPS[name], batch=4)
    layers = count.layer_flops(p)
    if p.widths:
        assert layers == count.perceptron_flops(p.widths, 4)
    names = ["plain", "attribute", "attribute_loss", "attribute, rows=1/4"]
    counts = count.add_counts(p, {name: CONTESTANTS[name].make(p) for name in names})
    assert counts["plain"]["flops"] == 3 * sum(layers) - layers[0]
    assert count.floor(layers, p.chains) == pytest.approx(KNOWN[name], abs=0.006)
    assert counts["attribute"]["flops ratio"] == pytest.approx(count.floor(layers, p.chains), abs=0.005)
    assert counts["attribute_loss"]["flops ratio"] == pytest.approx(count.floor(layers, 1), abs=0.005)
    assert counts["attribute, rows=1/4"]["flops ratio"] == pytest.approx(count.floor(layers, p.chains, 0.25), abs=0.005)
    assert counts["attribute"]["launches"] > 0


def test_a_quarter_of_the_rows_costs_a_quarter_of_a_forward_more_than_a_plain_step():
    case = STEPS["deep"]
    layers = count.perceptron_flops(case.widths, case.batch)
    found = count.add_counts(pose(case, batch=64), {n: CONTESTANTS[n].make(pose(case, batch=64)) for n in QUARTER})
    assert found["attribute, rows=1/4"]["flops ratio"] == pytest.approx(count.floor(layers, 1, 0.25), abs=0.005)
    first = 0.25 * layers[0] / count.plain_flops(layers)
    assert count.floor(layers, 1, 0.25) == pytest.approx(
        1 + 0.25 * sum(layers) / count.plain_flops(layers) + first, abs=1e-3
    )


def test_flops_are_those_of_pytorchs_counter():
    for case in (TINY, IMAGES):
        step = CONTESTANTS["double backward"].make(pose(case))
        with FlopCounterMode(display=False) as theirs:
            step()
        assert count.count(step).flops == theirs.get_total_flops()


def test_bare_products_have_the_flops_of_the_floor():
    for case in (TINY, TINY_10):
        p = pose(case)
        layers = count.layer_flops(p)
        plain = 3 * sum(layers) - layers[0]
        bare = count.count(CONTESTANTS["bare products"].make(p)).flops
        assert bare == pytest.approx(count.floor(layers, p.chains) * plain)


def test_bytes_are_those_of_distinct_tensors_and_views_are_free():
    a, b = torch.randn(4, 8), torch.randn(4, 8)
    with count.Counter() as counter:
        c = a.view(8, 4).t()  # views
        torch.empty(100)  # allocates only
        a + b  # reads two, writes one
        a * a  # reads one
        a.add_(b)  # reads two, writes one
        torch.mm(a, c, out=torch.empty(4, 4)) if c.shape[0] == 8 else torch.relu(a[:1].expand(4, 8))
    unit = a.numel() * 4
    assert counter.count.launches == 4
    assert counter.count.bytes == 3 * unit + 2 * unit + 3 * unit + unit // 4 + unit


def test_every_operator_multiplies_by_a_formula_or_not_at_all():
    assert set(SCHEMAS) == set(count.FORMULAS) | set(count.WITHOUT_PRODUCTS)
    assert not set(count.FORMULAS) & set(count.WITHOUT_PRODUCTS)


def test_flops_without_a_formula_are_not_reported(monkeypatch):
    p = pose(IMAGES)
    monkeypatch.setattr(count, "WITHOUT_PRODUCTS", ())
    counts = count.add_counts(p, {name: CONTESTANTS[name].make(p) for name in ("plain", "attribute")})
    assert "flops" in counts["plain"]
    assert "flops" not in counts["attribute"]


def test_every_formula_is_of_an_operator_or_waits_for_one():
    formulas = {"no_such_operator": lambda *args: 1, **count.FORMULAS}
    assert count.Counter(formulas).formulas.keys() == count.Counter().formulas.keys()


def test_resident_memory_is_what_a_step_takes():
    kept = []
    found = memory.resident_bytes(lambda: kept.append(torch.ones(16 * 2**20)))
    assert 60 * 2**20 <= found <= 90 * 2**20


def test_resident_memory_without_a_proc_file_system(monkeypatch):
    monkeypatch.setattr(memory, "Path", lambda *_: types.SimpleNamespace(write_text=_refuse))
    assert memory.resident_bytes(lambda: None) >= 0


def _refuse(*args, **kwargs):
    raise FileNotFoundError


def test_memory_of_a_fresh_process():
    found = memory.of_fresh_process("paper", "attribute", 1)
    assert found["resident bytes"] >= 0
    parameters = 4 * sum(p.numel() for p in pose(STEPS["paper"]).model.parameters())
    assert found["peak bytes"] > parameters  # the gradients at least
    with pytest.raises(RuntimeError, match="wanted: CASE CONTESTANT"):
        memory.of_fresh_process("paper", "nobody", 1)
