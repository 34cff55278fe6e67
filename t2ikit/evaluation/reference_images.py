"""The real images that generated ones are compared with: those of a prepared set, or the photos of the prompts.

Both stay where they are and are read and decoded batch by batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2ikit import ranks
from t2ikit.data.datamodule import DataModule
from t2ikit.metrics.base import Samples, reference_of
from t2ikit.photos import decode
from t2ikit.pictures import Images, StoredImages, head_of, named
from t2ikit.prompts import PromptSource
from t2ikit.records.record_set import RecordSet
from t2ikit.records.view import RecordView

OF_PROMPTS = "prompts"


class ReferenceImages:
    """The reference of a snapshot, the same for every checkpoint. All ranks make one together.

    Args:
        name: of the set, or "prompts" for the photos that the prompts describe, cropped and resized to their size.
        limit: how many of them; None takes all.
        source: of the prompts.
        data: the data module, set up.

    Raises:
        FileNotFoundError, ValueError: there are none, or a photo is no picture; names the option or the file.
        OtherRankFailed: another rank found none.
    """

    def __init__(self, name: str, limit: int | None, source: PromptSource, data: DataModule) -> None:
        self.name = name
        self._photos: Sequence[Path] = ()
        self._images: Images | None = None
        self._samples: Samples | None = None
        if name == OF_PROMPTS:
            self._photos = ranks.from_first(lambda: _photos(source, limit))  # decoded when their size is known
        else:
            opened: list[Images] = []
            ranks.together(lambda: opened.append(real_images(data, name, limit)))
            self._images = opened[0]

    def __len__(self) -> int:
        return len(self._photos if self._images is None else self._images)

    @property
    def metadata(self) -> Sequence[dict[str, Any]]:
        """Of the records, which are read when one is asked for; photos of the prompts have none."""
        return MetadataOfRecords(self._images) if isinstance(self._images, ImagesOfRecords) else ()

    def samples(self, size: int, device: torch.device) -> Samples:
        """The images, with what metrics saw of them before.

        Args:
            size: of the generated images, which photos of the prompts are brought to.
            device: where networks look at them.
        """
        if self._samples is None or (self._images is None and self._samples.images.shape[-1] != size):
            images = Photos(self._photos, size) if self._images is None else self._images
            self._samples = reference_of(images, self.name, metadata=self.metadata)
        self._samples.device = device
        return self._samples


def _photos(source: PromptSource, limit: int | None) -> list[Path]:
    """The photos of the prompts, after a look at the head of each: a long drawing comes before they are decoded."""
    photos = source.pictures()[:limit]
    for path in photos:
        head_of(path)
    return photos


class Photos(StoredImages):
    """Photos of any sizes, cropped and resized when they are read.

    Args:
        paths: of the files.
        size: H = W of the images.

    Raises:
        ValueError: when it is read, a file that is no whole image; names it.
    """

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        super().__init__(len(paths), (size, size))
        self.paths = paths

    def read(self, index: int) -> np.ndarray:
        """Decodes the file."""
        path = self.paths[index]
        with named(path):
            return decode(path.read_bytes(), self.shape[-1])


class ImagesOfRecords(StoredImages):
    """Images of a prepared set of pixels.

    Args:
        records: the set.
        count: how many at most, evenly spaced through the set; None takes all.
    """

    def __init__(self, records: RecordSet, count: int | None) -> None:
        super().__init__(len(records) if count is None else min(count, len(records)), records.manifest.image_shape[1:])
        self.records = records

    def read(self, index: int) -> np.ndarray:
        """Out of its record."""
        return self.view(index).array("image")

    def view(self, index: int) -> RecordView:
        """The record of an image."""
        return self.records.view(index * len(self.records) // len(self))


class MetadataOfRecords(Sequence[dict[str, Any]]):
    """What the records of images say of them, such as ``class_id``; nothing is read before it is asked for.

    Args:
        images: of a prepared set.
        rows: which of them; None takes all.
    """

    def __init__(self, images: ImagesOfRecords, rows: range | None = None) -> None:
        self._images, self._rows = images, range(len(images)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return MetadataOfRecords(self._images, self._rows[index])
        return self._images.view(self._rows[index]).details()[1]


def real_images(data: DataModule, split: str = "val", limit: int | None = None) -> Images:
    """Real images of a prepared set, to compare generated ones with.

    Args:
        data: the data module, set up.
        split: the set.
        limit: how many at most, evenly spaced through the set.

    Returns:
        [M, 3, H, W] uint8, which stay in the set.

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
    return ImagesOfRecords(records, limit)
