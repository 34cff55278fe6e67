"""Aspect buckets of photos: each photo goes to the bucket whose aspect is nearest to its own.

A bucket is an image set of its own, ``images/train/0.75``, named by its width over its height.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from t2ikit.files import write_whole
from t2ikit.photos import BadImage, size_of
from t2ikit.prepare.engine.engine import run_work
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.engine.work import HostWork
from t2ikit.prepare.sources import ImageList
from t2ikit.prepare.steps import sha256_of_json, wait_for

_UNKNOWN = (0, 0)
_SIZES = 2  # the version of what `size_of` tells: sizes that another one has kept are read anew
_SHAPE = struct.Struct("<II")


def dealt(
    images: ImageList, shapes: Mapping[str, tuple[int, int]], index: Path, label: str, launch: Launch, min_side: int = 0
) -> dict[str, ImageList]:
    """The photos of every bucket, in their order; a photo that cannot be read goes to the first, which lists it as bad.

    The sizes of the photos are read once, from their heads, and kept.

    Args:
        images: of one split.
        shapes: (H, W) of the buckets, by name.
        index: folder where the sizes are kept.
        label: of the progress bar.
        launch: processes that read.
        min_side: smaller photos will be left out.

    Raises:
        ValueError: a bucket gets no photo, or only smaller ones.
    """
    sizes = _sizes(images, index, label, launch).astype(np.float64)
    aspects = np.log([width / height for height, width in shapes.values()])
    known = sizes.min(axis=1) > 0
    aspect = np.log(np.divide(sizes[:, 0], sizes[:, 1], out=np.ones(len(sizes)), where=known))
    nearest = np.where(known, np.abs(aspect[:, None] - aspects).argmin(axis=1), 0)
    lists = {}
    for bucket, (name, (height, width)) in enumerate(shapes.items()):
        chosen = np.flatnonzero(nearest == bucket)
        if not len(chosen):
            raise ValueError(f"{label}: no photo is nearest to the aspect of --bucket {height}x{width}: leave it out")
        if known[chosen].all() and (sizes[chosen].min(axis=1) < min_side).all():
            raise ValueError(
                f"{label}: every photo nearest to the aspect of --bucket {height}x{width} is smaller than --min-side "
                f"{min_side}: leave the bucket out, or lower it"
            )
        photos = images.take(chosen)
        lists[name] = replace(photos, sha256=_identity(photos))
    return lists


def _identity(photos: ImageList) -> str:
    """Of the photos of one bucket, whatever their order: photos that are added to another bucket do not change it.

    Where the source does not tell their sizes, that of the whole source, which covers the content of its files.
    """
    if (photos.sizes < 0).any():
        return photos.sha256
    facts = zip(photos.keys, photos.sizes.tolist(), photos.class_ids.tolist(), strict=True)
    if photos.captions is None:
        return sha256_of_json(sorted(facts))
    return sha256_of_json(sorted((*fact, photos.caption(index)) for index, fact in enumerate(facts)))


def _sizes(images: ImageList, index: Path, label: str, launch: Launch) -> np.ndarray:
    """Width and height of every photo, [N, 2] uint32; 0 where it cannot be read."""
    order = sha256_of_json([_SIZES, images.sha256, [images.keys[position] for position in range(len(images))]])
    path = index / f"sizes-{order[:16]}-{len(images)}.npy"
    if not path.is_file():
        results = run_work(_Measuring(images, order), index / f".{path.stem}.work", launch, f"sizes of {label}")
        if results.chief:
            content = io.BytesIO()
            np.save(content, np.array([_SHAPE.unpack(result) for result in results], np.uint32).reshape(-1, 2))
            write_whole(path, content.getvalue())
        results.discard()
    wait_for(path)
    sizes: np.ndarray = np.load(path, allow_pickle=False)
    return sizes


class _Measuring(HostWork):
    """Photos to their sizes."""

    def __init__(self, images: ImageList, digest: str) -> None:
        self.images = images
        self.identity = sha256_of_json([digest, len(images), "sizes"])

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> bytes:
        try:
            return _SHAPE.pack(*size_of(io.BytesIO(self.images.read(index))))
        except (BadImage, OSError):
            return _SHAPE.pack(*_UNKNOWN)
