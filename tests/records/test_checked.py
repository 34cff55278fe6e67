"""A chunk is compared with its manifest before a record of it is used, and read for that only once."""

import threading
from pathlib import Path

import numpy as np
import pytest

from t2ikit.data.datamodule import DataModule
from t2ikit.records import checked as verified
from t2ikit.records.checked import CheckedFiles, open_set
from t2ikit.records.manifest import Manifest
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet
from t2ikit.records.writing import write_set


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path / "cache"))
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 8)).astype(np.uint8)
    records = (Record({"image": image}, metadata={"key": str(index)}) for index, image in enumerate(images))
    write_set(tmp_path / "root" / "train", records, Manifest("pixels", (3, 8, 8)), chunk_bytes=2000)
    return tmp_path / "root" / "train"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read whole, as they are read."""
    names: list[str] = []
    real = verified.sha256_of

    def note(path: Path) -> str:
        if path.suffix == ".bin":
            names.append(path.name)
        return real(path)

    monkeypatch.setattr(verified, "sha256_of", note)
    return names


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_every_chunk_is_read_once_by_all_processes_and_runs(folder: Path, read: list[str]) -> None:
    records = open_set(folder)
    chunks = records.chunk_names
    assert len(chunks) > 2
    for index in range(len(records)):
        records.view(index)
    assert sorted(read) == sorted(chunks)
    again = open_set(folder)  # another process, or the next run
    assert [record.metadata["key"] for record in again] == [str(index) for index in range(30)]
    assert len(read) == len(chunks)


@pytest.mark.parametrize("verify", ["once", "always"])
def test_a_flipped_byte_stops_with_path_and_repair(folder: Path, verify: verified.Verify) -> None:
    flip(folder / "chunk-0-1.bin")
    records = open_set(folder, verify)
    assert records[0].metadata["key"] == "0"
    first = records.chunk_sizes[0]
    for _ in range(2):  # not only the first time
        with pytest.raises(ValueError) as caught:
            records.view(first)
        for part in (str(folder / "chunk-0-1.bin"), "SHA-256", f"t2ikit prepare check {folder}", "t2ikit prepare"):
            assert part in str(caught.value)
    assert len(RecordSet(folder).view(first).array("image")) == 3  # without the check nobody notices


def test_a_file_that_changed_since_is_read_again(folder: Path, read: list[str]) -> None:
    open_set(folder).view(0)
    flip(folder / "chunk-0-0.bin")
    with pytest.raises(ValueError, match="chunk-0-0.bin differs"):
        open_set(folder).view(0)
    assert read == ["chunk-0-0.bin"] * 2


def test_always_reads_at_every_mapping_and_never_does_not(folder: Path, read: list[str]) -> None:
    for count in (1, 2):
        records = open_set(folder, "always")
        records.view(0)
        records.view(1)
        assert read == ["chunk-0-0.bin"] * count
    assert records.files is not None and records.files.ready("chunk-0-1.bin", wait=False)
    assert len(read) == 2  # ahead of time it would be read for nothing
    flip(folder / "chunk-0-0.bin")
    open_set(folder, "never").view(0)
    assert len(read) == 2


def test_the_index_is_checked_too(folder: Path) -> None:
    path = folder / "index.json"
    path.write_text(path.read_text().replace(": ", ":  ", 1))
    with pytest.raises(ValueError, match=r"index.json differs(.|\n)*prepare check"):
        open_set(folder)


def test_a_missing_chunk_is_named(folder: Path) -> None:
    (folder / "chunk-0-0.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"chunk-0-0.bin is missing(.|\n)*prepare check"):
        open_set(folder).view(0)


def test_processes_at_once_read_a_chunk_once(folder: Path, read: list[str]) -> None:
    """Threads stand for processes: each has its own lock and its own memory of what is good."""
    barrier = threading.Barrier(4)

    def work() -> None:
        records = open_set(folder)
        barrier.wait()
        records.view(0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == ["chunk-0-0.bin"]


def test_a_chunk_that_another_process_checks_is_left_to_it(folder: Path, read: list[str]) -> None:
    digests = RecordSet(folder).manifest.chunk_sha256
    one, other = CheckedFiles(folder, digests), CheckedFiles(folder, digests)
    with one.alone_with("chunk-0-0.bin") as mine:
        assert mine and not other.ready("chunk-0-0.bin", wait=False)
    assert other.ready("chunk-0-0.bin", wait=False) and read == ["chunk-0-0.bin"]


def test_a_cache_that_cannot_be_written_only_costs_time(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path / "file"))
    records = open_set(folder)
    records.view(0)
    assert records.files is not None and records.files.ready("chunk-0-0.bin") and read == ["chunk-0-0.bin"]
    open_set(folder).view(0)
    assert len(read) == 2


def test_an_unknown_way_names_the_option(folder: Path) -> None:
    for make in (lambda: open_set(folder, "sometimes"), lambda: DataModule(str(folder), verify="sometimes")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="data.verify must be one of once, always, never"):
            make()
