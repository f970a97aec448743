"""Priors: each against an independent formula, its derivative, and its documented scale."""

import doctest
import math

import pytest
import torch
from prior_cases import PRIORS
from torch.autograd import gradcheck

import xattr_cuda as xa
from xattr_cuda import priors

SHAPES = [(7, 5), (1, 1), (4, 3, 6), (5, 2, 4, 3)]


by_prior = pytest.mark.parametrize("name", PRIORS)
CASES = [(name, shape) for name in PRIORS for shape in SHAPES if name != "total_variation" or len(shape) > 2]


def prior_for(name, shape):
    return PRIORS[name][0](shape)


def test_every_prior_is_tested():
    assert {name.split(",")[0] for name in PRIORS} == set(priors.__all__) - {"Schedule", "schedule"}


@pytest.mark.parametrize("name", sorted(set(priors.__all__) - {"Schedule"}))
def test_the_example_of_every_docstring_runs_and_gives_what_it_says(name):
    (found,) = (test for test in doctest.DocTestFinder().find(getattr(priors, name), name, globs={}) if test.examples)
    assert 4 <= len(found.examples) <= 5
    runner = doctest.DocTestRunner()
    said = []
    runner.run(found, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
def test_value_is_that_of_the_formula(name, shape, backend):
    prior, a = prior_for(name, shape), torch.randn(shape, dtype=torch.float64)
    value = prior(a)
    assert value.shape == ()
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(PRIORS[name][1](a.numpy()), rel=1e-12, abs=1e-15)


@by_prior
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 2, 3, 3)], ids=str)
def test_gradcheck(name, shape, backend):
    # Apart by more than the step of the differences: no two values, sums over the batch or neighbours are close.
    a = (torch.randperm(math.prod(shape)).double() + 1 + torch.rand(math.prod(shape)) / 4).reshape(shape)
    a = a * torch.where(torch.rand(shape[1:]) > 0.5, 1, -1)
    assert gradcheck(prior_for(name, shape), (a.requires_grad_(),))


@by_prior
@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_a_repeated_batch_has_the_same_value(name, shape, backend):
    a = torch.randn(shape, dtype=torch.float64)
    prior = prior_for(name, shape)
    assert prior(torch.cat([a, a, a])).item() == pytest.approx(prior(a).item(), rel=1e-12)


@by_prior
@pytest.mark.parametrize("factor", [3.0, -0.25])
def test_a_factor_scales_the_value_by_its_documented_power(name, factor, backend):
    a = torch.randn(4, 3, 6, dtype=torch.float64)
    prior, power = prior_for(name, a.shape), PRIORS[name][2]
    assert prior(factor * a).item() == pytest.approx(abs(factor) ** power * prior(a).item(), rel=1e-12)


@by_prior
@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 4, 0), (3, 0, 5)], ids=str)
def test_an_empty_attribution_costs_nothing(name, shape, backend):
    a = torch.empty(shape, requires_grad=True)
    value = prior_for(name, shape)(a)
    value.backward()
    assert value.item() == 0
    assert a.grad.shape == a.shape


@by_prior
def test_zeros_cost_nothing_and_have_a_finite_gradient(name, backend):
    a = torch.zeros(4, 3, 6, requires_grad=True)
    value = prior_for(name, a.shape)(a)
    value.backward()
    assert value.item() == 0
    assert not a.grad.any()


@by_prior
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_dtype_is_kept(name, dtype, backend):
    a = torch.randn(4, 3, 6, dtype=dtype, requires_grad=True)
    value = prior_for(name, a.shape)(a)
    value.backward()
    assert value.dtype == a.grad.dtype == dtype
    want = PRIORS[name][1](a.detach().double().numpy())
    assert value.item() == pytest.approx(want, rel=4 * torch.finfo(dtype).eps)


@by_prior
def test_strided_attributions_give_the_same(name, backend):
    a = torch.randn(4, 6, 3, dtype=torch.float64).transpose(1, 2)
    prior = prior_for(name, a.shape)
    assert prior(a).item() == pytest.approx(prior(a.contiguous()).item(), rel=1e-12)


def test_gini_lies_between_minus_one_and_zero(backend):
    concentrated = torch.zeros(4, 100)
    concentrated[:, 7] = torch.tensor([1.0, -2, 3, 4])
    assert priors.gini(concentrated).item() == pytest.approx(-0.99)
    assert priors.gini(torch.full((4, 100), -2.0)).item() == pytest.approx(0, abs=1e-6)


def test_right_reasons_takes_a_mask_for_each_sample_and_weights(backend):
    a = torch.randn(4, 6, dtype=torch.float64)
    mask = torch.rand(4, 6) > 0.5
    assert priors.right_reasons(mask)(a).item() == pytest.approx(a[mask].square().sum().item() / 4, rel=1e-12)
    weights = torch.rand(6)
    want = (weights.double() * a).square().sum().item() / 4
    assert priors.right_reasons(weights)(a).item() == pytest.approx(want, rel=1e-12)


@by_prior
@pytest.mark.parametrize(
    ("wrong", "error", "given"),
    [
        (torch.zeros(4, 3, 6, dtype=torch.long), TypeError, "int64"),
        ([1.0], TypeError, "list"),
        ((torch.zeros(4, 3, 6),), TypeError, "tuple"),
        (torch.tensor(1.0), ValueError, r"\[\]"),
    ],
)
def test_something_else_than_an_attribution_is_refused_with_the_prior_s_name(name, wrong, error, given):
    with pytest.raises(error, match=f"{name.split(',')[0]}: `attribution`.*{given}.*wanted"):
        prior_for(name, (4, 3, 6))(wrong)


def test_too_few_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"gini: `attribution` has shape \[4\].*2 dimensions"):
        priors.gini(torch.rand(4))
    with pytest.raises(ValueError, match=r"total_variation: `attribution` has shape \[4, 5\].*3 dimensions"):
        priors.total_variation(torch.rand(4, 5))


@pytest.mark.parametrize("shape", [(5,), (3, 6), (2, 4, 6), (7, 1)], ids=str)
def test_a_mask_that_does_not_broadcast_is_refused(shape):
    with pytest.raises(ValueError, match=r"right_reasons: `mask` has shape.*\[4, 6\]"):
        priors.right_reasons(torch.ones(shape))(torch.rand(4, 6))
    with pytest.raises(TypeError, match="right_reasons: `mask` is a list"):
        priors.right_reasons([True])


@by_prior
def test_a_network_can_be_trained_on_it(name, backend):
    model = xa.models.xmlp([6, 8, 1])
    _, attribution = xa.attribute(model, torch.randn(4, 6))
    prior_for(name, (4, 2, 3))(attribution.reshape(4, 2, 3)).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_all_of_them_fit_into_one_compiled_graph():
    a = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    made = [prior_for(name, a.shape) for name in PRIORS]
    torch.compiler.reset()
    found = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
        value = wrap(lambda a: sum(prior(a) for prior in made))(a)
        found.append((value, *torch.autograd.grad(value, a)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)
