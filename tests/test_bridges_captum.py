"""The attribution classes as Captum's own: its NoiseTunnel, its metrics and its visualiser run on them."""

import pickle
from pathlib import Path

import captum.attr
import matplotlib.figure
import numpy as np
import pytest
import torch
from attr_cases import assert_equal, rows, smooth
from captum.attr import visualization
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from helpers import run_python
from networks import linear
from test_examples import run
from torch import nn

from xattr_cuda.attr import ExpectedGradients, IntegratedGradients, XGradient

EXAMPLE = Path(__file__).parents[1] / "examples" / "captum_noise_tunnel.py"


@pytest.fixture
def images():
    """An X-DNN, images [4, 2, 6, 6] and a target for each."""
    network = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), linear(16, 5)),
    )
    return network.double(), rows(4, 2, 6, 6), torch.tensor([3, 0, 4, 3])


def seeded(seed, attributor, *arguments, **options):
    """What NoiseTunnel makes of an attributor; the same noise for the same seed."""
    torch.manual_seed(seed)
    return captum.attr.NoiseTunnel(attributor).attribute(*arguments, **options)


@pytest.mark.parametrize("kind", [XGradient, IntegratedGradients, lambda model: ExpectedGradients(model, rows(3, 6))])
def test_every_class_is_a_gradient_attribution_of_captum(kind):
    model = nn.Sequential(linear(6, 8), nn.ReLU(), linear(8, 3)).double()
    attributor = kind(model)
    assert isinstance(attributor, captum.attr.GradientAttribution)
    assert attributor.forward_func is attributor.model is model
    assert attributor.multiplies_by_inputs
    assert attributor.has_convergence_delta()
    x = rows(4, 6)
    again = pickle.loads(pickle.dumps(attributor))
    torch.manual_seed(0)
    want = attributor.attribute(x, target=1)
    torch.manual_seed(0)
    assert_equal(again.attribute(x, target=1), want)


def test_captum_names_it():
    assert XGradient.get_name() == captum.attr.InputXGradient.get_name().removeprefix("Input ") == "X Gradient"


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("batch", [None, 3], ids=["at once", "in parts"])
def test_noise_tunnel_gives_what_it_gives_of_input_x_gradient(images, kind, batch, seed):
    model, x, target = images
    options = {"nt_type": kind, "nt_samples": 7, "nt_samples_batch_size": batch, "stdevs": 0.3, "target": target}
    got = seeded(seed, XGradient(model), x, **options)
    assert_equal(got, seeded(seed, captum.attr.InputXGradient(model), x, **options).detach())
    assert got.abs().max() > 0


def test_noise_tunnel_gives_what_it_gives_of_captum_s_integrated_gradients(seed):
    model, x, target = smooth(), rows(4, 6), torch.tensor([2, 0, 1, 2])
    options = {"nt_samples": 3, "stdevs": 0.3, "target": target, "return_convergence_delta": True, "n_steps": 9}
    got, delta = seeded(seed, IntegratedGradients(model), x, baselines=0.1, **options)
    want, captums = seeded(seed, captum.attr.IntegratedGradients(model), x, baselines=0.1, **options)
    assert_equal(got, want, 1e-6)  # Captum holds the weights of its steps in single precision
    assert_equal(delta, captums, 1e-6)


def test_noise_tunnel_of_expected_gradients_from_one_reference(seed):
    model, reference = linear(6, 3).double(), rows(1, 6)  # linear, so that nothing depends on the draws
    x = rows(4, 6)
    got = seeded(seed, ExpectedGradients(model, reference), x, nt_samples=3, stdevs=0.3, target=2)
    torch.manual_seed(seed)
    noisy = x.repeat_interleave(3, 0) + torch.normal(0, torch.full((12, 6), 0.3))
    assert_equal(got, (model.weight[2] * (noisy.view(4, 3, 6).mean(1) - reference)).detach())


def test_deltas_reach_noise_tunnel_and_vanish(images):
    model, x, target = images
    options = {"nt_samples": 5, "stdevs": 0.3, "target": target, "return_convergence_delta": True}
    _, delta = captum.attr.NoiseTunnel(XGradient(model)).attribute(x, **options)
    assert delta.shape == (20,)
    assert delta.abs().max() <= 1e-12


def test_two_inputs_go_through_noise_tunnel(seed):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = linear(6, 3), linear(4, 3)

        def forward(self, x, z):
            return torch.relu(self.one(x) + self.two(z))

    model, inputs = Sum().double(), (rows(5, 6), rows(5, 4))
    options = {"nt_samples": 4, "stdevs": (0.1, 0.2), "target": 1}
    want = seeded(seed, captum.attr.InputXGradient(model), inputs, **options)
    assert_equal(seeded(seed, XGradient(model), inputs, **options), tuple(w.detach() for w in want))


def test_captum_measures_the_error_of_completeness(images):
    model, x, target = images
    attributor = XGradient(model)
    attribution = attributor.attribute(x, target)
    delta = attributor.compute_convergence_delta(attribution, 0, x, target)
    assert delta.abs().max() <= 1e-12
    wrong = attributor.compute_convergence_delta(2 * attribution, 0, x, target)
    assert_equal(wrong, model(x).gather(1, target.unsqueeze(1)).squeeze(1))


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning")  # of Captum's own
def test_metrics_of_captum(images, seed):
    model, x, target = images
    attributor = XGradient(model)
    torch.manual_seed(seed)
    got = sensitivity_max(attributor.attribute, x, target=target)
    torch.manual_seed(seed)
    assert_equal(got, sensitivity_max(captum.attr.InputXGradient(model).attribute, x, target=target))

    @infidelity_perturb_func_decorator(attributor.multiplies_by_inputs)
    def fade(inputs, baselines):
        return inputs * 0.3

    # Fading changes an X-DNN's output by the same share of every attribution: the metric is 0 of it alone.
    baselines = torch.zeros_like(x)
    attribution = attributor.attribute(x, target).detach()
    assert infidelity(model, fade, x, attribution, baselines, target=target).abs().max() <= 1e-20
    other = captum.attr.Saliency(model).attribute(x, target)
    assert infidelity(model, fade, x, other, baselines, target=target).max() > 1e-6


@pytest.mark.parametrize("method", ["heat_map", "blended_heat_map"])
def test_the_visualiser_of_captum_draws_it(images, method):
    model, x, target = images
    attribution = XGradient(model).attribute(x, target)[0].detach()
    figure, axes = visualization.visualize_image_attr(
        attribution.permute(1, 2, 0).numpy(),
        torch.rand(6, 6, 3).numpy(),
        method=method,
        sign="all",
        outlier_perc=0,
        use_pyplot=False,
    )
    assert isinstance(figure, matplotlib.figure.Figure)
    drawn, total = np.asarray(axes.images[-1].get_array()), attribution.sum(0).numpy()
    np.testing.assert_allclose(drawn, total / np.abs(total).max(), atol=1e-12)


def test_captum_is_imported_when_it_is_needed_and_not_missed_where_it_is_not():
    check = (
        "import sys, torch, xattr_cuda as xa\n"
        "assert 'captum' not in sys.modules\n"
        "assert 'XGradient' in dir(xa.attr)\n"
        "sys.modules['captum'] = None\n"
        "model, x = xa.models.xmlp([3, 4, 2]), torch.randn(5, 3)\n"
        "attributor = xa.attr.XGradient(model)\n"
        "attribution, delta = attributor.attribute(x, 1, return_convergence_delta=True)\n"
        "assert attributor.model is attributor.forward_func is model\n"
        "assert delta.abs().max() < 1e-5 and attributor.multiplies_by_inputs\n"
        "assert not hasattr(attributor, 'compute_convergence_delta')\n"
        "assert xa.attr.IntegratedGradients(model).attribute(x, target=1).allclose(attribution, atol=1e-5)\n"
        "assert xa.attr.ExpectedGradients(model, x).attribute(x, target=1).shape == x.shape\n"
    )
    result = run_python(check)
    assert result.returncode == 0, result.stderr


def test_the_example_smooths_draws_and_measures(tmp_path):
    process = run(EXAMPLE, "--output", "out", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    accuracy, completeness, sensitivity, saved = process.stdout.splitlines()
    assert float(accuracy.split()[-1].rstrip("%")) > 70
    assert float(completeness.split()[-1]) < 1e-4
    assert len([float(v) for v in sensitivity.split()[1:]]) == 3
    assert saved == "saved in out"
    pictures = list((tmp_path / "out").iterdir())
    assert len({p.stem.split("-")[0] for p in pictures}) * 2 == len(pictures) > 0
    assert all(p.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for p in pictures)
