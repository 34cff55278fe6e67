"""Networks of metrics, and feature extractors: images to vectors, each under the name that its scores carry.

Shape legend::

    B  images    H, W  pixels    D  features
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from t2ikit.pictures import Images
from t2ikit.pretrained import state_sha256


class NetworkHolder:
    """Has networks among its attributes; they go to the device of the images, and back to the CPU when all is seen."""

    def offload(self) -> None:
        """Brings all networks to the CPU: between two evaluations the GPU is the training's."""
        for value in vars(self).values():
            for network in value if isinstance(value, tuple) else (value,):
                if isinstance(network, NetworkHolder):
                    network.offload()
                elif isinstance(network, nn.Module):
                    network.to("cpu")


class FeatureExtractor(NetworkHolder, ABC):
    """Images [B, 3, H, W] uint8 to features [B, D] float32, a row per image, independent of the other rows.

    Attributes:
        name: the name in every score and fingerprint.
        dim: D.
    """

    name: str
    dim: int

    @property
    def file_name(self) -> str:
        """Says in the name of a file whose features it holds: the name, and the options that change them."""
        return self.name

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D] float32 of images [B, 3, H, W] uint8, on the device of the images."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """``features`` (the name), ``features_sha256`` (of the weights) and ``resize`` (the pixel pipeline)."""


def check_images(images: Images, smallest: int = 1) -> None:
    """ValueError unless ``images`` is [B, 3, H, W] uint8 with H and W at least ``smallest``."""
    if len(images.shape) != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"features need images [B, 3, H, W] uint8; got {tuple(images.shape)} {images.dtype}")
    if min(images.shape[2:]) < smallest:
        raise ValueError(f"images must be at least {smallest} pixels on a side; got {tuple(images.shape[2:])}")


class _RandomConvNet(nn.Module):
    """Three convolutions, halved between; mean and deviation of every channel and the last map in quarters."""

    CHANNELS = (3, 16, 32, 64)

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weights(*shape: int, fan_in: int) -> Tensor:
            # Uniform numbers are whole multiples of 2^-24: the same bits on every machine (normal ones are not).
            uniform = torch.rand(shape, generator=generator, dtype=torch.float32) * 2.0 - 1.0
            return uniform * (6.0 / fan_in) ** 0.5

        pairs = list(zip(self.CHANNELS[:-1], self.CHANNELS[1:], strict=True))
        for stage, (before, after) in enumerate(pairs):
            self.register_buffer(f"kernel_{stage}", weights(after, before, 3, 3, fan_in=9 * before))
            self.register_buffer(f"bias_{stage}", weights(after, fan_in=6) * 0.1)
        width = 2 * sum(self.CHANNELS[1:]) + 4 * self.CHANNELS[-1]
        self.register_buffer("projection", weights(width, dim, fan_in=width))
        self.stages = len(pairs)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> [B, D] float32."""
        x = images.to(torch.float32) / 127.5 - 1.0
        described = []
        for stage in range(self.stages):
            if stage:
                x = nn.functional.avg_pool2d(x, 2)
            x = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
            x = nn.functional.conv2d(x, self.get_buffer(f"kernel_{stage}"), self.get_buffer(f"bias_{stage}"))
            x = nn.functional.leaky_relu(x, 0.1)
            described += [x.mean(dim=(2, 3)), x.std(dim=(2, 3), correction=0)]
        described.append(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))
        return torch.cat(described, dim=1) @ self.get_buffer("projection")


@dataclass(eq=False)
class RandomConvFeatures(FeatureExtractor):
    """A seeded random convolutional network, for scores without a pretrained network.

    Its distances rank models on one data set; they are not comparable with any published number. Works on any image
    of 16 pixels a side or more, without a resize. The weights are the same bits on every machine.

    Attributes:
        dim: number of features.
        seed: of the weights.
    """

    dim: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1; got {self.dim}")
        self.name = f"random_conv_{self.dim}_seed{self.seed}"
        self._network = _RandomConvNet(self.dim, self.seed).eval()
        self._sha256 = state_sha256(self._network.state_dict())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, dim] float32 of images [B, 3, H, W] uint8 (H, W at least 16), on the device of the images."""
        check_images(images, smallest=16)
        with torch.autocast(images.device.type, enabled=False):
            return self._network.to(images.device)(images)

    def fingerprint(self) -> dict[str, Any]:
        """Name and hash of the weights; no resize."""
        return {"features": self.name, "features_sha256": self._sha256, "resize": "none"}
