"""Class folders of small pictures, for the tests of classifiers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

WNIDS = ("n01443537", "n01629819", "n01641577")


def fill(folder: Path, count: int, seed: int, wnids: tuple[str, ...] = WNIDS, size: tuple[int, int] = (20, 18)) -> Path:
    """``count`` pictures of noise a class, which is brighter in the channel of its class."""
    numbers = np.random.default_rng(seed)
    for label, wnid in enumerate(wnids):
        (folder / wnid).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = numbers.integers(0, 120, (*size, 3)).astype(np.uint8)
            pixels[..., label % 3] += 100
            Image.fromarray(pixels).save(folder / wnid / f"{index}.png")
    return folder


def tiny_depth_anything(folder: Path) -> Path:
    """Depth Anything V2 with its processor, of the real classes, in the smallest size: 28 pixels."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    stages = [f"stage{number}" for number in range(1, 5)]
    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=28,
        out_features=stages,
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(
        size={"height": 28, "width": 28},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder
