"""Images of a snapshot while it is under way: a folder with one file a batch, so that an interrupt costs a batch.

    NAME.sampling/identity.json                what the images depend on
    NAME.sampling/00000128-00000256.npy        images 128 to 255, uint8 [128, 3, H, W]
    NAME.sampling/00000128-00000256.values     of a search: the verifier's score of their candidates, float64 [128, N]
    NAME.sampling/00000128-00000256.firsts     of a search: their first candidates, uint8, of the first images alone

A file is written whole or not at all. Images of another identity are removed when the folder is opened.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2ikit.evaluation.search import Chosen
from t2ikit.files import write_whole
from t2ikit.pictures import Images, StoredImages

IDENTITY = "identity.json"
FIRSTS = 64
"""Images whose first candidate is kept, for the picture of first against best."""


def identity_text(identity: dict[str, Any]) -> str:
    """What images depend on, as the file holds it."""
    return json.dumps(identity, indent=2, sort_keys=True) + "\n"


class ImageStore:
    """The images sampled so far.

    Args:
        folder: for these images alone; any other file in it may be removed.
        count: images when all are there.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count

    def open(self, identity: dict[str, Any]) -> None:
        """Keeps the images of this identity, removes any other file. One process calls it, before the others go on."""
        path = self.folder / IDENTITY
        text = identity_text(identity)
        if not path.is_file() or path.read_text() != text:
            self.discard()
            write_whole(path, text)

    def missing(self, batch_size: int) -> list[range]:
        """What is still to be sampled, cut at the multiples of ``batch_size``: whole batches where no image is."""
        stored = np.zeros(self.count, dtype=bool)
        for first, end, _ in self._files():
            stored[first:end] = True
        batches: list[range] = []
        for start in range(0, self.count, batch_size):
            indices = [index for index in range(start, min(start + batch_size, self.count)) if not stored[index]]
            for index in indices:
                if batches and batches[-1].stop == index and index % batch_size:
                    batches[-1] = range(batches[-1].start, index + 1)
                else:
                    batches.append(range(index, index + 1))
        return batches

    def add(self, first: int, images: Tensor) -> None:
        """Keeps images ``first`` to ``first + B - 1``, uint8 [B, 3, H, W]."""
        self._write(first, first + len(images), "npy", images)

    def add_chosen(self, first: int, chosen: Chosen) -> None:
        """Keeps what a search gave for images ``first`` to ``first + B - 1``."""
        end = first + len(chosen.images)
        self._write(first, end, "values", chosen.values)
        self._write(first, end, "firsts", chosen.firsts[: max(0, FIRSTS - first)])
        self.add(first, chosen.images)  # the last: without its images a batch is sampled again

    def values(self) -> Tensor:
        """The verifier's score of every candidate of a search, [count, N] float64, when all images are there."""
        return torch.cat([torch.from_numpy(np.load(path.with_suffix(".values"))) for _, _, path in self._files()])

    def firsts(self) -> Tensor:
        """The first candidates of the first images of a search, uint8 [at most FIRSTS, 3, H, W]."""
        return torch.cat([torch.from_numpy(np.load(path.with_suffix(".firsts"))) for _, _, path in self._files()])

    def _write(self, first: int, end: int, suffix: str, rows: Tensor) -> None:
        content = io.BytesIO()
        np.save(content, rows.cpu().numpy())
        write_whole(self.folder / f"{first:08d}-{end:08d}.{suffix}", content.getvalue())

    def images(self) -> Images:
        """All images, uint8 [N, 3, H, W], as long as the folder is there.

        Raises:
            RuntimeError: some are missing.
        """
        missing = self.missing(self.count)
        if missing:
            raise RuntimeError(f"{self.folder} lacks images of {missing}")
        return _ImagesOfBatches(self.count, self._files())

    def discard(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[tuple[int, int, Path]]:
        """(first, end, file) of every batch."""
        batches = []
        for path in sorted(self.folder.glob("*.npy")):
            numbers = re.fullmatch(r"(\d{8})-(\d{8})", path.stem)
            if numbers is not None:
                batches.append((int(numbers[1]), int(numbers[2]), path))
        return batches


class _ImagesOfBatches(StoredImages):
    """The images of (first, end, file) of every batch."""

    def __init__(self, count: int, files: Sequence[tuple[int, int, Path]]) -> None:
        super().__init__(count, np.load(files[0][2], mmap_mode="r").shape[2:])
        self._paths = {index: (index - first, path) for first, end, path in files for index in range(first, end)}
        self._open: tuple[Path, np.ndarray] | None = None

    def read(self, index: int) -> np.ndarray:
        """Out of its batch, whose file stays open until another one is needed."""
        row, path = self._paths[index]
        if self._open is None or self._open[0] != path:
            self._open = path, np.load(path, mmap_mode="r")
        return self._open[1][row]
