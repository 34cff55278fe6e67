"""BagNet: a ResNet-50 whose outputs see patches of 9, 17 or 33 pixels only, averaged over the picture.

Sources: Brendel and Bethge, "Approximating CNNs with Bag-of-local-Features models works surprisingly well on ImageNet",
2019, for the layers and the names of the weights; "When Pretty Isn't Useful", arXiv 2602.19946, for BagNet-9.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class _Bottleneck(nn.Module):
    """1 x 1, then ``kernel`` without padding, then 1 x 1; the shortcut is cut at right and bottom to the same size."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, width: int, stride: int, kernel: int, resizes: bool) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel, stride, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if resizes
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(y + shortcut[:, :, : y.shape[2], : y.shape[3]])


class BagNet(nn.Module):
    """The network; pictures [B, 3, S, S] to logits [B, classes].

    Args:
        patch: pixels that an output sees: 9, 17 or 33.
        classes: outputs.

    Raises:
        ValueError: another patch.
    """

    stages_of: ClassVar[dict[int, int]] = {9: 2, 17: 3, 33: 4}
    """How many stages have a 3 x 3 kernel in their first block, by patch."""

    def __init__(self, patch: int, classes: int) -> None:
        super().__init__()
        if patch not in self.stages_of:
            raise ValueError(f"BagNet sees patches of {', '.join(map(str, self.stages_of))} pixels, not {patch}")
        self.conv1 = nn.Conv2d(3, 64, 1, bias=False)
        self.conv2 = nn.Conv2d(64, 64, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64, momentum=0.001)
        self.relu = nn.ReLU(inplace=True)
        inputs = 64
        for stage, (blocks, width, stride) in enumerate(((3, 64, 2), (4, 128, 2), (6, 256, 2), (3, 512, 1)), 1):
            layers = []
            for block in range(blocks):
                kernel = 3 if block == 0 and stage <= self.stages_of[patch] else 1
                layers.append(_Bottleneck(inputs, width, stride if block == 0 else 1, kernel, resizes=block == 0))
                inputs = width * _Bottleneck.expansion
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, x: Tensor) -> Tensor:
        """What is seen of every patch, [B, 2048, h, w]; 15, 14 or 12 a side of a picture of 128 pixels."""
        x = self.relu(self.bn1(self.conv2(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.maps(x).mean((-2, -1)))
        return logits
