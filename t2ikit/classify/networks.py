"""The networks that are trained, all from scratch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision import models

from t2ikit.classify.bagnet import BagNet
from t2ikit.config.errors import nearest


def _timm(name: str, **options: Any) -> nn.Module:
    import timm  # late: two thirds of a second of every start, and of use to classifiers alone

    network: nn.Module = timm.create_model(name, pretrained=False, **options)
    return network


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet50": lambda classes, size: models.resnet50(num_classes=classes),
    "vit_tiny": lambda classes, size: _timm("vit_tiny_patch16_224", num_classes=classes, img_size=size),
    "convnext_tiny": lambda classes, size: models.convnext_tiny(num_classes=classes),
    "swin_tiny": lambda classes, size: models.swin_t(num_classes=classes),
    "bagnet9": lambda classes, size: BagNet(9, classes),
    "bagnet17": lambda classes, size: BagNet(17, classes),
    "bagnet33": lambda classes, size: BagNet(33, classes),
    "resnet18": lambda classes, size: models.resnet18(num_classes=classes),
    "test_resnet": lambda classes, size: _timm("test_resnet", num_classes=classes),
}
"""By name: of (classes, pixels a side). The last two are small ones, for metrics in training and for proofs."""


def build_network(name: str, classes: int, size: int) -> nn.Module:
    """A network with fresh weights, which come from the global random numbers.

    Args:
        name: of :data:`NETWORKS`.
        classes: outputs.
        size: pixels a side of what it is shown; ``vit_tiny`` takes multiples of 16.

    Raises:
        ValueError: no such network, or a size that it cannot take.
    """
    if name not in NETWORKS:
        raise ValueError(f"there is no network {name!r}{nearest(name, NETWORKS)}")
    if name == "vit_tiny" and size % 16:
        raise ValueError(f"vit_tiny takes pictures of a multiple of 16 pixels, not {size}")
    return NETWORKS[name](classes, size)
