"""X-AlexNet: AlexNet without biases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ._options import DropoutOptions, check_sizes

if TYPE_CHECKING:
    from typing_extensions import Unpack

_HIDDEN = 4096
_POOLED = 6  # side of the feature map that the classifier sees, for images of 224 pixels


def _side(image_size: int) -> int:
    """Side of the feature map, after a convolution of 11 with stride 4 and padding 2 and three poolings of 3 with 2."""
    side = (image_size - 7) // 4 + 1
    for _ in range(3):
        side = (side - 1) // 2
    return side


class XAlexNet(nn.Module):
    """AlexNet (the one-tower variant of torchvision) without biases; see `xalexnet`."""

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        dropout: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=(num_classes, 1), in_channels=(in_channels, 1), image_size=(image_size, 63))

        def conv(inputs: int, outputs: int, kernel: int, padding: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False, device=device, dtype=dtype)

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False, device=device, dtype=dtype)

        self.features = nn.Sequential(
            *(conv(in_channels, 64, 11, 2, stride=4), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(conv(64, 192, 5, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(conv(192, 384, 3, 1), nn.ReLU(inplace=True)),
            *(conv(384, 256, 3, 1), nn.ReLU(inplace=True)),
            *(conv(256, 256, 3, 1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        )
        side = min(_POOLED, _side(image_size))
        self.avgpool = nn.AdaptiveAvgPool2d((side, side))
        self.classifier = nn.Sequential(
            *(nn.Dropout(dropout), linear(256 * side * side, _HIDDEN), nn.ReLU(inplace=True)),
            *(nn.Dropout(dropout), linear(_HIDDEN, _HIDDEN), nn.ReLU(inplace=True)),
            linear(_HIDDEN, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to logits [B, num_classes]."""
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def xalexnet(**options: Unpack[DropoutOptions]) -> XAlexNet:
    """X-AlexNet: AlexNet without biases, with the parameter names and shapes of the authors' checkpoint.

    options: num_classes=1000, in_channels=3, image_size=224, dropout=0.5, device, dtype. image_size (63 at least) is
    the side of the images that the classifier is made for: it sees a map of 6x6 from 223 pixels on, and below that
    one as large as the features then are (1x1 at 64). Images of another size are pooled to the same map. Weights are
    initialised as torch.nn.Conv2d and torch.nn.Linear do.
    """
    return XAlexNet(**options)
