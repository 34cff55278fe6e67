"""The real images that generated ones are compared with: those of a prepared set, or the photos of the prompts.

Shapes: M reference images, uint8 [M, 3, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from t2ikit import ranks
from t2ikit.data.datamodule import DataModule
from t2ikit.metrics.base import Samples
from t2ikit.photos import decode
from t2ikit.prompts import PromptSource

OF_PROMPTS = "prompts"


class ReferenceImages:
    """Read when they are needed: the first rank keeps all, the others read their share. All ranks make one together.

    Args:
        name: of the set, or "prompts" for the photos that the prompts describe, cropped and resized as the drawn ones.
        limit: how many of them; None takes all.
        source: of the prompts.
        data: the data module, set up.

    Raises:
        FileNotFoundError, ValueError: there are none; names the option.
        OtherRankFailed: the first rank found none.
    """

    def __init__(self, name: str, limit: int | None, source: PromptSource, data: DataModule) -> None:
        self.name = name
        self.limit = limit
        self.data = data
        self.photos: Sequence[Path] = ()
        self._all: Tensor | None = None
        if name == OF_PROMPTS:
            self.photos = ranks.from_first(source.pictures)[:limit]  # decoded when their size is known
        else:
            self._all = ranks.from_first_kept(lambda: data.reference_images(name, limit))

    def count(self) -> int:
        """M, on the first rank."""
        return len(self.photos) if self._all is None else len(self._all)

    def all(self, size: int) -> Tensor:
        """All of them, on the first rank; photos of the prompts at this size."""
        if self._all is None:
            self._all = self._decoded(range(len(self.photos)), size)
        return self._all

    def part(self, number: int, size: int, device: torch.device) -> Samples:
        """This rank's share of all ``number`` of them, in the place of generated images."""
        places = ranks.share(number)
        if self._all is not None:
            images = self._all[places.start : places.stop]
        elif self.photos:
            images = self._decoded(places, size)
        else:
            images = self.data.reference_images(self.name, self.limit, places)
        return Samples(images, device=device, first=places.start)

    def _decoded(self, places: range, size: int) -> Tensor:
        """Some of the photos, uint8 [M, 3, size, size]."""
        paths = self.photos[places.start : places.stop]
        photos = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
        bar = tqdm(paths, "reference photos", leave=False, mininterval=1.0, disable=ranks.this() > 0)
        for number, path in enumerate(bar):
            photos[number] = torch.from_numpy(decode(path.read_bytes(), size).copy())
        return photos
