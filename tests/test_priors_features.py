"""Priors that know something of the features: what each promises beyond the table of all priors, and its refusals."""

import math

import pytest
import torch
from prior_cases import PRIORS, adjacency, half_mask
from torch.autograd import gradcheck

from xattr_cuda import priors


def randn(*shape, **options):
    return torch.randn(*shape, dtype=torch.float64, **options)


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)


@pytest.mark.filterwarnings("ignore:Sparse")  # PyTorch's own, at the making of a sparse tensor
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "uncoalesced", "with zeros", "integers", "bool", "diagonal"])
def test_a_graph_may_be_written_in_many_ways(layout):
    a, w = randn(4, 7), adjacency((4, 7)).double()
    if layout in ("integers", "bool"):
        w = (w > 0).to(torch.int64 if layout == "integers" else torch.bool)
    want = priors.graph_laplacian(w.double())(a)
    i, j = torch.cartesian_prod(torch.arange(7), torch.arange(7)).T
    if layout == "with zeros":  # written out, on one side only
        w = torch.where((i - j).abs().reshape(7, 7) <= 2, w, 0)
        i, j = i[i <= j + 2], j[i <= j + 2]
        want = priors.graph_laplacian(w)(a)
        assert want > 0
    given = {
        "coo": lambda: w.to_sparse(),
        "csr": lambda: w.to_sparse_csr(),
        "csc": lambda: w.to_sparse_csc(),
        "uncoalesced": lambda: torch.sparse_coo_tensor([[*i, *i], [*j, *j]], [*w[i, j] / 2] * 2, (7, 7)),
        "with zeros": lambda: torch.sparse_coo_tensor(torch.stack([i, j]), w[i, j], (7, 7)),
        "diagonal": lambda: w + torch.eye(7) * 5,
    }.get(layout, lambda: w)()
    same(priors.graph_laplacian(given)(a), want)


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        ([[0.0]], TypeError, "`adjacency` is a list"),
        (torch.zeros(2, 3), ValueError, r"shape \[2, 3\]; wanted \[n, n\]"),
        (torch.tensor([[0.0, 1.0], [2.0, 0.0]]), ValueError, "not symmetric"),
        (torch.tensor([[0.0, 1.0], [0.0, 0.0]]), ValueError, "not symmetric"),
        (torch.tensor([[0.0, -1.0], [-1.0, 0.0]]), ValueError, "negative or not finite"),
        (torch.tensor([[0.0, math.nan], [math.nan, 0.0]]), ValueError, "negative or not finite"),
    ],
)
def test_what_is_no_undirected_graph_is_refused(wrong, error, match):
    with pytest.raises(error, match=f"graph_laplacian: .*{match}"):
        priors.graph_laplacian(wrong)


def test_a_graph_of_other_features_is_refused():
    for a in (torch.rand(4, 6), torch.rand(0, 6), torch.rand(4, 2, 4)):
        with pytest.raises(ValueError, match=r"graph_laplacian: `attribution`.*features; wanted 7"):
            priors.graph_laplacian(adjacency((1, 7)))(a)


def test_protected_features_may_be_a_mask_or_numbers_in_any_order_and_repeated():
    a = randn(4, 2, 3)
    want = a[:, 0, 1].abs().sum() + a[:, 1, 2].abs().sum()
    for protected in (torch.tensor([[False, True, False], [False, False, True]]), [5, 1], torch.tensor([1, 5, 1])):
        same(priors.fairness(protected)(a), want / a.abs().sum())
        same(priors.fairness(protected, share=False)(a), want / 4)


def test_protected_features_that_the_attribution_lacks_are_refused():
    for wrong, match in [
        ([6], r"feature 6, but the attribution \[4, 6\] has 6"),
        (half_mask((1, 5)), r"shape \[5\]; wanted \[6\]"),
        (half_mask((1, 2, 3)), r"shape \[2, 3\]; wanted \[6\]"),
    ]:
        with pytest.raises(ValueError, match=f"fairness: `protected`.*{match}"):
            priors.fairness(wrong)(torch.rand(4, 6))
    for wrong, error in [([-1], ValueError), ([], ValueError), ([0.5], TypeError), (torch.tensor(3), TypeError)]:
        with pytest.raises(error, match="fairness: `protected`"):
            priors.fairness(wrong)


def test_a_target_is_met_where_attribution_is_proportional_to_it_and_nowhere_else():
    t = torch.rand(6, dtype=torch.float64) + 0.1
    t[2] = 0
    for of_mean in (False, True):
        prior = priors.target_distribution(t, of_mean=of_mean)
        a = (t * torch.tensor([[2.0], [-0.3], [1e-4]])).requires_grad_()
        value = prior(a)
        value.backward()
        assert abs(value.item()) <= 1e-15
        assert a.grad.abs().max() <= 1e-9
        assert prior(a.detach().roll(1, 1)).item() > 0.01


def test_each_sample_may_have_its_own_target_or_none():
    a, t = randn(4, 2, 3), torch.rand(4, 2, 3, dtype=torch.float64)
    rows = [priors.target_distribution(t[b])(a[b : b + 1]) for b in range(4)]
    same(priors.target_distribution(t)(a), sum(rows) / 4)
    t[1] = 0
    same(priors.target_distribution(t)(a), (sum(rows) - rows[1]) / 4)
    assert gradcheck(priors.target_distribution(t), (a.requires_grad_(),))


def test_the_mean_may_meet_a_target_that_no_sample_meets():
    a, t = torch.eye(5, dtype=torch.float64), torch.ones(5)
    assert priors.target_distribution(t, of_mean=True)(a).item() == pytest.approx(0, abs=1e-15)
    assert priors.target_distribution(t)(a).item() > 1


