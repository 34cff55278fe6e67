"""Images as files: one by one, or as a grid, enlarged so that small ones can be seen. All are uint8."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from t2ikit.files import partial_of, publish
from t2ikit.photos import SUFFIXES, BadImage, WrongSize, read_rgb


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
    """The pictures right in ``folder`` in the order that their names say: by number, 2 before 10.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
        ValueError: the names do not say an order; shows two of them.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not files:
        raise FileNotFoundError(f"no picture in {folder}")
    words = {path: re.split(r"([0-9]+)", path.stem) for path in files}  # text, digits, text, ..., text
    numbered = sorted(files, key=lambda path: ([_number_or_text(word) for word in words[path]], path.name))
    remedy = "name them by one pattern with a number that counts from 0 or 1, such as 00000.png"
    for before, after in pairwise(numbered):
        if [_number_or_text(word) for word in words[before]] == [_number_or_text(word) for word in words[after]]:
            raise ValueError(f"{folder}: {before.name} and {after.name} have the same number or name: {remedy}")
    if len({tuple(parts[::2]) for parts in words.values()}) > 1:
        for by_number, by_name in zip(numbered, sorted(files, key=lambda path: path.name), strict=True):
            if by_number != by_name:
                raise ValueError(
                    f"{folder}: the names do not say the order of the pictures ({by_number.name} or {by_name.name} "
                    f"first?): {remedy}"
                )
    return numbered


def _number_or_text(word: str) -> tuple[int, str]:
    return (int(word), "") if word.isdigit() else (-1, word)


def read_pictures(paths: Sequence[Path]) -> Tensor:
    """Pictures of one size as [N, 3, H, W] uint8, as :func:`t2ikit.photos.read_rgb` reads them.

    Raises:
        ValueError: a file that is no whole image, or of another size than the first; names it.
    """
    pictures: Tensor | None = None
    size: tuple[int, int] | None = None
    for index, path in enumerate(paths):
        try:
            pixels = read_rgb(path.read_bytes(), size)
        except WrongSize as error:
            raise ValueError(f"{path} has {error} as {paths[0]}: bring all to one size") from error
        except (BadImage, OSError) as error:
            raise ValueError(f"{path} is no whole image ({error}): write it again") from error
        if pictures is None:
            size = pixels.shape[2], pixels.shape[1]
            pictures = torch.empty(len(paths), *pixels.shape, dtype=torch.uint8)
        pictures[index] = torch.from_numpy(pixels)
    if pictures is None:
        raise ValueError("no pictures to read")
    return pictures
