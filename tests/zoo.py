"""Networks with the structure of torchvision's, small enough for 32 x 32 inputs, written as a user would write them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, block: type[BasicBlock] | type[Bottleneck], layers: list[int], classes: int = 10) -> None:
        super().__init__()
        self.inplanes = 8
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._make_layer(block, 8, layers[0], 1)
        self.layer2 = self._make_layer(block, 12, layers[1], 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(12 * block.expansion, classes)

    def _make_layer(
        self, block: type[BasicBlock] | type[Bottleneck], planes: int, blocks: int, stride: int
    ) -> nn.Sequential:
        downsample = None
        if stride != 1 or self.inplanes != planes * block.expansion:
            downsample = nn.Sequential(
                nn.Conv2d(self.inplanes, planes * block.expansion, 1, stride, bias=False),
                nn.BatchNorm2d(planes * block.expansion),
            )
        layers = [block(self.inplanes, planes, stride, downsample)]
        self.inplanes = planes * block.expansion
        layers += [block(self.inplanes, planes) for _ in range(1, blocks)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        x = torch.flatten(self.avgpool(x), 1)
        return self.fc(x)


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int, drop_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)
        self.drop_rate = drop_rate

    def forward(self, features: list[Tensor]) -> Tensor:
        bottleneck = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        new = self.conv2(self.relu2(self.norm2(bottleneck)))
        if self.drop_rate > 0:
            new = F.dropout(new, p=self.drop_rate, training=self.training)
        return new


class DenseBlock(nn.ModuleDict):
    def __init__(self, layers: int, channels: int, growth: int, drop_rate: float) -> None:
        super().__init__()
        for i in range(layers):
            self.add_module(f"denselayer{i + 1}", DenseLayer(channels + i * growth, growth, drop_rate))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self, drop_rate: float = 0.1, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, 8, 3, 2, 1, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(8))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.features.add_module("denseblock1", DenseBlock(2, 8, 4, drop_rate))
        transition = nn.Sequential()
        transition.add_module("norm", nn.BatchNorm2d(16))
        transition.add_module("relu", nn.ReLU(inplace=True))
        transition.add_module("conv", nn.Conv2d(16, 8, 1, bias=False))
        transition.add_module("pool", nn.AvgPool2d(2, 2))
        self.features.add_module("transition1", transition)
        self.features.add_module("denseblock2", DenseBlock(2, 8, 4, drop_rate))
        self.features.add_module("norm5", nn.BatchNorm2d(16))
        self.classifier = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.features(x), inplace=True)
        out = F.adaptive_avg_pool2d(out, (1, 1))
        return self.classifier(torch.flatten(out, 1))


class Fire(nn.Module):
    def __init__(self, inplanes: int, squeeze: int, expand1: int, expand3: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inplanes, squeeze, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand1, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand3, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            [self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1
        )


class SqueezeNet(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(8, 4, 6, 6),
            Fire(12, 4, 6, 6),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(12, 6, 8, 8),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.5), nn.Conv2d(16, classes, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.classifier(self.features(x))
        return torch.flatten(x, 1)


class BasicConv2d(nn.Module):
    def __init__(self, inplanes: int, planes: int, **kwargs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inplanes, planes, bias=False, **kwargs)
        self.bn = nn.BatchNorm2d(planes, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x, inplace=True)


class InceptionA(nn.Module):
    def __init__(self, inplanes: int, pool_features: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(inplanes, 6, kernel_size=1)
        self.branch5x5_1 = BasicConv2d(inplanes, 4, kernel_size=1)
        self.branch5x5_2 = BasicConv2d(4, 6, kernel_size=5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(inplanes, 4, kernel_size=1)
        self.branch3x3dbl_2 = BasicConv2d(4, 6, kernel_size=3, padding=1)
        self.branch_pool = BasicConv2d(inplanes, pool_features, kernel_size=1)

    def _forward(self, x: Tensor) -> list[Tensor]:
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3dbl = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branch_pool = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return [self.branch1x1(x), branch5x5, branch3x3dbl, branch_pool]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self._forward(x), 1)


class Inception(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 8, kernel_size=3, stride=2)
        self.maxpool1 = nn.MaxPool2d(kernel_size=3, stride=2)
        self.Mixed_5b = InceptionA(8, 4)
        self.Mixed_5c = InceptionA(22, 6)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(p=0.5)
        self.fc = nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Mixed_5c(self.Mixed_5b(self.maxpool1(self.Conv2d_1a_3x3(x))))
        x = self.dropout(self.avgpool(x))
        return self.fc(torch.flatten(x, 1))


def _double_conv(inplanes: int, planes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inplanes, planes, 3, padding=1),
        nn.BatchNorm2d(planes),
        nn.ReLU(inplace=True),
        nn.Conv2d(planes, planes, 3, padding=1),
        nn.BatchNorm2d(planes),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Segmentation: outputs [B, classes, H, W]."""

    def __init__(self, transposed: bool, classes: int = 2) -> None:
        super().__init__()
        self.inc = _double_conv(3, 4)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), _double_conv(4, 8))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), _double_conv(8, 8))
        self.up1, self.up2 = self._up(8, transposed), self._up(8, transposed)
        self.merge1 = _double_conv(16, 8)
        self.merge2 = _double_conv(12, 4)
        self.outc = nn.Conv2d(4, classes, 1)

    def _up(self, planes: int, transposed: bool) -> nn.Module:
        if transposed:
            return nn.Sequential(
                nn.ConvTranspose2d(planes, planes, 2, stride=2, groups=2), nn.BatchNorm2d(planes), nn.ReLU()
            )
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        y = self.merge1(torch.cat([x2, self.up1(x3)], dim=1))
        y = self.merge2(torch.cat([x1, self.up2(y)], dim=1))
        return self.outc(y)


