"""Files are whole or not there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2ikit.files import partial_of, publish, write_whole


def test_text_bytes_and_parts_give_the_same_file(tmp_path: Path) -> None:
    for content in ("zwei ö\n", "zwei ö\n".encode(), iter([b"zwei ", "ö\n".encode()])):
        digest = write_whole(tmp_path / "deep" / "file", content)
        assert digest == hashlib.sha256((tmp_path / "deep" / "file").read_bytes()).hexdigest()
        assert (tmp_path / "deep" / "file").read_text(encoding="utf-8") == "zwei ö\n"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_that_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_whole(path, broken())
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_published_whole(tmp_path: Path) -> None:
    partial = partial_of(tmp_path / "set")
    (partial / "deep").mkdir(parents=True)
    (partial / "deep" / "file").write_bytes(b"1")
    publish(partial, tmp_path / "set")
    assert (tmp_path / "set" / "deep" / "file").read_bytes() == b"1" and not partial.exists()
