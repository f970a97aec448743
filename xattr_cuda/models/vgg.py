"""X-VGG: the VGG networks without biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ._options import DropoutOptions, check_sizes

if TYPE_CHECKING:
    from typing_extensions import Unpack

_WIDTHS = (64, 128, 256, 512, 512)  # channels of the stages; each ends in a pooling that halves the side
_HIDDEN = 4096
_POOLED = 7  # side of the feature map that the classifier sees, for images of 224 pixels


class XVGG(nn.Module):
    """A VGG network without biases.

    depths: convolutions of each of the five stages. The other arguments are explained at `xvgg11`. `features` is the
    trunk, from images [B, in_channels, H, W] to [B, 512, H // 32, W // 32], `classifier` what follows it.
    """

    def __init__(
        self,
        depths: Sequence[int],
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        dropout: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=(num_classes, 1), in_channels=(in_channels, 1), image_size=(image_size, 32))

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False, device=device, dtype=dtype)

        layers: list[nn.Module] = []
        for depth, width in zip(depths, _WIDTHS, strict=True):
            for _ in range(depth):
                layers.append(nn.Conv2d(in_channels, width, 3, padding=1, bias=False, device=device, dtype=dtype))
                layers.append(nn.ReLU(inplace=True))
                in_channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        side = min(_POOLED, image_size // 32)
        self.avgpool = nn.AdaptiveAvgPool2d((side, side))
        self.classifier = nn.Sequential(
            *(linear(in_channels * side * side, _HIDDEN), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            *(linear(_HIDDEN, _HIDDEN), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            linear(_HIDDEN, num_classes),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw convolutions from He's normal distribution by fan-out, linear layers from a normal one of 0.01."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to logits [B, num_classes]."""
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def xvgg11(**options: Unpack[DropoutOptions]) -> XVGG:
    """X-VGG11: VGG with 11 weight layers (configuration A) without biases or batch normalisation.

    Parameter names and shapes are those of the authors' checkpoints and of torchvision. options: num_classes=1000,
    in_channels=3, image_size=224, dropout=0.5, device, dtype. image_size (32 at least) is the side of the images that
    the classifier is made for: it sees a map of 7x7 from 224 pixels on, and below that one of image_size // 32 (2x2
    at 64, 1x1 at 32), which makes its first layer narrower. Images of another size are pooled to the same map.
    """
    return XVGG((1, 1, 2, 2, 2), **options)


def xvgg13(**options: Unpack[DropoutOptions]) -> XVGG:
    """X-VGG13: 13 weight layers (configuration B); options as for `xvgg11`."""
    return XVGG((2, 2, 2, 2, 2), **options)


def xvgg16(**options: Unpack[DropoutOptions]) -> XVGG:
    """X-VGG16: 16 weight layers (configuration D); options as for `xvgg11`."""
    return XVGG((2, 2, 3, 3, 3), **options)


def xvgg19(**options: Unpack[DropoutOptions]) -> XVGG:
    """X-VGG19: 19 weight layers (configuration E); options as for `xvgg11`."""
    return XVGG((2, 2, 4, 4, 4), **options)
