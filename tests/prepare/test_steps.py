"""Steps: what is up to date, order, disk, leftovers."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from t2ikit.data.manifest import Manifest
from t2ikit.prepare.steps import batched, in_order, remove_leftovers, require_disk, up_to_date, write_lines
from t2ikit.pretrained import EncoderReference, sha256_of

MANIFEST = Manifest(
    kind="pixels", image_shape=(3, 8, 8), source_sha256="a", text_encoder=EncoderReference("x", None, "1")
)


def test_up_to_date(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    assert not up_to_date(folder, MANIFEST, False, "--size")
    folder.mkdir()
    assert not up_to_date(folder, MANIFEST, False, "--size")
    (folder / "manifest.json").write_text(MANIFEST.to_json())
    assert up_to_date(folder, MANIFEST, False, "--size")
    moved = replace(MANIFEST, text_encoder=EncoderReference("elsewhere", None, "1"), versions={"torch": "0"})
    assert up_to_date(folder, moved, False, "--size")
    other = replace(MANIFEST, text_encoder=EncoderReference("x", None, "2"))
    with pytest.raises(FileExistsError, match="text_encoder differ.*--size.*--overwrite"):
        up_to_date(folder, other, False, "--size")
    assert not up_to_date(folder, other, True, "--size")


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="no prepared set: choose another --out"):
            up_to_date(tmp_path / "letters", MANIFEST, overwrite, "--size")


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> int:
        return index * index


@pytest.mark.parametrize("workers", [0, 2])
def test_order_is_kept(workers: int) -> None:
    assert list(in_order(Numbers(), workers, batch=4)) == [k * k for k in range(50)]


def test_batches() -> None:
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched([], 3)) == []


def test_disk(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    require_disk(tmp_path, 1000, 2500, "photos")
    assert "photos: 1,000 images, about 2.5 MB on disk" in capsys.readouterr().out
    with pytest.raises(ValueError, match="1000.0 TB.*--out"):
        require_disk(tmp_path, 10**9, 10**6, "photos")


def test_lines_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lines.txt"
    digest = write_lines(path, ["one", "zwei ö"])
    assert path.read_text(encoding="utf-8") == "one\nzwei ö\n" and digest == sha256_of(path)

    def broken() -> object:
        yield "three"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_lines(path, broken())  # type: ignore[arg-type]
    assert sha256_of(path) == digest and list(path.parent.iterdir()) == [path]


def test_leftovers_of_dead_processes_go(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    gone, living, other = (
        tmp_path / f".{name}.{process}-ab12.partial"
        for name, process in (("train", int(dead.stdout)), ("train", os.getpid()), ("val", int(dead.stdout)))
    )
    for folder in (gone, living, other):
        folder.mkdir()
        (folder / "chunk-0-0.bin").write_bytes(b"x")
    remove_leftovers(tmp_path / "train")
    assert not gone.exists() and living.exists() and other.exists()
