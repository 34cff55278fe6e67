"""Images of a snapshot while it is under way: a folder with one file a batch, so that an interrupt costs a batch.

    NAME.sampling/identity.json                what the images depend on
    NAME.sampling/00000128-00000256.npy        images 128 to 255, uint8 [128, 3, H, W]

A file is written whole or not at all. Images of another identity are removed when the folder is opened.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2ikit.files import write_whole

_IDENTITY = "identity.json"


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
        path = self.folder / _IDENTITY
        text = json.dumps(identity, indent=2, sort_keys=True) + "\n"
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
        content = io.BytesIO()
        np.save(content, images.cpu().numpy())
        write_whole(self.folder / f"{first:08d}-{first + len(images):08d}.npy", content.getvalue())

    def read(self, indices: range | None = None) -> Tensor:
        """Images, uint8 [N, 3, H, W]; by default all. Nothing else is read.

        Args:
            indices: consecutive ones.

        Raises:
            RuntimeError: some are missing.
        """
        wanted = range(self.count) if indices is None else indices
        if self.missing(self.count):
            raise RuntimeError(f"{self.folder} lacks images of {self.missing(self.count)}")
        images: Tensor | None = None
        for first, end, path in self._files():
            batch = np.load(path, mmap_mode="r")
            if images is None:
                images = torch.empty(len(wanted), *batch.shape[1:], dtype=torch.uint8)
            start, stop = max(first, wanted.start), min(end, wanted.stop)
            if start < stop:
                rows = torch.from_numpy(batch[start - first : stop - first].copy())
                images[start - wanted.start : stop - wanted.start] = rows
        assert images is not None
        return images

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
