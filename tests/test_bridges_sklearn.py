"""The estimators for scikit-learn: its own checks, completeness, priors, row weights, and its tools around them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_python
from sklearn.base import clone
from sklearn.feature_selection import SelectFromModel
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_examples import run

import xattr_cuda as xa
from xattr_cuda.bridges import XMLPClassifier, XMLPRegressor
from xattr_cuda.bridges import sklearn as bridge

EXAMPLE = Path(__file__).parents[1] / "examples" / "sklearn_table.py"
KINDS = ["binary", "many", "numbers"]


pytestmark = pytest.mark.usefixtures("one_thread")


@parametrize_with_checks([XMLPClassifier(), XMLPRegressor()])
def test_every_check_of_scikit_learn_passes(estimator, check):
    check(estimator)


@pytest.fixture
def random(seed):
    return np.random.default_rng(seed)


def table(kind, random, n=60, columns=6):
    """Rows whose first two columns tell the class, as a word, or the number; none is centred or of unit scale."""
    X = random.normal(size=(n, columns)) * np.arange(1, columns + 1) + 3
    score = (X[:, 0] - 3) + (X[:, 1] - 3) / 2
    if kind == "numbers":
        return X, 100 + 7 * score
    edges = np.quantile(score, [0.4] if kind == "binary" else [0.3, 0.6])
    return X, np.array(["low", "middle", "top"])[np.digitize(score, edges)]


def fitted(kind, random, *, n=60, **settings):
    X, y = table(kind, random, n)
    estimator = XMLPRegressor if kind == "numbers" else XMLPClassifier
    return estimator(**{"hidden_layer_sizes": (16,), "epochs": 20, "random_state": 0, **settings}).fit(X, y), X, y


def decisions(model, X):
    """What is attributed: [n, 1], or [n, C] for many classes."""
    output = model.predict(X) if isinstance(model, XMLPRegressor) else model.decision_function(X)
    return output.reshape(len(X), -1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_a_decision_is_its_intercept_and_its_attributions(kind, dtype, random, monkeypatch):
    model, X, _ = fitted(kind, random)
    model = clone(model).fit(X.astype(dtype), table(kind, random)[1])
    monkeypatch.setattr(bridge, "ROWS", 7)  # in parts
    X = table(kind, random)[0].astype(dtype)
    got = decisions(model, X)
    tolerance = {"rtol": 0, "atol": 1e-10 if dtype == np.float64 else 1e-3}
    assert model.attribute(X).dtype == got.dtype == dtype
    if kind != "many":
        np.testing.assert_allclose(model.intercept_ + model.attribute(X).sum(1), got[:, 0], **tolerance)
    for i, label in enumerate(getattr(model, "classes_", [])):
        want = got[:, i] - model.intercept_[i] if kind == "many" else (got[:, 0] - model.intercept_) * (-1, 1)[i]
        np.testing.assert_allclose(model.attribute(X, label).sum(1), want, **tolerance)
    if kind != "numbers":
        predicted = model.predict(X)
        np.testing.assert_allclose(
            np.abs(model.attribute(X, predicted)), np.abs(model.attribute(X)), **tolerance
        )  # of two classes the default is the second's
        assert predicted.tolist() == model.classes_[model.predict_proba(X).argmax(1)].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_row_has_no_attribution_and_gets_the_base_rate(kind, random):
    model, X, y = fitted(kind, random)
    mean = X.mean(0, keepdims=True)
    np.testing.assert_allclose(model.attribute(mean), 0, atol=1e-10)
    if kind == "numbers":
        np.testing.assert_allclose(model.predict(mean), y.mean())
    else:
        shares = [(y == label).mean() for label in model.classes_]
        np.testing.assert_allclose(model.predict_proba(mean)[0], shares)


@pytest.mark.parametrize("kind", KINDS)
def test_without_standardising_the_network_is_homogeneous_in_the_row(kind, random):
    model, X, _ = fitted(kind, random, standardize=False)
    constant = np.asarray(model.intercept_)
    np.testing.assert_allclose(decisions(model, 2 * X) - constant, 2 * (decisions(model, X) - constant), atol=1e-9)
    assert np.abs(decisions(model, X) - constant).max() > 1e-3
    assert xa.check(model.network_, torch.tensor(X)).ok


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prior", ["gini", "l1", "l2"])
def test_a_prior_does_what_it_is_for(kind, prior, random):
    settings = {"epochs": 60, "learning_rate": 1e-2}
    free, X, y = fitted(kind, random, prior=None, **settings)
    held = clone(free).set_params(prior=prior, strength=1.0).fit(X, y)
    scale = 1 if kind != "numbers" else y.std()  # of the attribution that the prior sees
    penalty = [float(getattr(xa.priors, prior)(torch.tensor(m.attributions_ / scale))) for m in (free, held)]
    assert penalty[1] < penalty[0] - 0.02
    same = clone(free).set_params(prior="gini", strength=0).fit(X, y)
    np.testing.assert_array_equal(same.attributions_, free.attributions_)


def test_the_loss_of_an_epoch_is_the_task_s_and_the_prior_s(random):
    X, y = table("many", random)
    model = XMLPClassifier((8,), prior="l2", strength=0.7, epochs=1, learning_rate=1e-12, random_state=0).fit(X, y)
    labels = torch.tensor(np.searchsorted(model.classes_, y))
    want = torch.nn.functional.cross_entropy(torch.tensor(model.decision_function(X)), labels)
    want += 0.7 * xa.priors.l2(torch.tensor(model.attribute(X, y)))
    np.testing.assert_allclose(model.loss_curve_, [float(want)], rtol=1e-6)


@pytest.mark.parametrize("prior", ["gini", "l1", "l2", None])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_weight_k_counts_as_k_rows(kind, prior, random):
    X, y = table(kind, random)
    weight = random.integers(0, 4, len(X))
    model = (XMLPRegressor if kind == "numbers" else XMLPClassifier)((8,), prior=prior, epochs=10, random_state=0)
    weighted = clone(model).fit(X, y, weight)
    repeated = clone(model).fit(X.repeat(weight, 0), y.repeat(weight, 0))
    np.testing.assert_allclose(decisions(weighted, X), decisions(repeated, X), rtol=1e-6)
    np.testing.assert_allclose(weighted.feature_importances_, repeated.feature_importances_, rtol=1e-6)
    assert weighted.attributions_.shape == ((weight > 0).sum(), X.shape[1])


def test_a_prior_of_one_s_own_takes_no_unequal_weights(random):
    model, X, y = fitted("binary", random, prior=xa.priors.l1, strength=0.3)
    named = clone(model).set_params(prior="l1").fit(X, y)
    np.testing.assert_array_equal(model.attributions_, named.attributions_)
    np.testing.assert_allclose(clone(model).fit(X, y, np.full(60, 2.0)).attributions_, model.attributions_)
    with pytest.raises(ValueError, match=r"`prior` is a function.*'gini', 'l1', 'l2'"):
        clone(model).fit(X, y, np.arange(60))


@pytest.mark.parametrize("kind", KINDS)
def test_attributions_of_the_training_rows_are_kept(kind, random):
    model, X, y = fitted(kind, random)
    want = model.attribute(X, y) if kind == "many" else model.attribute(X)
    np.testing.assert_allclose(model.attributions_, want, atol=1e-12)
    importance = np.abs(want).mean(0)
    np.testing.assert_allclose(model.feature_importances_, importance / importance.sum())


def test_tools_of_scikit_learn_take_it(random):
    X, y = table("binary", random)
    pipeline = make_pipeline(FunctionTransformer(), XMLPClassifier((8,), epochs=60, learning_rate=0.01, random_state=0))
    grid = {"xmlpclassifier__prior": ["gini", None, xa.priors.l1], "xmlpclassifier__strength": [0.1]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
    assert search.best_score_ > 0.7
    again = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(again.predict_proba(X), search.predict_proba(X))
    kept = SelectFromModel(pipeline[-1], max_features=2, threshold=-np.inf).fit(X, y).get_support()
    assert kept.tolist() == [True, True, False, False, False, False]


def test_a_seed_decides_everything_and_touches_no_other(random):
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    model, X, y = fitted("many", random, batch_size=16)
    assert torch.rand(1) == want
    again = clone(model).fit(X, y)
    np.testing.assert_array_equal(again.attributions_, model.attributions_)
    other = clone(model).set_params(random_state=1).fit(X, y)
    assert not np.allclose(other.attributions_, model.attributions_)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prior": "l7"},
        {"strength": -1.0},
        {"strength": float("nan")},
        {"learning_rate": 0.0},
        {"epochs": 0},
        {"batch_size": 2.5},
        {"hidden_layer_sizes": (4, 0)},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(wrong, random):
    name = "widths" if "hidden_layer_sizes" in wrong else next(iter(wrong))
    for kind in ("binary", "numbers"):
        with pytest.raises(ValueError, match=f"`{name}` is"):
            fitted(kind, random, **wrong)


def test_what_cannot_be_learned_is_refused(random):
    model, X, y = fitted("many", random)
    with pytest.raises(ValueError, match="`target` holds 'best'"):
        model.attribute(X, "best")
    with pytest.raises(ValueError, match="one class"):
        clone(model).fit(X, y, y == "top")
    with pytest.raises(ValueError, match="negative"):
        clone(model).fit(X, y, np.full(60, -1.0))
    with pytest.raises(ValueError, match=r"diverged.*`learning_rate`"):
        clone(model).set_params(learning_rate=1e300, prior=None).fit(X, y)


def test_the_bridges_say_how_to_install_what_they_need():
    check = (
        "import sys, torch, xattr_cuda as xa\n"
        "assert not {'sklearn', 'quantus'} & set(sys.modules)\n"
        "assert 'XMLPClassifier' in dir(xa.bridges) and not hasattr(xa.bridges, 'XMLP')\n"
        "sys.modules['sklearn'] = sys.modules['quantus'] = None\n"
        "xa.bridges.quantus_explain(xa.models.xmlp([3, 2]), torch.ones(1, 3).numpy(), 1)\n"  # needs no Quantus itself
        "try:\n"
        "    xa.bridges.XMLPClassifier\n"
        "except ImportError as error:\n"
        "    print(error)"
    )
    result = run_python(check)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "this needs sklearn, which is not installed: pip install xattr_cuda[sklearn]\n"


def test_the_example_decides_by_few_columns_and_adds_up(tmp_path):
    process = run(EXAMPLE, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    free, held, strength, decision, *parts = (line.replace(",", "").split() for line in process.stdout.splitlines())
    assert min(float(free[3]), float(held[3])) > 0.9  # accuracy
    assert int(held[4]) < int(free[4])  # columns
    assert float(strength[-1]) in (0.1, 0.3)
    assert sum(float(part[0]) for part in parts) == pytest.approx(float(decision[6]), abs=0.05)
