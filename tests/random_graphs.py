"""X-DNNs drawn at random from the rules: every node reads values that earlier ones made."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import xattr_cuda as xa

Shape = tuple[int, int, int]  # channels, height, width
MOST = 24  # channels, and pixels a side


class Node(NamedTuple):
    """A call in a random graph: a function of values, by their indices, or the module of that index."""

    call: Callable[..., Any] | int
    reads: tuple[int, ...]


class Draw:
    """Grows a graph node by node. A drawer returns whether it found values to read."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.nodes: list[Node] = []
        self.modules: list[nn.Module] = []
        self.shapes: list[Shape] = [(3, 8, 8)]

    def add(self, call: Callable[..., Any] | nn.Module, reads: tuple[int, ...], shape: Shape) -> bool:
        if min(shape) < 1 or max(shape) > MOST:
            return False
        if isinstance(call, nn.Module):
            self.modules.append(call)
            call = len(self.modules) - 1
        self.nodes.append(Node(call, reads))
        self.shapes.append(shape)
        return True

    def pick(self) -> tuple[int, Shape]:
        """A value, late ones rather than early ones."""
        i = max(self.random.randrange(len(self.shapes)) for _ in range(2))
        return i, self.shapes[i]

    def alike(self, same: Callable[[Shape], Any]) -> tuple[int, int] | None:
        """Two values that agree in same(shape)."""
        i, shape = self.pick()
        others = [j for j, other in enumerate(self.shapes) if j != i and same(other) == same(shape)]
        return (i, self.random.choice(others)) if others else None

    def conv(self) -> bool:
        i, (c, h, w) = self.pick()
        groups = self.random.choice([g for g in (1, 2, 3, c) if c % g == 0])
        out, stride = groups * self.random.randint(1, 3), self.random.choice([1, 1, 2])
        mode = self.random.choice(["zeros", "zeros", "reflect", "replicate", "circular"]) if min(h, w) > 1 else "zeros"
        layer = nn.Conv2d(c, out, 3, stride, 1, groups=groups, bias=False, padding_mode=mode)
        return self.add(layer, (i,), (out, (h - 1) // stride + 1, (w - 1) // stride + 1))

    def transposed_conv(self) -> bool:
        i, (c, h, w) = self.pick()
        out = self.random.randint(1, 4)
        return self.add(nn.ConvTranspose2d(c, out, 2, 2, bias=False), (i,), (out, 2 * h, 2 * w))

    def activation(self) -> bool:
        i, shape = self.pick()
        layers = [nn.ReLU(), nn.LeakyReLU(-0.3), nn.PReLU(), nn.PReLU(shape[0]), xa.nn.BatchScale2d(shape[0])]
        return self.add(self.random.choice(layers), (i,), shape)

    def function(self) -> bool:
        i, shape = self.pick()
        calls = [F.relu, torch.abs, torch.neg, lambda t: t * 0.7, lambda t: t / 1.3, lambda t: t.flip(-1) + 2 * t]
        return self.add(self.random.choice(calls), (i,), shape)

    def pool(self) -> bool:
        i, (c, h, w) = self.pick()
        layers = [nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1, ceil_mode=True)]
        layer = self.random.choice(layers)
        with torch.no_grad():
            return self.add(layer, (i,), tuple(layer(torch.zeros(1, c, h, w)).shape[1:]))

    def adaptive_pool(self) -> bool:
        i, (c, _, _) = self.pick()
        layer = self.random.choice([nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
        return self.add(layer((3, 2)), (i,), (c, 3, 2))

    def resample(self) -> bool:
        i, (c, h, w) = self.pick()
        mode = self.random.choice(["nearest", "bilinear"])
        return self.add(nn.Upsample(scale_factor=2, mode=mode), (i,), (c, 2 * h, 2 * w))

    def shuffle(self) -> bool:
        i, (c, h, w) = self.pick()
        return c % 4 == 0 and self.add(nn.PixelShuffle(2), (i,), (c // 4, 2 * h, 2 * w))

    def join(self) -> bool:
        pair = self.alike(lambda shape: shape)
        calls = [torch.add, torch.sub, torch.maximum, torch.minimum, lambda a, b: a + 0.5 * b]
        return pair is not None and self.add(self.random.choice(calls), pair, self.shapes[pair[0]])

    def concatenate(self) -> bool:
        pair = self.alike(lambda shape: shape[1:])
        if pair is None:
            return False
        (a, h, w), (b, _, _) = (self.shapes[i] for i in pair)
        return self.add(lambda *t: torch.cat(t, 1), pair, (a + b, h, w))

    def piece(self) -> bool:
        i, (c, h, w) = self.pick()
        calls = [lambda t: t.chunk(2, 1)[0], lambda t: t[:, : (t.shape[1] + 1) // 2]]
        return c > 1 and self.add(self.random.choice(calls), (i,), ((c + 1) // 2, h, w))

    def transpose(self) -> bool:
        i, (c, h, w) = self.pick()
        return self.add(lambda t: t.transpose(2, 3), (i,), (c, w, h))

    def grow(self, count: int) -> None:
        drawers = [self.conv, self.conv, self.activation, self.activation, self.function, self.pool, self.join]
        drawers += [self.join, self.concatenate, self.piece, self.transpose, self.resample, self.shuffle]
        drawers += [self.transposed_conv, self.adaptive_pool]
        while len(self.nodes) < count:
            self.random.choice(drawers)()


class RandomGraph(nn.Module):
    """A graph of about `count` nodes; its last values are pooled, joined and weighted into `classes` outputs."""

    def __init__(self, seed: int, count: int = 12, classes: int = 3) -> None:
        super().__init__()
        draw = Draw(seed)
        draw.grow(count)
        self.nodes, self.layers = draw.nodes, nn.ModuleList(draw.modules)
        self.last = range(len(draw.shapes) - 3, len(draw.shapes))
        self.head = nn.Linear(sum(draw.shapes[i][0] for i in self.last), classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for call, reads in self.nodes:
            call = self.layers[call] if isinstance(call, int) else call
            values.append(call(*(values[i] for i in reads)))
        return self.head(torch.cat([values[i].mean((2, 3)) for i in self.last], 1))
