"""What a step saves for its backward pass: exactly the bytes that section 2 of docs/design.md states."""

import gc
import weakref

import pytest
import torch
from networks import linear
from torch import nn

import xattr_cuda as xa

WIDTHS, BATCH = [64, 96, 128, 32], 50
HIDDEN = BATCH * sum(WIDTHS[1:])  # hidden activations
MASK = HIDDEN // 8  # one bit for each
LABELS = torch.zeros(BATCH, dtype=torch.long)


def network(outputs, activation=nn.ReLU, dropout=0.0):
    return xa.models.xmlp([*WIDTHS, outputs], activation=activation, dropout=dropout)


class Held:
    """A tensor that a graph holds, and nobody else."""

    def __init__(self, tensor):
        self.tensor = tensor


def saved_bytes(call, *exempt):
    """Bytes of all storages kept for a backward pass while the results live, without those of `exempt`."""
    held = weakref.WeakSet()

    def pack(t):
        kept = Held(t)
        held.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        results = call()
    storages = [kept.tensor.untyped_storage() for kept in held]
    skip = {t.untyped_storage().data_ptr() for t in exempt}
    del results
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in skip}.values())


def of_attribute(model, outputs, x=None):
    x = torch.randn(BATCH, WIDTHS[0]) if x is None else x
    target = None if outputs == 1 else LABELS
    return saved_bytes(lambda: xa.attribute(model, x, target), x, *model.parameters())


def of_attribute_loss(model, outputs):
    x = torch.randn(BATCH, WIDTHS[0])

    def criterion(output, labels):
        return nn.functional.cross_entropy(output, labels) if outputs > 1 else output.square().mean()

    return saved_bytes(lambda: xa.attribute_loss(model, x, criterion, LABELS), x, *model.parameters())


def seed_bytes(outputs):
    return 4 * BATCH * outputs


def test_one_output_saves_its_cotangents_and_masks(backend):
    assert of_attribute(network(1), 1) == 4 * HIDDEN + MASK + seed_bytes(1)


@pytest.mark.parametrize("outputs", [1, 10])
def test_an_attributed_loss_saves_its_cotangents_and_masks(outputs, backend):
    assert of_attribute_loss(network(outputs), outputs) == 4 * HIDDEN + MASK + seed_bytes(outputs)


def test_many_outputs_save_activations_too(backend):
    assert of_attribute(network(10), 10) == (4 + 4) * HIDDEN + MASK + seed_bytes(10)


def test_an_input_that_requires_a_gradient_adds_one_tensor_of_its_size(backend):
    x = torch.randn(BATCH, WIDTHS[0], requires_grad=True)
    assert of_attribute(network(1), 1, x) == 4 * HIDDEN + MASK + seed_bytes(1) + 4 * x.numel()


@pytest.mark.parametrize("outputs", [1, 10])
def test_half_precision_saves_half_the_activations(outputs, backend):
    chains = 1 if outputs == 1 else 2
    x = torch.randn(BATCH, WIDTHS[0]).bfloat16()
    found = of_attribute(network(outputs).bfloat16(), outputs, x)
    again = backend == "cpu" and xa.ops.extension.SweepPlan([*WIDTHS, outputs], BATCH, bf16=True).repeats_last
    swept_again = 2 * BATCH * WIDTHS[-1] if again else 0  # the cotangent above a narrow last layer
    assert found == 2 * chains * HIDDEN - swept_again + MASK + seed_bytes(outputs) // 2


@pytest.mark.parametrize("outputs", [1, 10])
def test_dropout_adds_one_bit_an_activation(outputs, backend):
    assert of_attribute(network(outputs, dropout=0.5), outputs) == of_attribute(network(outputs), outputs) + MASK


@pytest.mark.parametrize("outputs", [1, 10])
def test_dropout_in_evaluation_adds_nothing(outputs, backend):
    assert of_attribute(network(outputs, dropout=0.5).eval(), outputs) == of_attribute(network(outputs), outputs)


@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.PReLU])
@pytest.mark.parametrize("outputs", [1, 10])
def test_slopes_save_what_relu_saves(activation, outputs, backend):
    found, relu = (of_attribute(network(outputs, a), outputs) for a in (activation, nn.ReLU))
    # A learned slope needs the tensors on the other side of the activation, which are recomputed from those of ReLU.
    assert found == relu


@pytest.mark.parametrize("outputs", [1, 10])
def test_frozen_layers_save_less_the_more_are_frozen(outputs, backend):
    model = network(outputs)
    sizes = [of_attribute(model, outputs)]
    for layer in list(model)[-3::-2]:
        layer.requires_grad_(False)
        sizes.append(of_attribute(model, outputs))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("outputs", [1, 10])
def test_a_frozen_network_whose_input_needs_a_gradient_saves_no_activation(outputs, backend):
    model, x = network(outputs).requires_grad_(False), torch.randn(BATCH, WIDTHS[0], requires_grad=True)
    assert of_attribute(model, outputs, x) <= MASK + seed_bytes(outputs) + 4 * x.numel()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_saved_without_gradients(mode, backend):
    with mode():
        assert of_attribute(network(10), 10) == 0
        assert of_attribute_loss(network(10), 10) == 0
    assert of_attribute(network(10).requires_grad_(False), 10) == 0


def test_a_shared_layer_is_saved_once_for_each_use(backend):
    middle = linear(64, 64)
    model = nn.Sequential(middle, nn.ReLU(), middle, nn.ReLU(), linear(64, 1))
    found = of_attribute(model, 1)
    assert found == 2 * (4 + 1 / 8) * 64 * BATCH + seed_bytes(1)


def test_what_a_step_saved_is_freed_with_its_results(backend):
    held = weakref.WeakSet()

    def pack(t):
        kept = Held(t)
        held.add(kept)
        return kept

    gc.disable()  # no reference cycle may keep the tensors until the next collection
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            results = xa.attribute(network(10), torch.randn(BATCH, WIDTHS[0]), 3)
        assert len(held) > 0
        del results
        assert len(held) == 0
    finally:
        gc.enable()
