"""Features of a large set of images, computed once and kept on disk, so that nothing of them stays in memory.

    FOLDER/00000000.npy    features of images 0 to 1,023, float32
    FOLDER/00001024.npy    ...

Shapes: N images, D features.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from t2ikit import ranks
from t2ikit.files import write_whole

CHUNK = 1024


@dataclass(frozen=True)
class StoredFeatures:
    """Features [N, D] in files of 1,024 rows, each whole or not there.

    Attributes:
        folder: of these features alone: its name stands for the images and the network.
        count: N.
        compute: the features [n, D] float32 on the CPU of consecutive images, by a network on a device.
        label: of the progress bar.
    """

    folder: Path
    count: int
    compute: Callable[[range, torch.device], Tensor]
    label: str

    def fill(self, device: torch.device) -> None:
        """Computes what is missing or damaged; every rank must call it, and each computes a share.

        Args:
            device: of this rank.

        Raises:
            OtherRankFailed: another rank failed.
        """
        mine = list(self._chunks())[ranks.this() :: ranks.count()]
        ranks.together(lambda: self._write_missing(mine, device))
        ranks.from_first(
            lambda: self._write_missing(list(self._chunks()), device)
        )  # of a machine with a folder of its own

    def complete(self) -> bool:
        """Whether all of them are there."""
        return all(self._file(chunk).is_file() for chunk in self._chunks())

    def blocks(self) -> Iterator[Tensor]:
        """Consecutive rows, a file after the other."""
        for chunk in self._chunks():
            yield torch.from_numpy(np.load(self._file(chunk), allow_pickle=False))

    def rows(self, indices: Sequence[int]) -> Tensor:
        """The rows of some images, [n, D]; their indices ascend."""
        chosen = np.asarray(indices)
        parts = []
        for chunk, block in zip(self._chunks(), self.blocks(), strict=True):
            inside = chosen[(chosen >= chunk.start) & (chosen < chunk.stop)] - chunk.start
            parts.append(block[torch.from_numpy(inside)])
        return torch.cat(parts)

    def _chunks(self) -> Iterator[range]:
        return (range(start, min(start + CHUNK, self.count)) for start in range(0, self.count, CHUNK))

    def _file(self, chunk: range) -> Path:
        return self.folder / f"{chunk.start:08d}.npy"

    def _is_whole(self, chunk: range) -> bool:
        """Whether the file of a chunk has a row of numbers for each image, by its head and its length."""
        try:
            table = np.load(self._file(chunk), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        return table.ndim == 2 and len(table) == len(chunk) and table.dtype == np.float32

    def _write_missing(self, chunks: Sequence[range], device: torch.device) -> None:
        missing = [chunk for chunk in chunks if not self._is_whole(chunk)]
        quiet = not missing or ranks.this() > 0 or None
        for chunk in tqdm(missing, desc=self.label, unit="chunk", leave=False, disable=quiet):
            ranks.stop_if_asked()
            content = io.BytesIO()
            np.save(content, self.compute(chunk, device).numpy())
            write_whole(self._file(chunk), content.getvalue())
