"""Images as files: one by one, or as a grid, enlarged so that small ones can be seen. All are uint8."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from t2ikit.files import partial_of, publish

SUFFIXES = (".png", ".jpg", ".jpeg")


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
    partial = partial_of(path)
    try:
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(partial, format="PNG", pnginfo=entries)
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def find_pictures(folder: Path) -> list[Path]:
    """PNG and JPEG files right in ``folder``, by number where every name is one (2 before 10), else by name.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not files:
        raise FileNotFoundError(f"no PNG or JPEG file in {folder}")
    numbered = all(path.stem.isdecimal() for path in files)
    return sorted(files, key=lambda path: (int(path.stem) if numbered else 0, path.name))


def read_pictures(paths: Sequence[Path]) -> Tensor:
    """Pictures of one size as [N, 3, H, W] uint8; grey ones are taken to RGB.

    Raises:
        ValueError: a file that is no whole image, or of another size than the first; names it.
    """
    pictures: Tensor | None = None
    for index, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"{path} is no whole image ({error}): write it again") from error
        if pictures is None:
            pictures = torch.empty(len(paths), 3, *pixels.shape[:2], dtype=torch.uint8)
        if pixels.shape[:2] != pictures.shape[2:]:
            sizes = [f"{width} x {height}" for height, width in (pixels.shape[:2], pictures.shape[2:])]
            raise ValueError(f"{path} has {sizes[0]} pixels, {paths[0]} has {sizes[1]}: bring all to one size")
        pictures[index] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    if pictures is None:
        raise ValueError("no pictures to read")
    return pictures
