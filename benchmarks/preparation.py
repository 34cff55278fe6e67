"""``t2ikit prepare images`` against decoding and resizing alone, on the sample photos and on larger ones.

Both are timed on many photos less on few, so that imports, the list of files and the first chunk's memory do not count.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.base import Measurement, Settings, cpu_seconds, reached

SIZE = 256
GOAL = 0.9
_SIDE = 375
_QUALITY = 97  # 86 kB a photo of a short side of 375 pixels; ImageNet's have about 110 kB


def decode_alone(photo: Path) -> None:
    """What has to be done in any case: as one writes it with Pillow."""
    image = Image.open(io.BytesIO(photo.read_bytes())).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))


def write_source(folder: Path, photos: list[Path], copies: int, side: int | None) -> None:
    """A folder of class folders with every photo ``copies`` times, scaled to a short side of ``side`` pixels."""
    for photo in photos:
        content = photo.read_bytes() if side is None else _resized(photo, side)
        for split, count in (("train", copies), ("val", photo == photos[0])):
            for copy in range(count):
                path = folder / split / photo.parent.name / f"{photo.stem}_{copy}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


def measure_images(settings: Settings, sample: Path) -> list[Measurement]:
    """Photos a second: on all cores by the clock; on one core in CPU seconds, if there is no other or in full.

    Args:
        settings: ``full`` takes more photos and both measures.
        sample: folder of class folders.
    """
    photos = sorted(sample.rglob("*.JPEG"))
    cores = len(os.sched_getaffinity(0))
    rows, repeats = [], 5 if settings.full else 2
    for side, name in ((None, "sample photos"), (_SIDE, f"short side {_SIDE}")):
        folder = Path(tempfile.mkdtemp(prefix="t2ikit-benchmark-"))
        try:
            counts = {"few": 1, "many": 9 if settings.full else 4}  # many shards, so that the last ones do not count
            for amount, copies in counts.items():
                write_source(folder / amount, photos, copies, side)
            more = len(photos) * (counts["many"] - counts["few"])
            label = f"t2ikit prepare images, {name}, {SIZE} pixels, {more:,} photos more"
            if cores == 1 or settings.full:
                rows.append(_compared(folder, more, f"{label}, one core", 0, time.process_time, repeats))
            if cores > 1:
                clocked = f"{label}, {cores} cores, by the clock"
                rows.append(_compared(folder, more, clocked, cores, time.perf_counter, repeats))
        finally:
            shutil.rmtree(folder)
    return rows


def _compared(
    folder: Path, more: int, label: str, workers: int, clock: Callable[[], float], repeats: int
) -> Measurement:
    ways = {"prepare": _prepare, "alone": _alone}
    functions = {
        f"{way} {amount}": partial(work, folder / amount, workers)
        for way, work in ways.items()
        for amount in ("few", "many")
    }
    _prepare(folder / "few", workers)  # imports, and memory that is used again
    seconds = cpu_seconds(functions, repeats, warm_up=0, clock=clock)
    ours, theirs = (more / (seconds[f"{way} many"] - seconds[f"{way} few"]) for way in ways)
    against = f"decoding and resizing alone, Pillow{f', {workers} processes' if workers else ''}"
    goal = f"at least {GOAL} x"
    return Measurement(label, ours, "images/s", against, theirs, goal, reached(ours / theirs, GOAL, "at least"))


def _prepare(source: Path, workers: int) -> None:
    from t2ikit.prepare.images import ON_THIS_CPU, prepare_images

    out = source.with_name("out")
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            prepare_images(str(source), out, SIZE, launch=replace(ON_THIS_CPU, workers=workers))
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _alone(source: Path, workers: int) -> None:
    photos = sorted(source.rglob("*.JPEG"))
    if not workers:
        for photo in photos:
            decode_alone(photo)
        return
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for _ in pool.imap_unordered(decode_alone, photos, chunksize=16):
            pass


def _resized(photo: Path, side: int) -> bytes:
    image = Image.open(photo).convert("RGB")
    scale = side / min(image.size)
    larger = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    larger.save(content, "JPEG", quality=_QUALITY)
    return content.getvalue()
