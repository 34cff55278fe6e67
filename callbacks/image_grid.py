"""A grid of images as one PNG, enlarged so that small images can be seen. Images are uint8 [N, 3, H, W]."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from t2ikit.callbacks.checkpoint import publish


def image_grid(images: Tensor, columns: int | None = None, smallest: int = 96, gap: int = 2) -> Tensor:
    """Images side by side on white.

    Args:
        images: [N, 3, H, W] uint8.
        columns: images in a row; default the square root of N, rounded up.
        smallest: images with a shorter side are enlarged by a whole factor to at least this many pixels.
        gap: white pixels between two images.

    Returns:
        [3, rows, width] uint8.
    """
    count, _, height, width = images.shape
    factor = max(1, math.ceil(smallest / min(height, width)))
    images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    height, width = images.shape[2:]
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = torch.full((3, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for index in range(count):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        canvas[:, top : top + height, left : left + width] = images[index]
    return canvas


def save_grid(images: Tensor, path: Path) -> Tensor:
    """Writes ``image_grid(images)`` as a PNG, whole or not at all, and returns it [3, rows, width]."""
    picture = image_grid(images)
    partial = path.with_name(path.name + ".partial")
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(partial, format="PNG")
    publish(partial, path)
    return picture
