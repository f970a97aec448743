"""The paper's experiments in small: attribution in closed form, and contrast, on X-networks and their biased twins.

After Hesse, Schaub-Meyer and Roth, NeurIPS 2021, sections 4.2 and 4.4, which compare trained ImageNet networks.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import xattr_cuda as xa
from xattr_cuda.models.fixup_resnet import BasicBlock

TRAIN_IMAGES, EPOCHS, STEPS = 1197, 8, 128
ALPHAS = [k / 10 for k in range(1, 11)]
CLOSED = {torch.float64: 1e-10, torch.float32: 1e-4}  # the largest relative difference of a closed form


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def small_mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), xa.models.xmlp([64, 64, 64, 64, 10]))


def small_vgg() -> nn.Module:
    return nn.Sequential(
        *(conv(1, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), nn.MaxPool2d(2)),
        *(conv(8, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), xa.models.xmlp([64, 32, 10])),
    )


def small_resnet() -> nn.Module:
    return nn.Sequential(
        *(conv(1, 8), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)),
        *(BasicBlock(8, 8), BasicBlock(8, 16, stride=2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10, bias=False)),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"X-MLP": small_mlp, "X-VGG": small_vgg, "X-ResNet": small_resnet}
"""X-networks from images [B, 1, 8, 8] to logits [B, 10]."""


def biased_twin(network: nn.Module) -> nn.Module:
    """A copy of an X-network, weights and all, whose linear and convolutional layers have biases from N(0, 0.4^2)."""
    twin = copy.deepcopy(network)
    for layer in twin.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.bias = nn.Parameter(0.4 * torch.randn(len(layer.weight), dtype=layer.weight.dtype))
    return twin


class Pair(NamedTuple):
    """An X-network and its biased twin, both trained; test images [600, 1, 8, 8] in [0, 1] and labels [600]."""

    network: nn.Module
    twin: nn.Module
    images: Tensor
    labels: Tensor


def train(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request: pytest.FixtureRequest) -> Pair:
    """Both networks trained on two thirds of the digits, for about two seconds."""
    torch.manual_seed(request.config.option.seed)
    pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels))
    images, labels = pixels[order].reshape(-1, 1, 8, 8).float() / 16, labels[order]
    network = NETWORKS[request.param]()
    twin = biased_twin(network)
    for model in (network, twin):
        train(model, images[:TRAIN_IMAGES], labels[:TRAIN_IMAGES])
    return Pair(network, twin, images[TRAIN_IMAGES:], labels[TRAIN_IMAGES:])


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(model).to(dtype)


def input_times_gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Input x Gradient of the target by autograd, which a network with biases has too."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).gather(1, target.unsqueeze(1)).sum(), x)
    return x.detach() * gradient


def x_gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return xa.attr.XGradient(model).attribute(x, target).detach()


Method = Callable[[nn.Module, Tensor, Tensor], Tensor]


def relative_difference(method: Method, model: nn.Module, x: Tensor, target: Tensor) -> float:
    """Sum of |IG(128) - attribution| over all features of all samples, as a share of the sum of |IG(128)|.

    The paper's mean absolute relative difference, with numerators and denominators pooled before the division, so that
    features with next to no attribution, whose own ratio is rounding over rounding, do not decide.
    """
    integrated = xa.attr.IntegratedGradients(model, STEPS).attribute(x, target=target).detach()
    return float((integrated - method(model, x, target)).abs().sum() / integrated.abs().sum())


@pytest.mark.parametrize("dtype", CLOSED, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_only_an_x_network_has_integrated_gradients_in_closed_form_before_training(name, dtype):
    network = NETWORKS[name]().to(dtype)
    x, target = torch.randn(8, 1, 8, 8, dtype=dtype), torch.randint(10, (8,))
    assert relative_difference(x_gradient, network, x, target) <= CLOSED[dtype]
    assert relative_difference(input_times_gradient, biased_twin(network), x, target) > 0.1


@pytest.mark.parametrize("dtype", CLOSED, ids=str)
def test_only_an_x_network_has_integrated_gradients_in_closed_form_after_training(trained, dtype):
    x, target = trained.images[:16].to(dtype), trained.labels[:16]
    assert relative_difference(x_gradient, cast(trained.network, dtype), x, target) <= CLOSED[dtype]
    assert relative_difference(input_times_gradient, cast(trained.twin, dtype), x, target) > 0.1


def test_a_biased_network_has_the_closed_form_once_it_is_converted(trained):
    x, target = trained.images[:16].double(), trained.labels[:16]
    converted = xa.convert(cast(trained.twin, torch.float64)).model
    assert relative_difference(x_gradient, converted, x, target) <= CLOSED[torch.float64]


@torch.no_grad()
def answers(model: nn.Module, x: Tensor) -> Tensor:
    """The predicted class of every image at every alpha, [10, B]; in float64, so that rounding tips no tie."""
    model = cast(model, torch.float64)
    return torch.stack([model(alpha * x.double()).argmax(1) for alpha in ALPHAS])


def test_contrast_changes_no_answer_of_an_x_network(trained):
    predicted = answers(trained.network, trained.images)
    assert (predicted[-1] == trained.labels).double().mean() > 0.5  # ten classes: it has learned
    assert torch.equal(predicted, predicted[-1:].expand_as(predicted))


def test_low_contrast_costs_a_biased_network_its_accuracy(trained):
    accuracy = (answers(trained.twin, trained.images) == trained.labels).double().mean(1)
    assert accuracy[0] < accuracy[-1] - 0.15
