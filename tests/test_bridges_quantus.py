"""The explain function for Quantus equals `attribute`, and metrics of Quantus that run with it find what must be."""

from pathlib import Path

import numpy as np
import pytest
import quantus
import torch
from networks import linear
from test_examples import run
from torch import nn

import xattr_cuda as xa
from xattr_cuda.bridges import quantus_explain

EXAMPLE = Path(__file__).parents[1] / "examples" / "quantus_metrics.py"
COMMON = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}


def network(*, whole=False):
    """An X-DNN of images [B, 2, 6, 6], for evaluation; with small whole weights its float32 arithmetic is exact."""
    layers = nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), linear(16, 5)
    model = nn.Sequential(*layers).eval()
    if whole:
        for parameter in model.parameters():
            parameter.data = torch.randint(-3, 4, parameter.shape).float()
    return model


def images(batch=5):
    return np.random.default_rng(torch.initial_seed()).normal(size=(batch, 2, 6, 6)).astype("f4")


def labels(batch=5):
    return torch.randint(5, (batch,)).numpy()


def test_it_equals_attribute():
    model, x, y = network(), images(), labels()
    want = xa.attribute(model, torch.tensor(x), torch.tensor(y)).attribution.detach().numpy()
    got = quantus_explain(model=model, inputs=x, targets=y, device="cpu")
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(quantus_explain(model, x[:1].repeat(5, 0), 3)[0], quantus_explain(model, x, 3)[0])


@pytest.mark.parametrize("kind", ["f8", "f4", "f2", "i8"])
def test_inputs_are_cast_to_the_model_s_dtype_and_back(kind):
    model, y = network().double(), labels()
    x = (10 * images()).astype(kind)
    got = quantus_explain(model, x, y)
    assert got.dtype == ("f4" if kind == "i8" else kind)
    want = quantus_explain(model, x.astype("f8"), y)
    np.testing.assert_allclose(got, want, rtol={"f8": 0, "f2": 2e-3}.get(kind, 1e-6), atol=1e-3 * (kind == "f2"))


def test_another_argument_or_network_is_refused():
    with pytest.raises(TypeError, match="method"):
        quantus_explain(network(), images(), labels(), method="Saliency")
    with pytest.raises(xa.NotHomogeneousError):
        quantus_explain(nn.Sequential(nn.Flatten(), nn.Linear(72, 5)), images(), labels())


def test_completeness_holds_to_the_bit_where_arithmetic_is_exact():
    model, y = network(whole=True), labels(16)
    x = torch.randint(-4, 5, (16, 2, 6, 6)).float().numpy()
    metric = quantus.Completeness(perturb_baseline=0.0, **COMMON)
    assert metric(model=model, x_batch=x, y_batch=y, explain_func=quantus_explain) == [True] * 16
    other = {"explain_func_kwargs": {"method": "Saliency"}, "explain_func": quantus.explain}
    assert not all(metric(model=model, x_batch=x, y_batch=y, **other))


def test_faithfulness_is_perfect_where_the_network_is_linear():
    model = nn.Sequential(nn.Flatten(), linear(72, 5)).eval()
    metric = quantus.FaithfulnessCorrelation(nr_runs=20, subset_size=16, perturb_baseline=0.0, **COMMON)
    scores = metric(model=model, x_batch=images(), y_batch=labels(), explain_func=quantus_explain)
    np.testing.assert_allclose(scores, 1, atol=1e-4)


def test_sparseness_is_the_gini_prior_of_each_sample():
    model, x, y = network(), images(), labels()
    metric = quantus.Sparseness(**{**COMMON, "abs": True})
    scores = metric(model=model, x_batch=x, y_batch=y, explain_func=quantus_explain)
    attribution = torch.tensor(quantus_explain(model, x, y)).double()
    want = [-float(xa.priors.gini(row.unsqueeze(0))) for row in attribution]
    np.testing.assert_allclose(scores, want, atol=1e-3)
    assert min(scores) > 0


def test_max_sensitivity_explains_perturbed_inputs():
    weight, x = torch.randn(5, 72), np.ones((5, 2, 6, 6), "f4")
    model = nn.Sequential(nn.Flatten(), linear(72, 5)).eval()
    model[1].weight.data = weight
    y = np.arange(5)
    metric = quantus.MaxSensitivity(nr_samples=30, lower_bound=0.1, **COMMON)
    scores = metric(model=model, x_batch=x, y_batch=y, explain_func=quantus_explain, device="cpu")
    # Linear, at ones: what noise in [-0.1, 0.1] moves is at most a tenth of the attribution, and of uniform noise
    # the root mean square is a tenth over the root of three.
    assert all(0.1 / 3**0.5 * 0.8 < score <= 0.1 + 1e-5 for score in scores)


def test_the_example_compares_two_networks(tmp_path):
    process = run(EXAMPLE, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    rows = [line.split("│")[1:-1] for line in process.stdout.splitlines() if line.startswith("│")]
    values = {name.strip(): [float(v) for v in cells] for name, *cells in rows}
    assert list(values) == ["test accuracy", "Sparseness", "FaithfulnessCorrelation", "MaxSensitivity"]
    assert min(values["test accuracy"]) > 0.6
    assert values["Sparseness"][1] > values["Sparseness"][0]  # the gini prior does what it is for
    assert min(values["FaithfulnessCorrelation"]) > 0
    assert not list(tmp_path.iterdir())
