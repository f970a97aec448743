"""Expected Gradients: its expectation, its draws, its gradients, and its refusals."""

import pytest
import torch
from attr_cases import rows, smooth
from helpers import assert_same_step, collect, curved_loss, relative_error
from torch import Tensor, nn

from xattr_cuda.attr import ExpectedGradients, IntegratedGradients


def assert_unbiased(draws: Tensor, truth: Tensor) -> None:
    """Independent draws [N, F] have the mean `truth` [F], to six standard errors."""
    error = draws.std(0) / len(draws) ** 0.5
    assert (error > 0).all()
    assert ((draws.mean(0) - truth).abs() <= 6 * error).all()


@pytest.mark.parametrize("samples", [1, 3])
def test_the_expectation_is_the_mean_of_integrated_gradients_over_the_background(samples):
    model, x, background = smooth(), rows(1, 6), rows(7, 6)
    with torch.no_grad():
        truth = IntegratedGradients(model).attribute(x.expand(7, 6), background, 1).mean(0)
        draws = ExpectedGradients(model, background, samples).attribute(x.expand(4000, 6), target=1)
    assert_unbiased(draws, truth)


def test_samples_are_averaged():
    model, x, background = smooth(), rows(1, 6), rows(7, 6)
    with torch.no_grad():
        one, many = (ExpectedGradients(model, background, n).attribute(x.expand(2000, 6), target=1) for n in (1, 16))
    ratio = one.var(0) / many.var(0)
    assert ((ratio > 10) & (ratio < 25)).all()


def test_from_one_reference_a_linear_model_has_its_integrated_gradients_exactly():
    model, x, reference = nn.Linear(6, 3).double(), rows(5, 6), rows(1, 6)
    got, delta = ExpectedGradients(model, reference, 4).attribute(x, target=1, return_convergence_delta=True)
    assert relative_error(got, model.weight[1] * (x - reference)) <= 1e-12
    assert delta.abs().max() <= 1e-12


def test_the_delta_is_that_of_the_references_drawn():
    model, x, background = nn.Linear(6, 3).double(), rows(5, 6), rows(9, 6)
    given = {"target": [0, 2, 1, 1, 0], "return_convergence_delta": True}
    got, delta = ExpectedGradients(model, background, 4).attribute(x, **given)
    assert delta.shape == (5,)
    assert delta.abs().max() <= 1e-12  # a linear model is complete from any reference
    curved = smooth()
    got, delta = ExpectedGradients(curved, background[:1], 4).attribute(x, **{**given, "target": 1})
    output, start = curved(x)[:, 1], curved(background[:1])[:, 1]
    assert relative_error(delta, got.sum(1) - (output - start)) <= 1e-10


def test_the_inputs_of_a_sample_share_their_reference_and_its_place():
    x, references = rows(50, 4), rows(9, 4)
    model = lambda a, b: (a - b).square().sum(1)  # noqa: E731 - flat where both inputs are on the same path
    first, second = ExpectedGradients(model, (references, references), 3).attribute((x, x))
    assert first.shape == second.shape == (50, 4)
    assert not first.any()
    assert not second.any()


