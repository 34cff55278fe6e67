"""Photos to square images of one size, stored without loss; files that cannot be used go to a list with the reason.

Shapes: [3, S, S] uint8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from t2ikit.data.manifest import Manifest
from t2ikit.data.records import Record, write_set
from t2ikit.prepare.decode import BadImage, decode
from t2ikit.prepare.engine import in_order, require_disk, sha256_of_json, tracked, up_to_date, versions, write_lines
from t2ikit.prepare.sources import ImageList, find_images

IMAGES = "images"
"""Folder of the image sets below the output folder."""


@dataclass(frozen=True)
class Decoded:
    """A photo on its way: its pixels, or the reason why it has none."""

    index: int
    pixels: np.ndarray | None
    reason: str = ""


def prepare_images(
    source: str,
    out: str | Path,
    size: int,
    *,
    class_names: str | None = None,
    val_share: float = 0.02,
    seed: int = 0,
    strict: bool = False,
    workers: int = 0,
    overwrite: bool = False,
) -> dict[str, Manifest]:
    """Writes the image sets ``out/images/train`` and ``out/images/val``.

    Args:
        source: as in ``find_images``.
        out: the folder of this data set.
        size: S in pixels.
        class_names: as in ``find_images``.
        val_share: as in ``find_images``.
        seed: decides the order of the photos.
        strict: stop at the first file that cannot be used, instead of listing it in ``out/images/bad_<split>.tsv``.
        workers: processes that decode; 0 is this one.
        overwrite: replace sets that were made from other inputs.

    Returns:
        The manifests, by split.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: what is wrong with which option.
    """
    if size < 4:
        raise ValueError(f"--size must be at least 4; got {size}")
    root = Path(out)
    manifests = {}
    for split, images in find_images(source, class_names, val_share, seed).items():
        folder = root / IMAGES / split
        wanted = Manifest(
            kind="pixels",
            image_shape=(3, size, size),
            source=str(source),
            source_sha256=sha256_of_json([images.sha256, images.class_names, seed]),
            versions=versions("pillow", "litdata"),
        )
        if up_to_date(folder, wanted, overwrite, "--source, --size, --seed and --class-names"):
            print(f"{folder}: up to date")
            manifests[split] = Manifest.read(folder)
            continue
        require_disk(root, len(images), 3 * size * size, str(folder))
        bad: list[str] = []
        records = _records(images, size, strict, workers, bad, split)
        manifests[split] = write_set(folder, records, wanted, overwrite=overwrite)
        bad_list = folder.with_name(f"bad_{split}.tsv")
        if bad:
            write_lines(bad_list, bad)
        else:
            bad_list.unlink(missing_ok=True)
        listed = f", {len(bad)} files could not be used (listed in {bad_list})" if bad else ""
        print(f"{folder}: {manifests[split].count:,} images of {len(images.class_names)} classes{listed}")
    return manifests


class _Photos(Dataset[Decoded]):
    def __init__(self, images: ImageList, size: int) -> None:
        self.images = images
        self.size = size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Decoded:
        path = self.images.root / self.images.keys[index]
        if not path.is_file():
            return Decoded(index, None, "no regular file, or a link that leads nowhere")
        try:
            return Decoded(index, decode(path.read_bytes(), self.size))
        except BadImage as error:
            return Decoded(index, None, str(error))
        except OSError as error:
            return Decoded(index, None, f"cannot be read: {error.strerror}")


def _records(images: ImageList, size: int, strict: bool, workers: int, bad: list[str], label: str) -> Iterator[Record]:
    for photo in tracked(in_order(_Photos(images, size), workers), len(images), f"images {label}"):
        key, number = images.keys[photo.index], int(images.class_ids[photo.index])
        if photo.pixels is None:
            if strict:
                raise ValueError(f"{images.root / key} cannot be used: {photo.reason} (leave --strict out to go on)")
            bad.append(f"{key}\t{photo.reason}")
            continue
        yield Record(photo.pixels, metadata={"key": key, "class_id": number, "class_name": images.class_names[number]})
