"""The real images that generated ones are compared with: those of a prepared set, or the photos of the prompts.

Shapes: M reference images, uint8 [M, 3, H, W].
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

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

    Attributes:
        rows: what metrics saw of them (``Samples.reference_rows``), on the first rank.

    Args:
        name: of the set, or "prompts" for the photos that the prompts describe, cropped and resized to their size.
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
        self.rows: dict[Hashable, Any] = {}
        self._all: Tensor | None = None
        if name == OF_PROMPTS:
            self.photos = ranks.from_first(source.pictures)[:limit]  # decoded when their size is known
        else:
            self._all = ranks.from_first_kept(lambda: real_images(data, name, limit))

    def count(self) -> int:
        """M, on the first rank."""
        return len(self.photos) if self._all is None else len(self._all)

    def beside(self, samples: Samples, size: int) -> Samples:
        """Gives the samples this reference, on the first rank; photos of the prompts at this size."""
        if self._all is None:
            self._all = self._decoded(range(len(self.photos)), size)
        samples.reference, samples.reference_name, samples.reference_rows = self._all, self.name, self.rows
        return samples

    def part(self, total: int, size: int, device: torch.device) -> Samples:
        """This rank's share of all ``total`` of them, in the place of generated images."""
        share = ranks.share(total)
        if self._all is not None:
            images = self._all[share.start : share.stop]
        elif self.photos:
            images = self._decoded(share, size)
        else:
            images = real_images(self.data, self.name, self.limit, share)
        return Samples(images, device=device, first=share.start, kind="reference")

    def _decoded(self, share: range, size: int) -> Tensor:
        """Some of the photos, uint8 [M, 3, size, size]."""
        paths = self.photos[share.start : share.stop]
        photos = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
        bar = tqdm(paths, "reference photos", leave=False, mininterval=1.0, disable=ranks.this() > 0)
        for index, path in enumerate(bar):
            photos[index] = torch.from_numpy(decode(path.read_bytes(), size).copy())
        return photos


def real_images(data: DataModule, split: str = "val", limit: int | None = None, indices: range | None = None) -> Tensor:
    """Real images of a prepared set, to compare generated ones with.

    Args:
        data: the data module, set up.
        split: the set.
        limit: how many at most, evenly spaced through the set.
        indices: consecutive ones of these; None takes all.

    Returns:
        [M, 3, H, W] uint8.

    Raises:
        FileNotFoundError: the set holds latents, and the images it was made of are gone.
    """
    records = data.record_set(split)
    if records.manifest.kind != "pixels":
        # The images before encoding, at the same size: latents decode to something less sharp.
        folder = f"images/{split}"
        try:
            records = data.record_set(folder)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{data.folder / split} holds {records.manifest.kind}, and {data.folder / folder} with their images is "
                f"gone: keep it, or write it again: t2ikit prepare images --source IMAGE_FOLDER --out {data.folder}"
            ) from error
    count = len(records) if limit is None else min(limit, len(records))
    chosen = [index * len(records) // count for index in (range(count) if indices is None else indices)]
    images = torch.empty(len(chosen), *records.manifest.image_shape, dtype=torch.uint8)  # 50,000 of them are 10 GB
    for row, index in enumerate(chosen):
        images[row] = torch.from_numpy(records.view(index).array("image").copy())
    return images
