"""Images as PNG files: one by one, or as a grid, enlarged so that small ones can be seen. All are uint8."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from t2ikit.files import publish


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


def save_grid(images: Tensor, path: Path, text: Mapping[str, str] | None = None, columns: int | None = None) -> Tensor:
    """Writes ``image_grid(images, columns)`` by :func:`save_png` and returns it: [N, 3, H, W] to [3, rows, width]."""
    picture = image_grid(images, columns)
    save_png(picture, path, text)
    return picture


def save_png(picture: Tensor, path: Path, text: Mapping[str, str] | None = None) -> None:
    """Writes a PNG, whole or not at all.

    Args:
        picture: [3, H, W] uint8 on the CPU.
        path: of the file; one that is there is replaced.
        text: entries of its text metadata (``PIL.Image.open(path).text``).
    """
    entries = PngInfo()
    for key, value in (text or {}).items():
        entries.add_text(key, value)
    partial = path.with_name(path.name + ".partial")
    try:
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(partial, format="PNG", pnginfo=entries)
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)
