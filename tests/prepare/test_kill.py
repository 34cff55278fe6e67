"""SIGKILL at random moments over all steps: the same records in the same order, nothing made twice, nothing left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2ikit.prepare.check.check import prepare_check
from t2ikit.records.manifest import Manifest
from t2ikit.records.record_set import RecordSet, damaged_files

SETS = ("images/train", "images/val", "images/train_cmall", "train", "val", "train_cmall")
CLASSES = ("n02012849", "n03126707", "n01440764", "n03710637")


def photos(folder: Path, count: int) -> Path:
    """Small photos of four classes, one in a hundred of them broken."""
    random = np.random.default_rng(0)
    for split, number in (("train", count), ("val", count // 4)):
        for k in range(number):
            path = folder / split / CLASSES[k % 4] / f"{k:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if k % 100 == 50:
                path.write_bytes(b"broken")
            else:
                Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def check_kills(tmp_path: Path, count: int, kills: int, seed: int) -> None:
    source = photos(tmp_path / "photos", count)
    program = Path(__file__).with_name("kill_driver.py")
    done = subprocess.run(
        [sys.executable, str(program), str(source), str(tmp_path), str(kills), str(seed)],
        capture_output=True,
        text=True,
        timeout=3000,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert sum(one["kills"] for one in told["rounds"]) == kills
    assert not any(one["redone"] for one in told["rounds"]) and not told["second_run_changed"]
    plain = tmp_path / "plain"
    assert prepare_check(plain) == []
    for number in range(len(told["rounds"])):
        killed = tmp_path / f"killed-{number}"
        assert files(killed) == files(plain)
        for name in SETS:
            expected, found = Manifest.read(plain / name), Manifest.read(killed / name)
            assert found == expected and not list(damaged_files(killed / name, found.chunk_sha256.items()))
            mine, theirs = RecordSet(killed / name), RecordSet(plain / name)
            assert len(mine) == len(theirs) > 10
            assert all(mine.raw(index) == theirs.raw(index) for index in range(len(mine)))
        for captions in (plain / "captions").iterdir():
            assert (killed / "captions" / captions.name).read_bytes() == captions.read_bytes()


@pytest.mark.fault("SIGKILL in prepare", "the same command ends with the same bytes")
@pytest.mark.long
def test_three_kills(tmp_path: Path) -> None:
    check_kills(tmp_path, 120, 3, 0)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_kills(tmp_path: Path) -> None:
    check_kills(tmp_path, 400, 20, 1)
