"""What a step of a convolutional network saves for its backward pass: the bytes that section 2 of the design states."""

import math
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers import eager_attribute
from torch import Tensor, nn

import xattr_cuda as xa

BATCH, CLASSES = 3, 10
LABELS = torch.zeros(BATCH, dtype=torch.long)
SIZES = {"xvgg16": 32, "xfixup_resnet18": 64}

by_name = pytest.mark.parametrize("name", SIZES)
by_format = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)


def build(name: str, classes: int = CLASSES, memory_format: Any = torch.contiguous_format) -> tuple[nn.Module, Tensor]:
    model = getattr(xa.models, name)(num_classes=classes, image_size=SIZES[name])
    x = torch.randn(BATCH, 3, SIZES[name], SIZES[name])
    return model.to(memory_format=memory_format), x.contiguous(memory_format=memory_format)


class Held:
    """A tensor that a graph holds, and nobody else."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved(call: Callable[[], Any], *exempt: Tensor) -> Counter[torch.dtype]:
    """Bytes of each dtype that are kept for a backward pass while the results live, without those of `exempt`."""
    held: weakref.WeakSet[Held] = weakref.WeakSet()

    def pack(t: Tensor) -> Held:
        kept = Held(t)
        held.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        results = call()
    seen = {t.untyped_storage().data_ptr() for t in exempt}
    found: Counter[torch.dtype] = Counter()
    for kept in held:
        storage = kept.tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            found[kept.tensor.dtype] += storage.nbytes()
            seen.add(storage.data_ptr())
    del results
    return found


def of_attribute(model: nn.Module, x: Tensor) -> Counter[torch.dtype]:
    return saved(lambda: xa.attribute(model, x, cotangent=torch.randn(BATCH, CLASSES)), x, *model.parameters())


def of_attribute_loss(model: nn.Module, x: Tensor) -> Counter[torch.dtype]:
    criterion = nn.functional.cross_entropy
    return saved(lambda: xa.attribute_loss(model, x, criterion, LABELS), x, *model.parameters())


def bits(t: Tensor) -> int:
    """Bytes of a mask: a bit an element, each sample padded to whole words of four bytes."""
    return 4 * len(t) * math.ceil(t[0].numel() / 32)


@dataclass
class Sizes:
    """Bytes by what they are, from one run of the model."""

    inputs: dict[int, int] = field(default_factory=dict)  # of weight layers, by memory: layers may share one
    outputs: list[int] = field(default_factory=list)  # of weight layers; one for two that are added to each other
    masks: list[int] = field(default_factory=list)  # of activations and of dropout
    pools: list[int] = field(default_factory=list)  # a byte an element of max pooling
    _alive: list[Any] = field(default_factory=list)  # so that no memory is used twice

    @staticmethod
    def of(model: nn.Module, x: Tensor) -> "Sizes":
        sizes = Sizes()
        hooks = [m.register_forward_hook(sizes.hook(name)) for name, m in model.named_modules()]
        with torch.no_grad():
            model(x)
        for hook in hooks:
            hook.remove()
        del sizes.inputs[x.data_ptr()]  # the network's own input
        del sizes.outputs[-1]  # the seed
        return sizes

    def hook(self, name: str) -> Callable[..., None]:
        """Counts a layer when it runs."""

        def count(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            self._alive += [args, out]
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                self.inputs[args[0].data_ptr()] = args[0].nbytes
                if not name.endswith("downsample"):  # has the cotangent of the layer that it is added to
                    self.outputs.append(out.nbytes)
            elif isinstance(module, (nn.ReLU, nn.Dropout)):
                self.masks.append(bits(out))
            elif isinstance(module, nn.MaxPool2d):
                self.pools.append(out.numel())
                # The sweeps pool before they rectify, and find the cotangent below a pooling from the one above it.
                self.masks[-1], self.outputs[-1] = bits(out), out.nbytes

        return count

    def of_chains(self, chains: int, seed: int) -> int:
        """What the backward pass needs: cotangents and masks, with two chains activations too."""
        activations = sum(self.inputs.values()) if chains == 2 else 0
        return activations + sum(self.outputs) + sum(self.masks) + sum(self.pools) + seed


@by_name
@by_format
def test_two_chains_save_activations_cotangents_masks_and_nothing_else(name, memory_format, backend):
    model, x = build(name, memory_format=memory_format)
    found = of_attribute(model, x)
    assert found.total() == Sizes.of(model, x).of_chains(2, seed=4 * BATCH * CLASSES)


@by_name
@by_format
def test_an_attributed_loss_saves_cotangents_masks_and_nothing_else(name, memory_format, backend):
    model, x = build(name, memory_format=memory_format)
    found = of_attribute_loss(model, x)
    assert found.total() == Sizes.of(model, x).of_chains(1, seed=4 * BATCH * CLASSES)


@by_name
def test_one_output_saves_cotangents_masks_and_nothing_else(name, backend):
    model, x = build(name, classes=1)
    found = saved(lambda: xa.attribute(model, x), x, *model.parameters())
    assert found.total() == Sizes.of(model, x).of_chains(1, seed=4 * BATCH)


@by_name
def test_a_place_in_a_pooling_window_is_saved_in_one_byte(name, backend):
    model, x = build(name)
    assert of_attribute(model, x)[torch.uint8] == sum(Sizes.of(model, x).pools) > 0


@by_name
def test_dropout_in_evaluation_and_frozen_layers_save_less(name, backend):
    model, x = build(name)
    first = next(iter(model.parameters()))
    sizes = [of_attribute(model, x).total(), of_attribute(model.eval(), x).total()]
    first.requires_grad_(False)
    sizes.append(of_attribute(model, x).total())
    model.requires_grad_(False)
    sizes.append(of_attribute(model, x).total())
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] > sizes[2] > sizes[3] == 0


@pytest.mark.parametrize(("name", "two", "one"), [("xvgg16", 0.6, 0.32), ("xfixup_resnet18", 0.67, 0.36)])
def test_a_step_saves_less_than_double_backward(name, two, one, backend):
    model, x = build(name)
    explained, cotangent = x.clone().requires_grad_(), torch.randn(BATCH, CLASSES)
    exempt = (explained, *model.parameters())
    eager = saved(lambda: eager_attribute(model, explained, cotangent=cotangent), *exempt).total()
    assert of_attribute(model, x).total() <= two * eager
    assert of_attribute_loss(model, x).total() <= one * eager


class Dense(nn.Module):
    """Each layer reads what all before it have made."""

    def __init__(self, depth: int, growth: int) -> None:
        super().__init__()
        widths = [growth * (i + 1) for i in range(depth)]
        self.layers = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1, bias=False) for width in widths)
        self.head = nn.Linear(growth, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        made = [x]
        for layer in self.layers:
            made.append(layer(torch.cat(made, 1).relu()))
        return self.head(made[-1].mean((2, 3)))


def test_a_dense_network_saves_what_it_makes_once():
    model, x = Dense(8, 4), torch.randn(2, 4, 8, 8)
    labels = torch.tensor([1, 2])
    found = saved(lambda: xa.attribute(model, x, labels), x, *model.parameters())
    piece = 4 * x.numel()  # bytes of what one layer makes
    once = 7 * piece + 7 * piece  # h of all but the last, g of all but the last
    ends = 4 * 2 * 4 + 2 * 4 * 4 * 2  # the seed; the last layer's h and g, averaged
    assert found[torch.float32] <= once + ends
    masks = 8 * (8 + 1) // 2 * x.numel() // 8
    assert found[torch.int32] == masks
