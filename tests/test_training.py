"""The experiments: their data, their attribution methods and their protocol."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import nn
from torch.func import grad, vmap

import xattr_cuda as xa
from xattr_cuda.training import decoy, demo, methods, protocol, tabular, timing
from xattr_cuda.training.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits():
    return decoy.load_decoy_digits(seed=3)


def decoys(images, corners):
    """Brightness of the decoy of every image, [N]."""
    return images[:, corners].amax(1)


def test_decoy_gives_the_label_away_in_training(digits):
    expected = 1 - digits.train_y / 10
    torch.testing.assert_close(decoys(digits.train_x, digits.corners), expected.float())


def test_decoy_says_nothing_about_the_label_in_testing(digits):
    shown = decoys(digits.test_x, digits.corners).numpy()
    told = np.isclose(shown, 1 - digits.test_y.numpy() / 10)
    assert 0.05 < told.mean() < 0.16  # one in ten by chance
    assert abs(np.corrcoef(shown, digits.test_y)[0, 1]) < 0.12


def test_decoys_are_one_2x2_patch_in_a_corner_and_never_on_the_digit(digits):
    assert digits.corners.sum() == 16
    assert not digits.corners[2:10, 2:10].any()
    assert ((digits.train_x[:, digits.corners] > 0).sum(1) == 4).all()
    outside = digits.train_x.clone()
    outside[:, 2:10, 2:10] = 0
    outside[:, digits.corners] = 0
    assert not outside.any()


def test_decoy_digits_follow_from_the_seed(digits):
    again, other = decoy.load_decoy_digits(seed=3), decoy.load_decoy_digits(seed=4)
    assert torch.equal(again.test_x, digits.test_x)
    assert not torch.equal(other.test_y, digits.test_y)


def test_demo_sweep_and_double_backward_have_one_gradient(digits):
    settings = demo.DemoSettings(hidden=(24, 16))
    prior = xa.priors.right_reasons(digits.corners)
    gradients = []
    for loss in (demo.sweep_loss, demo.eager_loss):
        model = demo.make_network(settings).double()
        loss(model, digits.train_x[:32].double(), digits.train_y[:32], prior, 30.0).backward()
        gradients.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_demo_refuses_a_strength_that_is_not_a_number():
    with pytest.raises(UserError, match="strength is nan"):
        demo.DemoSettings(strength=float("nan"))


def make_table(rows=120, missing=0.2, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(3.0, 5.0, (rows, 6))
    labels = (features[:, 0] + rng.normal(0, 3, rows) > 3).astype(np.int64)
    features[rng.random(features.shape) < missing] = np.nan
    return tabular.Table("made up", features, labels, tuple("abcdef"), "y", "1", "0")


def test_split_is_imputed_and_scaled_by_its_training_rows_only():
    table = make_table()
    before = tabular.split(table, 0, 60, 20)
    torch.testing.assert_close(before.train_x.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(before.train_x.std(0, correction=0), torch.ones(6), atol=1e-5, rtol=0)
    # Which rows train depends on the labels alone: move all others, and the training rows must stay where they are.
    train, _ = train_test_split(np.arange(120), train_size=60, random_state=0, stratify=table.labels)
    moved = table.features * 100
    moved[train] = table.features[train]
    after = tabular.split(tabular.Table("moved", moved, table.labels, table.columns, "y", "1", "0"), 0, 60, 20)
    torch.testing.assert_close(after.train_x, before.train_x)
    assert not torch.allclose(after.test_x, before.test_x)


def test_split_parts_share_no_row_and_keep_the_labels_in_proportion():
    table = make_table(missing=0)
    part = tabular.split(table, 5, 60, 20)
    rows = torch.cat([part.train_x, part.validation_x, part.test_x])
    assert len(rows.unique(dim=0)) == len(rows) == 120
    for labels in (part.train_y, part.validation_y, part.test_y):
        assert abs(labels.mean().item() - table.labels.mean()) < 0.05


def test_split_refuses_a_label_too_rare_for_every_part():
    table = make_table()
    rare = np.zeros_like(table.labels)
    rare[:2] = 1
    with pytest.raises(UserError, match="2 of 120 rows"):
        tabular.split(tabular.Table("rare", table.features, rare, table.columns, "y", "1", "0"), 0, 60, 20)


def test_nhefs_holds_no_column_measured_after_the_baseline():
    table = tabular.load_nhefs()
    assert table.features.shape[0] == 1629
    assert table.labels.sum() == 318
    for late in ("qsmk", "82", "yrdth", "censored", "death", "older", "sbp", "seqn"):
        assert not any(late in column for column in table.columns)
    assert {"age", "race_1", "birthplace_13.0"} <= set(table.columns)
    assert "id" not in table.columns


@pytest.fixture
def network():
    """A network with biases, in float64, and inputs."""
    torch.manual_seed(7)
    model = protocol.make_network(5, protocol.Settings(hidden=(16, 8)), bias=True, seed=1).double()
    return model, torch.randn(9, 5, dtype=torch.float64)


def gradient_at(model, points):
    """Gradient of the output for every point [..., 5], one point at a time."""
    return vmap(grad(lambda p: model(p).squeeze()))(points.reshape(-1, 5)).reshape(points.shape)


def test_ig_equals_a_sum_over_the_path_and_is_nearly_complete(network):
    model, x = network
    _, ours = methods.integrated_gradients(model, x, 400, x, torch.Generator())
    midpoints = [gradient_at(model, (k + 0.5) / 400 * x) for k in range(400)]
    torch.testing.assert_close(ours, x * torch.stack(midpoints).mean(0))
    difference = (model(x) - model(torch.zeros_like(x))).squeeze(1)
    torch.testing.assert_close(ours.sum(1), difference, atol=0.01, rtol=0)


def test_eg_equals_the_same_draws_by_hand_and_its_mean_is_complete(network):
    model, x = network
    references = torch.randn(20, 5, dtype=torch.float64)
    _, ours = methods.expected_gradients(model, x, 3, references, torch.Generator().manual_seed(11))
    draws = torch.Generator().manual_seed(11)
    rows = torch.randint(20, (3, 9), generator=draws)
    place = torch.rand(3, 9, 1, generator=draws, dtype=torch.float64)
    total = torch.zeros_like(x)
    for k in range(3):
        for b in range(9):
            base = references[rows[k, b]]
            point = base + place[k, b] * (x[b] - base)
            total[b] += (x[b] - base) * gradient_at(model, point[None])[0] / 3
    torch.testing.assert_close(ours, total)
    _, many = methods.expected_gradients(model, x, 4000, references, draws)
    expected = (model(x) - model(references).mean()).squeeze(1)
    torch.testing.assert_close(many.sum(1), expected, atol=0.05, rtol=0)


def test_plain_gradient_equals_torch_func(network):
    model, x = network
    _, ours = methods.gradient(model, x, 1, x, torch.Generator())
    torch.testing.assert_close(ours, gradient_at(model, x))


def test_ig_on_a_bias_free_network_is_the_x_gradient():
    model = xa.models.xmlp([5, 32, 16, 1], dtype=torch.float64)
    x = torch.randn(8, 5, dtype=torch.float64)
    for steps in (1, 50):
        _, ig = methods.integrated_gradients(model, x, steps, x, torch.Generator())
        torch.testing.assert_close(ig, xa.attribute(model, x).attribution)


@pytest.mark.parametrize("name", [name for name, method in methods.METHODS.items() if method.attribute])
def test_every_method_trains_every_weight_through_its_attribution(name):
    model = xa.models.xmlp([5, 16, 1])
    _, attribution = methods.METHODS[name].attribute(model, torch.randn(8, 5), 2, torch.randn(6, 5), torch.Generator())
    xa.priors.l1(attribution).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_networks_have_biases_unless_the_method_or_the_user_forbids_them():
    assert not protocol.has_bias("xgradient", protocol.Settings())
    assert protocol.has_bias("eg", protocol.Settings())
    assert not protocol.has_bias("eg", protocol.Settings(no_bias=True))
    names = [n for n, _ in protocol.make_network(4, protocol.Settings(), bias=True, seed=0).named_parameters()]
    assert sum(n.endswith("bias") for n in names) == 4


def test_the_epoch_with_the_best_validation_score_is_kept(monkeypatch):
    part = tabular.split(make_table(), 0, 60, 20)
    settings = protocol.Settings(hidden=(8,), epochs=6)
    scores, weights = iter([0.5, 0.9, 0.7, 0.9, 0.1, 0.2]), []

    def validation_scores(network, x, y):
        if x is part.test_x:
            return float(roc_auc_score(y, network(x).detach().squeeze(1)))
        weights.append([p.detach().clone() for p in network.parameters()])
        return next(scores)

    monkeypatch.setattr(protocol, "roc_auc", validation_scores)
    network, outcome = protocol.train(part, "xgradient", settings, 1.0, seed=0)
    assert (outcome.best_epoch, outcome.validation_auc) == (2, 0.9)  # the first of equals
    assert all(torch.equal(p, w) for p, w in zip(network.parameters(), weights[1], strict=True))


def test_the_gini_prior_concentrates_the_attribution():
    part = tabular.split(make_table(), 0, 60, 20)
    spread = {
        strength: protocol.train(part, "xgradient", protocol.Settings(hidden=(32,), epochs=40), strength, 0)[1].gini
        for strength in (0.0, 3.0)
    }
    assert spread[3.0] > spread[0.0]


def test_the_strength_is_chosen_by_validation_and_results_repeat():
    settings = protocol.Settings(hidden=(8,), epochs=4, strengths=(0.1, 50.0))
    runs = [
        protocol.compare(lambda seed: tabular.split(make_table(), seed, 60, 20), ["eg", "none"], settings, 2)
        for _ in range(2)
    ]
    part = [tabular.split(make_table(), seed, 60, 20) for seed in (0, 1)]
    means = {
        s: np.mean([protocol.train(part[seed], "eg", settings, s, seed)[1].validation_auc for seed in (0, 1)])
        for s in settings.strengths
    }
    assert means[runs[0][0].strength] == max(means.values())
    assert [r.outcomes for r in runs[0]] == [r.outcomes for r in runs[1]]


def test_a_diverged_network_is_a_user_error():
    part = tabular.split(make_table(), 0, 60, 20)
    with pytest.raises(UserError, match="diverged"):
        protocol.train(part, "xgradient", protocol.Settings(prior="l2", hidden=(8,), epochs=3), 1e300, 0)


@pytest.mark.parametrize(
    "wrong", [{"prior": "l7"}, {"strengths": (-1.0,)}, {"learning_rate": 1e30}, {"epochs": 0}, {"hidden": (4, 0)}]
)
def test_settings_out_of_range_are_user_errors(wrong):
    with pytest.raises(UserError):
        protocol.Settings(**wrong)


def test_interleaved_takes_turns_and_leaves_the_warmup_out():
    calls = []
    seconds = timing.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert [len(values) for values in seconds.values()] == [3, 3]
    with pytest.raises(ValueError):
        timing.interleaved({}, rounds=0)


def test_a_training_step_of_the_x_gradient_equals_double_backward():
    part = tabular.split(make_table(), 0, 60, 20)
    model = xa.models.xmlp([6, 16, 1])
    twin = xa.models.xmlp([6, 16, 1])
    twin.load_state_dict(model.state_dict())
    settings = protocol.Settings(hidden=(16,))
    protocol.make_step(model, "xgradient", settings, 2.0, part, 0)()
    optimizer = torch.optim.Adam(twin.parameters(), settings.learning_rate)
    x = part.train_x.clone().requires_grad_()
    output = twin(x)
    attribution = x * torch.autograd.grad(output.sum(), x, create_graph=True)[0]
    loss = nn.functional.binary_cross_entropy_with_logits(output.squeeze(1), part.train_y)
    (loss + 2.0 * xa.priors.gini(attribution)).backward()
    optimizer.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
