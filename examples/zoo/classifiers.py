"""Two small convolutional classifiers of digits: residual blocks, and inverted ones with depthwise kernels."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["CLASSIFIERS", "MobileNet", "ResNet"]


def _normed(inner: int, outer: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps places (or every other one), and its batch norm."""
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outer)]


class Residual(nn.Module):
    """Two 3x3 convolutions beside the input, or beside a 1x1 convolution of it where sizes change (He et al., 2016)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(*_normed(inner, outer, 3, stride), nn.ReLU(), *_normed(outer, outer, 3))
        changes = inner != outer or stride != 1
        self.beside = nn.Sequential(*_normed(inner, outer, 1, stride)) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[n, inner, h, w] -> [n, outer, h / stride, w / stride]."""
        return nn.functional.relu(self.main(x) + self.beside(x))


class Inverted(nn.Module):
    """A narrow stream, widened for a depthwise convolution in between (Sandler et al., MobileNetV2, 2018)."""

    def __init__(self, inner: int, outer: int, stride: int, factor: int = 4) -> None:
        super().__init__()
        wide = factor * inner
        self.main = nn.Sequential(
            *_normed(inner, wide), nn.ReLU6(), *_normed(wide, wide, 3, stride, wide), nn.ReLU6(), *_normed(wide, outer)
        )
        self.joins = inner == outer and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """[n, inner, h, w] -> [n, outer, h / stride, w / stride]."""
        return x + self.main(x) if self.joins else self.main(x)


class ResNet(nn.Module):
    """Images float32 [n, 1, 16, 16] in -1..1 -> scores [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_normed(1, 16, 3), nn.ReLU())
        sizes = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.blocks = nn.Sequential(*(Residual(*size) for size in sizes))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the ten digits."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class MobileNet(nn.Module):
    """Images float32 [n, 1, 16, 16] in -1..1 -> scores [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_normed(1, 16, 3), nn.ReLU6())
        sizes = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 40, 1)]
        self.blocks = nn.Sequential(*(Inverted(*size) for size in sizes))
        self.top = nn.Sequential(*_normed(40, 128), nn.ReLU6())
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the ten digits."""
        return self.head(self.top(self.blocks(self.stem(x))).mean((2, 3)))


CLASSIFIERS = {"resnet": ResNet, "mobilenet": MobileNet}