def test_every_reference_is_drawn_and_nothing_beyond_the_line():
    seen = []

    def model(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.sum(1)

    references = torch.arange(1.0, 6.0)[:, None].expand(5, 2)  # x is zero, so a point is (1 - alpha) * reference
    ExpectedGradients(model, references, 300).attribute(torch.zeros(4, 2))
    (points,) = seen
    assert points.shape == (1200, 2)
    assert torch.equal(points[:, 0], points[:, 1])
    assert 0 <= points.min() < 0.1
    assert 4.5 < points.max() <= 5
    assert len(points[:, 0].unique()) > 1100


def test_a_generator_repeats_the_draws_and_leaves_torch_s_own_alone():
    explain, x = ExpectedGradients(smooth(), rows(9, 6), 2), rows(5, 6)
    state = torch.get_rng_state()
    first, second = (explain.attribute(x, target=0, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, explain.attribute(x, target=0))
    generator = torch.Generator().manual_seed(3)
    later = [explain.attribute(x, target=0, generator=generator) for _ in range(2)]
    assert not torch.equal(*later)


def test_background_and_samples_can_be_given_at_the_call():
    model, x, background = smooth(), rows(5, 6), rows(9, 6)

    def attribute(explain: ExpectedGradients, **given) -> Tensor:
        return explain.attribute(x, target=1, generator=torch.Generator().manual_seed(3), **given)

    want = attribute(ExpectedGradients(model, background, 4))
    assert torch.equal(attribute(ExpectedGradients(model, rows(2, 6)), baselines=background, n_samples=4), want)


def test_additional_arguments_go_with_the_samples():
    x, gate, reference = rows(5, 6), rows(5, 6), rows(1, 6)
    explain = ExpectedGradients(lambda x, gate, k: (x * gate).sum(1) * k, reference, 3)
    got = explain.attribute(x, additional_forward_args=(gate, 2))
    assert relative_error(got, 2 * gate * (x - reference)) <= 1e-12


def test_gradients_of_expected_gradients_equal_double_backward():
    model, x, reference = smooth(), rows(5, 6).requires_grad_(), rows(1, 6).requires_grad_()
    labels, points = torch.randint(3, (5,)), []
    leaves = {**dict(model.named_parameters()), "input": x, "reference": reference}

    def spy(rows: Tensor) -> Tensor:
        points.append(rows.detach())
        return model(rows)

    def step(attribution: Tensor):
        return collect(curved_loss(model(x), attribution), {"attribution": attribution}, leaves)

    got = ExpectedGradients(spy, reference, 4).attribute(x, target=labels)
    shares = ((points[0].view(4, 5, 6) - reference) / (x - reference)).detach()
    places = shares.median(2, keepdim=True).values  # [S, B, 1]
    assert (shares - places).abs().max() <= 1e-6  # every point is on the line to its reference
    line = reference + places * (x - reference)  # [S, B, F]
    explained = model(line).gather(2, labels.expand(4, 5)[..., None]).sum()
    (gradient,) = torch.autograd.grad(explained, line, create_graph=True)
    assert_same_step(step(got), step(((x - reference) * gradient).mean(0)), 1e-8)


WRONG = {  # for an input [5, 6]: background, arguments, error, what the message says
    "no samples": (rows(4, 6), {"n_samples": 0}, ValueError, "`n_samples` is 0"),
    "no references": (rows(0, 6), {}, ValueError, r"`background`.*\[0, 6\].*\[M, 6\].*at least one"),
    "references too wide": (rows(4, 7), {}, ValueError, r"`background`.*\[4, 7\].*\[M, 6\]"),
    "a scalar": (torch.tensor(0.0), {}, ValueError, r"`background`.*\[\]"),
    "a number": (0, {}, TypeError, "`background` holds a int"),
    "a background too many": ((rows(4, 6), rows(4, 6)), {}, ValueError, "`background`.*2.*1"),
    "a background elsewhere": (rows(4, 6).to("meta"), {}, ValueError, "`background` is on meta"),
    "a baseline too wide": (rows(4, 6), {"baselines": rows(4, 7)}, ValueError, r"`baselines`.*\[4, 7\]"),
    "no target": (rows(4, 6), {"target": None}, ValueError, "`target`"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_arguments_of_expected_gradients_are_refused(kind):
    background, arguments, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        ExpectedGradients(smooth(), background).attribute(rows(5, 6), **{"target": 1, **arguments})


def test_backgrounds_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"`background` holds \[4, 3\] references"):
        ExpectedGradients(lambda x, z: x + z, (rows(4, 1), rows(3, 1))).attribute((rows(5, 1), rows(5, 1)))
