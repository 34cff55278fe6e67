"""The real commands with two processes: the same sets as with one, made once, and told of once. Long: many imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2ikit.records.manifest import Manifest

SETS = ("images/train", "images/val", "images/train_cmall", "train", "val", "train_cmall")


def prepare(out: Path, photos: Path, devices: str) -> str:
    """All steps; what they print."""
    where = ["--accelerator", "cpu", "--devices", devices, "--shard-size", "3", "--batch-size", "2", "--workers", "0"]
    told = ""
    for step, *words in (
        ["images", "--source", str(photos), "--size", "16", *where],
        ["captions"],
        ["cutmix", *where],
        ["encode", "--autoencoder", "pixels", "--text-encoder", "small", *where],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "t2ikit", "prepare", step, "--out", str(out), *words],
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        told += done.stdout
    return told


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_processes_make_the_same_sets(photos: Path, tmp_path: Path) -> None:
    told = [prepare(tmp_path / devices, photos, devices).replace(f"/{devices}/", "/") for devices in ("1", "2")]
    assert told[0].count("images of") == 2
    assert [line.split(" (")[0] for line in told[0].splitlines()] == [
        line.split(" (")[0] for line in told[1].splitlines()
    ]
    for name in SETS:
        assert Manifest.read(tmp_path / "1" / name) == Manifest.read(tmp_path / "2" / name)
    again = prepare(tmp_path / "2", photos, "2")
    assert again.count("up to date") >= len(SETS)
    assert not [path for path in (tmp_path / "2").rglob(".*") if path.suffix in (".work", ".partial", ".old")]