def test_the_worst_divergence_is_the_documented_one():
    a, t = torch.tensor([[0.0, 0.0, 3.0]], dtype=torch.float64), torch.tensor([1.0, 0.0, 0.0])
    for smoothing in (1e-3, 1e-8):
        value = priors.target_distribution(t, smoothing=smoothing)(a).item()
        bound = math.log(1 + 3 / smoothing)
        assert 0.99 * bound < value <= bound


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"target": [1.0]}, TypeError, "`target` is a list"),
        ({"target": torch.tensor([1.0, -1.0])}, ValueError, "`target` has values that are negative"),
        ({"target": torch.tensor([1.0, math.inf])}, ValueError, "`target` has values that are negative or not finite"),
        ({"target": torch.ones(6), "smoothing": 0.0}, ValueError, r"`smoothing` is 0\.0"),
        ({"target": torch.ones(1)}, ValueError, r"`target` has shape \[1\]; wanted \[6\].*or \[4, 6\]"),
        ({"target": torch.ones(3, 6)}, ValueError, r"`target` has shape \[3, 6\]"),
        ({"target": torch.ones(4, 6), "of_mean": True}, ValueError, r"`target` has shape \[4, 6\]; wanted \[6\]"),
    ],
)
def test_what_is_no_target_is_refused(options, error, match):
    with pytest.raises(error, match=f"target_distribution: {match}"):
        priors.target_distribution(**options)(torch.rand(4, 6))


def test_outside_of_everything_is_all_and_outside_of_nothing_is_none():
    a = randn(4, 6)
    assert priors.outside(torch.zeros(6))(a).item() == pytest.approx(1, rel=1e-12)
    assert priors.outside(torch.ones(6))(a).item() == 0
    mask = torch.rand(4, 6) > 0.5
    same(priors.outside(mask, share=False)(a), a[~mask].abs().sum() / 4)


def test_a_sample_without_attribution_counts_as_nothing_outside():
    a = randn(4, 6)
    want = priors.outside(torch.arange(6) / 5)(a)
    padded = torch.cat([a, torch.zeros(4, 6)]).requires_grad_()
    value = priors.outside(torch.arange(6) / 5)(padded)
    value.backward()
    same(2 * value, want)
    assert not padded.grad[4:].any()


@pytest.mark.parametrize("mask", [torch.tensor([0.5, 1.1]), torch.tensor([-0.1, 0]), torch.tensor([math.nan, 0])])
def test_a_soft_mask_out_of_range_is_refused(mask):
    with pytest.raises(ValueError, match=r"outside: `mask` has values outside of \[0, 1\]"):
        priors.outside(mask)


def test_masks_that_do_not_broadcast_and_no_masks_are_refused():
    with pytest.raises(ValueError, match=r"outside: `mask` has shape \[5\].*\[4, 6\]"):
        priors.outside(torch.ones(5))(torch.rand(4, 6))
    with pytest.raises(TypeError, match="outside: `mask` is a list"):
        priors.outside([1.0])


def test_consistency_undoes_the_augmentation_and_sends_a_gradient_into_both():
    a, b = randn(4, 2, 3, 3, requires_grad=True), randn(4, 2, 3, 3, requires_grad=True)
    undo = lambda c: c.flip(-1)  # noqa: E731
    assert priors.consistency(a, a.flip(-1), undo).item() == 0
    same(priors.consistency(a, b, undo), (a - b.flip(-1)).square().sum() / 4)
    assert gradcheck(lambda a, b: priors.consistency(a, b, undo), (a, b))


def test_attributions_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"consistency: `augmented` has shape \[4, 5\]; wanted .*\[4, 6\]"):
        priors.consistency(torch.rand(4, 6), torch.rand(4, 5))
    with pytest.raises(ValueError, match=r"shape \[6, 4\] after `inverse`"):
        priors.consistency(torch.rand(4, 6), torch.rand(4, 6), lambda a: a.T)
    with pytest.raises(TypeError, match="consistency: `augmented` is a list"):
        priors.consistency(torch.rand(4, 6), [1.0])


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_are_finite_at_zeros_tiny_numbers_and_lone_features(name, dtype):
    shape = (4, 3, 4)
    tiny = torch.finfo(dtype).smallest_normal
    lone = torch.zeros(shape)
    lone[:, 1, 2] = 1
    for a in (torch.zeros(shape), torch.full(shape, tiny), torch.full(shape, tiny / 64), lone, -lone):
        a = a.to(dtype).requires_grad_()
        value = PRIORS[name][0](shape)(a)
        value.backward()
        assert value.isfinite()
        assert not a.grad.isnan().any()


@pytest.mark.parametrize("name", PRIORS)
def test_nan_goes_through(name):
    a = torch.randn(4, 3, 4)
    a[1, 0, 0] = math.nan
    assert PRIORS[name][0](a.shape)(a).isnan()


@pytest.mark.parametrize("name", PRIORS)
def test_sums_of_bfloat16_are_taken_in_float32(name):
    a = torch.randn(64, 8, 8).bfloat16().requires_grad_()
    wide = a.detach().float().requires_grad_()
    for x in (a, wide):
        PRIORS[name][0](a.shape)(x).backward()
    allowed = torch.finfo(torch.bfloat16).eps * wide.grad.abs().max().item()  # autograd adds consistency's two in bf16
    torch.testing.assert_close(a.grad.float(), wide.grad, rtol=0, atol=allowed)
