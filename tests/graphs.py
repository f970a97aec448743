"""Small X-DNNs in float64 that are no chains: every way in which layers may meet, by name, with inputs for each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(fan_in: int, fan_out: int, size: int = 3, stride: int = 1, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, size, stride, size // 2, bias=False, **settings)


def linear(fan_in: int, fan_out: int) -> nn.Linear:
    return nn.Linear(fan_in, fan_out, bias=False)


class Graph(nn.Module):
    """A module from its layers and a function forward(self, *inputs)."""

    def __init__(self, forward: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class TwoInputs(Graph):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.run(self, x, y)


class WithFlag(Graph):
    """Takes an argument with a default, which a trace fixes."""

    def forward(self, x: Tensor, features: bool = False) -> Any:
        x = self.first(x).relu()
        return x if features else self.head(x)


class Case(NamedTuple):
    """A network and the shapes of a sample of each of its inputs."""

    build: Callable[[], nn.Module]
    samples: tuple[tuple[int, ...], ...]


def _residual(m: Any, x: Tensor) -> Tensor:
    x = m.relu(m.stem(x))
    y = m.second(m.relu(m.first(x)))
    y += x
    y = m.relu(y)
    return m.head(F.adaptive_avg_pool2d(m.relu(m.down(y) + m.skip(y)), 1).flatten(1))


def _dense(m: Any, x: Tensor) -> Tensor:
    features = [m.stem(x)]
    for layer in m.layers:
        features.append(layer(torch.cat(features, 1).relu()))
    return m.head(torch.cat(features, dim=1).mean((2, 3)))


def _functional(m: Any, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.relu(F.conv2d(x, m.kernel, padding=1)), 2)
    x = F.leaky_relu(x, 0.1).view(x.size(0), -1)
    return F.linear(F.dropout(x, 0.0, m.training), m.matrix)


def _functions_of_parameters(m: Any, x: Tensor) -> Tensor:
    x = x @ m.matrix.t().abs()
    x = (x * m.log_scale.exp()).relu()
    return x / (1 + m.scale.square()) @ F.normalize(m.head, dim=0)


def _scales(m: Any, x: Tensor) -> Tensor:
    x = m.first(x) * m.scale / 3
    return m.second(torch.relu(-x) * m.buffer - 0.5 * x) / m.divisor


def _split(m: Any, x: Tensor) -> Tensor:
    a, b, c = m.first(x).chunk(3, dim=1)
    d, e = torch.split(torch.maximum(a, b), [2, 2], 1)
    return m.head(torch.stack((d.relu(), e.abs()), -1).flatten(1) - torch.minimum(b, c))


def _sizes(m: Any, x: Tensor) -> Tensor:
    y = m.first(x).relu()
    z = F.interpolate(m.second(F.max_pool2d(y, 2)), size=x.shape[2:], mode="bilinear", align_corners=False)
    batch, channels = z.size(0), z.shape[1]
    return m.head((z + y).reshape(batch, channels, -1).sum(-1) / x.shape[-1])


def _unet(m: Any, x: Tensor) -> Tensor:
    first = m.first(x).relu()
    second = m.second(F.max_pool2d(first, 2)).relu()
    third = m.third(F.avg_pool2d(second, 2)).relu()
    up = torch.cat([m.up(third), second], 1)
    up = torch.cat([F.interpolate(m.fourth(up).relu(), scale_factor=2), first], 1)
    return m.head(up)[:, :, 0, 1:3].flatten(1)


def _inception(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x).relu()
    pooled = F.avg_pool2d(x, 3, 1, 1)
    branches = [m.one(x), m.three(m.reduce(x).relu()), m.pool(pooled), F.max_pool2d(x, 3, 1, 1)]
    return m.head(torch.cat([b.relu() for b in branches], 1).amax((2, 3)) if m.amax else _global(m, branches))


def _global(m: Any, branches: list[Tensor]) -> Tensor:
    return torch.cat([F.adaptive_max_pool2d(b.relu(), 1).flatten(1) for b in branches], 1)


def _shared(m: Any, x: Tensor) -> Tensor:
    for _ in range(3):
        x = m.middle(m.act(x)) + x
    return m.head(x)


def _tied_autoencoder(m: Any, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, m.weight).relu(), m.weight.t())


def _einsum(m: Any, x: Tensor) -> Tensor:
    x = torch.einsum("btk,nk->btn", x, m.first).relu()
    x = m.mixer @ x
    return torch.einsum("bte,tne->bn", x.relu(), m.head)


def _unused(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    torch.tanh(x)
    m.unused(x)
    return m.head(x.relu())


def _in_place(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    m.relu(x)
    y = m.second(x)
    y.add_(x).mul_(2)
    y -= 3 * x
    F.relu_(y)
    return m.head(y)


def _inner_output(m: Any, x: Tensor) -> Any:
    features = m.first(x).relu()
    return {"features": features, "logits": [m.head(features), m.head(2 * features)]}


def _two_inputs(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return m.head((m.first(x) + m.second(y.flatten(1))).relu())


def _one_input_unused(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return m.head(m.first(x).relu())


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / 2)


def _buffered(graph: Graph) -> Graph:
    graph.register_buffer("buffer", torch.rand(6, dtype=torch.float64) - 0.5)
    return graph


IMAGE = (3, 8, 8)

CASES: dict[str, Case] = {
    "residual": Case(
        lambda: Graph(
            _residual,
            relu=nn.ReLU(inplace=True),
            stem=conv(3, 6),
            first=conv(6, 6),
            second=conv(6, 6),
            head=linear(8, 4),
            down=conv(6, 8, 3, 2),
            skip=conv(6, 8, 1, 2),
        ),
        (IMAGE,),
    ),
    "dense": Case(
        lambda: Graph(
            _dense, stem=conv(3, 4), layers=nn.ModuleList(conv(4 + 3 * i, 3) for i in range(3)), head=linear(13, 4)
        ),
        (IMAGE,),
    ),
    "functional": Case(lambda: Graph(_functional, kernel=_parameter(4, 3, 3, 3), matrix=_parameter(5, 64)), (IMAGE,)),
    "functions of parameters": Case(
        lambda: Graph(
            _functions_of_parameters,
            matrix=_parameter(7, 6),
            log_scale=_parameter(7),
            scale=_parameter(1),
            head=_parameter(7, 3),
        ),
        ((6,),),
    ),
    "scales": Case(
        lambda: _buffered(
            Graph(
                _scales,
                first=linear(5, 6),
                second=linear(6, 3),
                scale=_parameter(6),
                divisor=nn.Parameter(torch.rand(3) + 1),
            )
        ),
        ((5,),),
    ),
    "split": Case(lambda: Graph(_split, first=linear(5, 12), head=linear(4, 3)), ((5,),)),
    "sizes": Case(lambda: Graph(_sizes, first=conv(3, 4), second=conv(4, 4), head=linear(4, 3)), (IMAGE,)),
    "U-Net": Case(
        lambda: Graph(
            _unet,
            first=conv(3, 4),
            second=conv(4, 6),
            third=conv(6, 8),
            fourth=conv(12, 4),
            up=nn.ConvTranspose2d(8, 6, 2, 2, bias=False),
            head=conv(8, 2),
        ),
        (IMAGE,),
    ),
    "inception": Case(
        lambda: Graph(
            _inception,
            amax=False,
            stem=conv(3, 4),
            one=conv(4, 3, 1),
            reduce=conv(4, 2, 1),
            three=conv(2, 3),
            pool=conv(4, 2, 1),
            head=linear(12, 4),
        ),
        (IMAGE,),
    ),
    "a layer called three times": Case(
        lambda: Graph(_shared, middle=linear(6, 6), act=nn.PReLU(), head=linear(6, 3)), ((6,),)
    ),
    "a weight and its transpose": Case(lambda: Graph(_tied_autoencoder, weight=_parameter(4, 6)), ((6,),)),
    "einsum": Case(
        lambda: Graph(_einsum, first=_parameter(4, 5), mixer=_parameter(3, 6), head=_parameter(3, 2, 4)), ((6, 5),)
    ),
    "unused layers": Case(
        lambda: Graph(_unused, first=linear(6, 5), unused=nn.Linear(5, 5), head=linear(5, 3)), ((6,),)
    ),
    "in place": Case(
        lambda: Graph(
            _in_place, first=linear(6, 5), relu=nn.ReLU(inplace=True), second=linear(5, 5), head=linear(5, 3)
        ),
        ((6,),),
    ),
    "several outputs": Case(lambda: Graph(_inner_output, first=linear(6, 5), head=linear(5, 3)), ((6,),)),
    "several inputs": Case(
        lambda: TwoInputs(_two_inputs, first=linear(6, 5), second=linear(12, 5), head=linear(5, 3)), ((6,), (4, 3))
    ),
    "several inputs and one output": Case(
        lambda: TwoInputs(_two_inputs, first=linear(6, 5), second=linear(12, 5), head=linear(5, 1)), ((6,), (4, 3))
    ),
    "an input that is not used": Case(
        lambda: TwoInputs(_one_input_unused, first=linear(6, 5), head=linear(5, 3)), ((6,), (4,))
    ),
    "a default argument": Case(lambda: WithFlag(None, first=linear(6, 5), head=linear(5, 3)), ((6,),)),
    "an addition of the input to itself": Case(lambda: Graph(lambda m, x: m.head(x + x), head=linear(6, 3)), ((6,),)),
    "one value returned twice": Case(
        lambda: Graph(lambda m, x: (lambda y: (y, y))(m.head(x).relu()), head=linear(6, 3)), ((6,),)
    ),
    "volumes": Case(
        lambda: nn.Sequential(
            nn.Conv3d(2, 4, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.PReLU(4),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            linear(4, 3),
        ),
        ((2, 4, 4, 4),),
    ),
    "signals": Case(
        lambda: nn.Sequential(
            nn.Conv1d(2, 6, 3, padding=1, padding_mode="circular", bias=False),
            nn.PReLU(6),
            nn.MaxPool1d(3, 2, 1),
            nn.ConvTranspose1d(6, 4, 3, 2, groups=2, bias=False),
            nn.LeakyReLU(0.1, inplace=True),
            nn.AvgPool1d(2),
            nn.Dropout1d(0.3),
            nn.Flatten(),
            nn.LazyLinear(3, bias=False),
        ),
        ((2, 12),),
    ),
    "images": Case(
        lambda: nn.Sequential(
            conv(3, 8, padding_mode="reflect"),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False),
            nn.Dropout2d(0.2),
            nn.PReLU(8),
            nn.ChannelShuffle(2),
            nn.PixelShuffle(2),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
            nn.LazyLinear(4, bias=False),
        ),
        (IMAGE,),
    ),
}


def build(name: str, batch: int = 3, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network, its lazy layers shaped, and inputs of the given batch."""
    case = CASES[name]
    model = case.build().to(dtype)
    inputs = tuple(torch.randn(batch, *sample, dtype=torch.float64).to(dtype) for sample in case.samples)
    with torch.no_grad():
        model(*(torch.randn(2, *sample).to(dtype) for sample in case.samples))
    return model, inputs
