"""The embedded data set in aspect buckets: scenes at sizes that are not square, a set for each aspect.

    ROOT/captioned/val, train, text_encoder       the scenes as they are rendered first, smallest: captions and states
    ROOT/val/NAME, train/NAME, text_encoder       those of each bucket, at its size

A scene is a square. In a bucket it is as large as the shorter side, in the middle; around it, the pixels of its
edge are repeated, which are background alone. So left stays left, and no object is cut. Scene i is in bucket i modulo
their number. Every set appears whole or not at all, and one that fits is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from t2ikit.files import recover
from t2ikit.prepare.steps import sha256_of_json
from t2ikit.records.manifest import MANIFEST_NAME, Manifest
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet
from t2ikit.records.writing import write_set
from t2ikit.shapes.dataset import build_shapes
from t2ikit.shapes.latents import copy_text_encoder
from t2ikit.shapes.scenes import SMALLEST_SIZE, Scene, render, scenes

CAPTIONED = "captioned"
_LAYOUT = 1
"""Of the images; another one renders them anew."""


def build_buckets(
    root: Path,
    shapes: Mapping[str, tuple[int, int]],
    difficulty: str,
    count: int,
    val_count: int,
    captions: str,
    seed: int,
) -> None:
    """Builds what is missing of the buckets.

    Args:
        root: folder that will hold them.
        shapes: (H, W) in pixels of each bucket, by name.
        difficulty, captions, seed: see ``build_shapes``.
        count: training images, over all buckets.
        val_count: validation images, over all buckets.

    Raises:
        ValueError: an option out of range, or a folder that holds another data set.
    """
    for split in ("train", "val"):
        if (root / split / MANIFEST_NAME).exists():
            raise ValueError(f"{root} holds a set without buckets: give the buckets a folder of their own (data.root)")
    whole = build_shapes(root / CAPTIONED, SMALLEST_SIZE, difficulty, count, val_count, captions, (), seed)
    for split in ("val", "train"):
        records = RecordSet(whole / split)
        of_split: list[Scene] = []
        for index, (name, shape) in enumerate(shapes.items()):
            digest = sha256_of_json([records.manifest.chunk_sha256, _LAYOUT, shape, index, len(shapes)])
            if _fits(root / split / name, digest, records.manifest):
                continue
            of_split = of_split or scenes(seed, split, 0, len(records), difficulty)
            manifest = replace(records.manifest, image_shape=(3, *shape), source_sha256=digest, parts=())
            chosen = range(index, len(records), len(shapes))
            images = _records(records, of_split, chosen, shape)
            write_set(root / split / name, images, manifest, records.empty_prompt, overwrite=True)
    copy_text_encoder(whole, root)


def in_shape(scene: Scene, shape: tuple[int, int]) -> np.ndarray:
    """The image of a scene in a bucket, uint8 [3, H, W]."""
    side = min(shape)
    margins = [((length - side) // 2, length - side - (length - side) // 2) for length in shape]
    return np.pad(render(scene, side), ((0, 0), *margins), mode="edge")


def _records(records: RecordSet, of_split: list[Scene], chosen: range, shape: tuple[int, int]) -> Iterator[Record]:
    for index in chosen:
        record = records[index]
        image = in_shape(of_split[index], shape)
        yield Record({**record.arrays, "image": image}, record.captions, record.metadata)


def _fits(folder: Path, digest: str, wanted: Manifest) -> bool:
    recover(folder)
    try:
        manifest = Manifest.read(folder)
    except (FileNotFoundError, ValueError):
        return False
    return manifest.source_sha256 == digest and manifest.text_encoders == wanted.text_encoders
