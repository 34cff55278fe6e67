"""Peak memory of a step does not grow with the number of images. Long: 21,000 images go through every step."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("n02012849", "n03126707", "n01440764", "n03710637")
MOST = 0.10
"""Growth of the peak from 1,000 to 20,000 images, as a share."""


def linked_photos(folder: Path, files: Path, count: int) -> Path:
    """A folder of class folders with many names of a few small files."""
    files.mkdir(exist_ok=True)
    for k in range(8):
        pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(files / f"{k}.png")
    for split, number in (("train", count), ("val", 16)):
        for wnid in CLASSES:
            (folder / split / wnid).mkdir(parents=True)
        for k in range(number):
            os.link(
                files / f"{k % 8}.png",
                folder / split / CLASSES[k % 4] / f"photo_with_a_name_of_usual_length_{k:08d}.png",
            )
    return folder


def peak_of(*words: str) -> int:
    """Peak memory in bytes of a command and the processes that it started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "t2ikit", "prepare", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, said.decode()[-2000:]
    return used.ru_maxrss * 1024


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_peak_memory_does_not_grow(tmp_path: Path) -> None:
    peaks: dict[str, list[int]] = {}
    where = ["--workers", "1", "--accelerator", "cpu", "--devices", "1"]
    for count in (1000, 20000):
        photos = linked_photos(tmp_path / f"photos-{count}", tmp_path / "files", count)
        out = ["--out", str(tmp_path / f"out-{count}")]
        encoders = ["--autoencoder", "pixels", "--text-encoder", "small"]
        for name, words in {
            "images": ["images", "--source", str(photos), "--size", "16", *out, *where],
            "captions": ["captions", *out],
            "cutmix": ["cutmix", *out, *where],
            "encode": ["encode", *encoders, *out, *where],
            "check": ["check", out[1]],
        }.items():
            peaks.setdefault(name, []).append(peak_of(*words))
    for name, (few, many) in peaks.items():
        print(f"{name}: {few / 1e6:.0f} MB for 1,000 images, {many / 1e6:.0f} MB for 20,000: {many / few - 1:+.1%}")
    assert all(many <= (1 + MOST) * few for few, many in peaks.values())