class Perceptron(nn.Module):
    """BatchNorm1d after a linear layer, at the input and after an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm1d(12)
        self.fc1 = nn.Linear(12, 16)
        self.bn1 = nn.BatchNorm1d(16)
        self.fc2 = nn.Linear(16, 16)
        self.bn2 = nn.BatchNorm1d(16, affine=False)
        self.fc3 = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.fc1(self.bn0(x))))
        return self.fc3(self.bn2(F.leaky_relu(self.fc2(x), 0.1)))


def gelu_perceptron() -> nn.Module:
    """Becomes an X-DNN only where its activations may be replaced."""
    return nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3))


class LayerNormMixer(nn.Module):
    """Cannot become an X-DNN: two LayerNorms, a GroupNorm and a GELU written into the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.GroupNorm(2, 8)
        self.norm1 = nn.LayerNorm(8)
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 8)
        self.norm2 = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).flatten(2).transpose(1, 2)  # [B, 64, 8]
        x = x + self.fc2(F.gelu(self.fc1(self.norm1(x))))
        return self.head(self.norm2(x).mean(1))


class TwoInputs(nn.Module):
    """A network of two inputs, one bias and an argument that is no input."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3, bias=False), nn.Linear(5, 3, bias=bias)

    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        return torch.relu(self.left(a) + self.right(b)) * scale


def trained(model: nn.Module, *, centred: bool = False) -> nn.Module:
    """The model with parameters and statistics as training leaves them; centred: means, shifts and biases are zero."""
    for m in model.modules():
        if isinstance(m, NORMS):
            if m.running_var is not None:
                m.running_var.uniform_(0.5, 2)
                m.running_mean.normal_(0, 0 if centred else 1)
            if m.affine:
                nn.init.normal_(m.weight)
                nn.init.normal_(m.bias, 0, 0 if centred else 1)
        elif centred and getattr(m, "bias", None) is not None:
            nn.init.zeros_(m.bias)
    return model


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# Networks that `convert` makes X-DNNs by its defaults, each with the shape of a sample.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (lambda: ResNet(BasicBlock, [2, 1]), (3, 32, 32)),
    "resnet bottleneck": (lambda: ResNet(Bottleneck, [1, 1]), (3, 32, 32)),
    "densenet": (DenseNet, (3, 32, 32)),
    "squeezenet": (SqueezeNet, (3, 32, 32)),
    "inception": (Inception, (3, 32, 32)),
    "unet transposed": (lambda: UNet(transposed=True), (3, 32, 32)),
    "unet upsampled": (lambda: UNet(transposed=False), (3, 32, 32)),
    "perceptron": (Perceptron, (12,)),
}
