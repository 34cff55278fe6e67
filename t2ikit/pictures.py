"""Images as files: one by one, as a grid, enlarged so that small ones can be seen, or as a sequence that stays on disk.

All are uint8. 50,000 images of 256 pixels are 10 GB, so whoever reads many of them reads slices of ``Images``.
"""

from __future__ import annotations

import io
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from t2ikit.files import write_whole
from t2ikit.photos import SUFFIXES, BadImage, read_rgb, size_of


class Images(Protocol):
    """Images of one size, uint8 [N, 3, H, W]: a tensor, or a sequence on disk (``StoredImages``)."""

    @property
    def shape(self) -> Sequence[int]:
        """(N, 3, H, W)."""

    @property
    def dtype(self) -> torch.dtype:
        """``torch.uint8``."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, index: Any) -> Tensor:
        """One image [3, H, W], or those of a slice or a list of indices [n, 3, H, W]."""


class StoredImages(ABC):
    """Images on disk, read when they are asked for; nothing stays in memory.

    Args:
        count: N.
        size: (H, W).
    """

    dtype = torch.uint8

    def __init__(self, count: int, size: Sequence[int]) -> None:
        self.shape = (count, 3, *size)

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Image [3, H, W] uint8 at ``index``, from 0 to N - 1."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int]) -> Tensor:
        if isinstance(index, int):
            return self[[index]][0]
        every = range(len(self))
        indices = every[index] if isinstance(index, slice) else [every[entry] for entry in index]
        images = torch.empty(len(indices), *self.shape[1:], dtype=torch.uint8)
        for row, entry in enumerate(indices):
            images.numpy()[row] = self.read(entry)
        return images


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


class Pictures(list[Image.Image]):
    """Images as PIL has them; a notebook shows them as one grid.

    Args:
        images: [3, H, W] uint8 each.
        columns: of the grid; default the square root of their number, rounded up.
    """

    def __init__(self, images: Sequence[Tensor], columns: int | None = None) -> None:
        super().__init__(Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images)
        self.columns = columns

    def grid(self) -> Image.Image:
        """All of them side by side on white; small ones are enlarged."""
        images = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in self])
        return Image.fromarray(image_grid(images, self.columns).permute(1, 2, 0).contiguous().numpy())

    def _repr_png_(self) -> bytes | None:
        if not self:
            return None
        stream = io.BytesIO()
        self.grid().save(stream, format="PNG")
        return stream.getvalue()


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
    write_whole(path, png(picture, text))


def png(picture: Tensor, text: Mapping[str, str] | None = None) -> bytes:
    """The content of a PNG of a picture [3, H, W] uint8 on the CPU; ``text`` as in :func:`save_png`."""
    entries, content = PngInfo(), io.BytesIO()
    for key, value in (text or {}).items():
        entries.add_text(key, value)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(content, format="PNG", pnginfo=entries)
    return content.getvalue()


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


class PictureFiles(StoredImages):
    """Pictures of one size, as :func:`t2ikit.photos.read_rgb` reads them. The sizes are compared at once, from the
    heads of the files.

    Args:
        paths: at least one.

    Raises:
        ValueError: a file that is no image, or of another size than the first; names it. Reading raises it for an
            image that is cut off.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise ValueError("no pictures to read")
        self.paths = paths
        width, height = head_of(paths[0])
        super().__init__(len(paths), (height, width))
        for path in paths:
            size = head_of(path)
            if size != (width, height):
                raise ValueError(
                    f"{path} has {size[0]} x {size[1]} pixels, not {width} x {height} as {paths[0]}: bring all to one "
                    "size"
                )

    def read(self, index: int) -> np.ndarray:
        """Decodes the file."""
        path = self.paths[index]
        with named(path):
            return read_rgb(path.read_bytes(), (self.shape[3], self.shape[2]))


def head_of(path: Path) -> tuple[int, int]:
    """Width and height of a picture, by the head of its file.

    Raises:
        ValueError: the file is no picture; names it.
    """
    with named(path), path.open("rb") as file:
        return size_of(file)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """ValueError that names the file where it cannot be read."""
    try:
        yield
    except (BadImage, OSError) as error:
        raise ValueError(f"{path} is no whole image ({error}): write it again") from error
