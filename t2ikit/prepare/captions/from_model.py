"""Images to captions by a model: on all devices; a call that was stopped can be continued."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2ikit.files import write_whole
from t2ikit.launch import first_rank
from t2ikit.prepare.captions.caption_file import (
    CaptionColumn,
    aio_caption,
    caption_file,
    images_done,
    write_captions,
)
from t2ikit.prepare.captions.captioner import Captioner
from t2ikit.prepare.engine.engine import run_work
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.engine.shards import Results
from t2ikit.prepare.engine.work import Work
from t2ikit.prepare.images import IMAGES, metadata_of
from t2ikit.prepare.steps import identity, sha256_of_json, versions
from t2ikit.records.manifest import Manifest
from t2ikit.records.record_set import RecordSet

SHARD = 256
"""Captions that are written together: the most that a killed process loses, seconds to minutes of an 8B model."""

NEUTRAL = "An image"
"""The caption of an image of which neither a model nor a class nor the source says anything."""

_SHOWN = 3


class CaptionWork(Work):
    """The captions of an image set from image ``start`` on; an empty one where the model had nothing to say."""

    def __init__(self, folder: Path, captioner: Captioner, start: int = 0) -> None:
        self.records = RecordSet(folder)
        self.captioner = captioner
        self.start = start
        self.identity = sha256_of_json([identity(self.records.manifest), captioner.identity, start])

    def __len__(self) -> int:
        return len(self.records) - self.start

    def load(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        record = self.records[self.start + index]
        return record.image, record.metadata

    def setup(self, device: torch.device) -> None:
        self.captioner.setup(device)

    def compute(self, items: list[tuple[np.ndarray, dict[str, Any]]]) -> list[bytes]:
        captions = self.captioner.caption([image for image, _ in items], [metadata for _, metadata in items])
        return [caption.encode() for caption in captions]


def caption_images(
    root: Path,
    targets: Sequence[str],
    captioner: Captioner,
    column: str,
    add: bool,
    launch: Launch | None,
    overwrite: bool,
) -> None:
    """Has a model caption the image sets ``targets``. Every process of a launch calls it; the first one writes.

    An image to which the model twice gives an empty answer keeps its AIO caption, or without a class that of its source
    or ``NEUTRAL``, so that every record has one; such images are counted, and their keys are in
    ``captions/<set>_<column>_empty.txt``. Other arguments: as in ``prepare_captions``.

    Raises:
        FileExistsError: other captions are there, finished or not.
        ValueError: the model cannot be loaded or reached, or has nothing to say about any image.
    """
    launch = _fitting(captioner, launch or Launch())
    wanted = CaptionColumn(
        column,
        captioner.kind,
        captioner.identity,
        source=captioner.source,
        model=captioner.model,
        captioner=captioner.reference,
        prompt=captioner.prompts.plain,
        cutmix_prompt=captioner.prompts.cutmix,
        decoding=captioner.decoding,
        versions=versions(*(("torch", "transformers") if captioner.kind == "llava" else ())),
    )
    counts = {name: Manifest.read(root / IMAGES / name).count for name in targets}
    done = {name: images_done(root, name, (wanted,), add, overwrite) for name in targets}
    for name in targets:
        path = caption_file(root, name)
        folder = path.with_name(f".{path.stem}.{column}.work")
        if done[name] == counts[name]:
            if first_rank():
                shutil.rmtree(folder, ignore_errors=True)  # of a call that was killed at its very end
            continue
        work = CaptionWork(root / IMAGES / name, captioner, done[name])
        results = run_work(work, folder, launch, f"captions of {name}", shard_size=SHARD, overwrite=overwrite)
        failure = _write(root, name, wanted, results, add, done[name]) if results.chief else None
        results.discard()
        if failure:
            raise ValueError(failure)


def _fitting(captioner: Captioner, launch: Launch) -> Launch:
    """A client of a server is one process without a device, unless it was asked to be more."""
    if captioner.kind == "http" and launch.accelerator == "auto":
        return replace(launch, accelerator="cpu", devices=1 if launch.devices == "auto" else launch.devices)
    return launch


def _write(root: Path, name: str, column: CaptionColumn, results: Results, add: bool, done: int) -> str | None:
    """Writes the captions of a set; an error message instead if all answers are empty."""
    empty = [metadata["key"] for metadata, caption in _answers(root, name, results, done) if not caption]
    if len(empty) == len(results) and not done:
        return (
            f"{column.model} had nothing to say about any image of {name}: see that --captioner or --model is one that "
            "describes images, and that --prompt asks for it"
        )
    rows = (
        (metadata, (caption or _plain_caption(metadata),)) for metadata, caption in _answers(root, name, results, done)
    )
    write_captions(root, name, (replace(column, empty=len(empty)),), rows, add, done)
    path = caption_file(root, name)
    listing = path.with_name(f"{path.stem}_{column.name}_empty.txt")
    before = listing.read_text(encoding="utf-8") if done and listing.is_file() else ""
    listing.unlink(missing_ok=True)
    if before or empty:
        write_whole(listing, before + "".join(f"{key}\n" for key in empty))
    if empty:
        more = ", ..." if len(empty) > _SHOWN else ""
        print(
            f"{name}: {len(empty):,} images got no answer, twice, and keep a plain caption (AIO; without a class that "
            f"of the source, or {NEUTRAL!r}): {', '.join(empty[:_SHOWN])}{more} (all in {listing})"
        )
    return None


def _answers(root: Path, name: str, results: Results, done: int) -> Iterator[tuple[dict[str, Any], str]]:
    for metadata, result in zip(metadata_of(root, name, done), results, strict=True):
        yield metadata, result.decode()


def _plain_caption(metadata: dict[str, Any]) -> str:
    """The caption of an image of which the model says nothing."""
    return aio_caption(metadata) if metadata["class_name"] else str(metadata.get("caption") or NEUTRAL)
