"""X Fixup ResNet: residual networks without biases or normalisation, with Fixup initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ._options import ImageOptions, check_sizes

if TYPE_CHECKING:
    from typing_extensions import Unpack

_WIDTHS = (64, 128, 256, 512)  # channels inside the blocks of the four stages


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, **factory: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, **factory)


def _shortcut(inputs: int, outputs: int, stride: int, **factory: Any) -> nn.Module:
    """What stands beside a block's convolutions: nothing, or a 1x1 convolution where the shape changes."""
    return nn.Identity() if stride == 1 and inputs == outputs else _conv(inputs, outputs, 1, stride, **factory)


class BasicBlock(nn.Module):
    """x -> relu(conv2(relu(conv1(x))) + downsample(x)); the stride sits on conv1 and on downsample."""

    expansion: ClassVar[int] = 1
    exponent: ClassVar[float] = -1 / 2  # of the depth, in the scale of the initial weights

    def __init__(self, inputs: int, width: int, stride: int = 1, **factory: Any) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride, **factory)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3, **factory)
        self.downsample = _shortcut(inputs, width, stride, **factory)
        self.relu2 = nn.ReLU(inplace=True)

    def branch(self) -> list[nn.Conv2d]:
        """The convolutions that stand one after another, the last of which starts at zero."""
        return [self.conv1, self.conv2]

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, width, H / stride, W / stride]."""
        h = self.relu1(self.conv1(x))
        return self.relu2(self.conv2(h) + self.downsample(x))


class Bottleneck(nn.Module):
    """x -> relu(conv3(relu(conv2(relu(conv1(x))))) + downsample(x)); the stride sits on conv2 and on downsample."""

    expansion: ClassVar[int] = 4
    exponent: ClassVar[float] = -1 / 4

    def __init__(self, inputs: int, width: int, stride: int = 1, **factory: Any) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = _conv(inputs, width, 1, **factory)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3, stride, **factory)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = _conv(width, outputs, 1, **factory)
        self.downsample = _shortcut(inputs, outputs, stride, **factory)
        self.relu3 = nn.ReLU(inplace=True)

    def branch(self) -> list[nn.Conv2d]:
        """The convolutions that stand one after another, the last of which starts at zero."""
        return [self.conv1, self.conv2, self.conv3]

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, 4 * width, H / stride, W / stride]."""
        h = self.relu1(self.conv1(x))
        h = self.relu2(self.conv2(h))
        return self.relu3(self.conv3(h) + self.downsample(x))


Block = BasicBlock | Bottleneck


class XFixupResNet(nn.Module):
    """A residual network without biases or normalisation.

    block: BasicBlock or Bottleneck. depths: blocks of each of the four stages. The other arguments and the initial
    weights are explained at `xfixup_resnet18`.
    """

    def __init__(
        self,
        block: type[Block],
        depths: Sequence[int],
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=(num_classes, 1), in_channels=(in_channels, 1), image_size=(image_size, 1))
        factory = {"device": device, "dtype": dtype}
        self.conv1 = _conv(in_channels, _WIDTHS[0], 7, 2, **factory)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages: list[nn.Module] = []
        channels = _WIDTHS[0]
        for width, depth in zip(_WIDTHS, depths, strict=True):
            blocks = []
            for i in range(depth):
                stride = 2 if i == 0 and stages else 1
                blocks.append(block(channels, width, stride, **factory))
                channels = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes, bias=False, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fixup initialisation, as `xfixup_resnet18` explains it."""
        blocks = [module for module in self.modules() if isinstance(module, Block)]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        with torch.no_grad():
            for block in blocks:
                *convs, last = block.branch()
                for conv in convs:
                    conv.weight.mul_(len(blocks) ** block.exponent)
                last.weight.zero_()
            self.fc.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to logits [B, num_classes]."""
        h = self.maxpool(self.relu(self.conv1(x)))
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        return self.fc(torch.flatten(self.avgpool(h), 1))


def xfixup_resnet18(**options: Unpack[ImageOptions]) -> XFixupResNet:
    """X-ResNet-18: a Fixup ResNet without biases, with the parameter names and shapes of the authors' checkpoints.

    options: num_classes=1000, in_channels=3, image_size=224, device, dtype. image_size changes nothing here, because
    the last pooling is global; it is taken so that all image models are made alike. Images of any size work, down to
    one pixel; 32 and 64 end in maps of 1x1 and 2x2.

    Fixup initialisation (Zhang, Dauphin and Ma, ICLR 2019): the last convolution of every block and `fc` start at
    zero; the others are drawn from He's normal distribution by fan-out and, within the blocks but not on their
    shortcuts, scaled by depth^(-1/2) (basic blocks) or depth^(-1/4) (bottlenecks), depth being the number of blocks.
    A new network therefore answers zero and its attribution is zero: train a step or load a checkpoint before
    looking at either, and give `fc` its first gradient by a task's loss.
    """
    return XFixupResNet(BasicBlock, (2, 2, 2, 2), **options)


def xfixup_resnet34(**options: Unpack[ImageOptions]) -> XFixupResNet:
    """X-ResNet-34, of basic blocks; options and initial weights as for `xfixup_resnet18`."""
    return XFixupResNet(BasicBlock, (3, 4, 6, 3), **options)


def xfixup_resnet50(**options: Unpack[ImageOptions]) -> XFixupResNet:
    """X-ResNet-50, of bottlenecks; options and initial weights as for `xfixup_resnet18`."""
    return XFixupResNet(Bottleneck, (3, 4, 6, 3), **options)


def xfixup_resnet101(**options: Unpack[ImageOptions]) -> XFixupResNet:
    """X-ResNet-101, of bottlenecks; options and initial weights as for `xfixup_resnet18`."""
    return XFixupResNet(Bottleneck, (3, 4, 23, 3), **options)


def xfixup_resnet152(**options: Unpack[ImageOptions]) -> XFixupResNet:
    """X-ResNet-152, of bottlenecks; options and initial weights as for `xfixup_resnet18`."""
    return XFixupResNet(Bottleneck, (3, 8, 36, 3), **options)
