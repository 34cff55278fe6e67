"""Files are whole or not there."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from t2ikit import files
from t2ikit.files import (
    below,
    check_text,
    partial_of,
    publish,
    read_lines,
    read_utf8,
    recover,
    write_whole,
)


def test_text_bytes_and_parts_give_the_same_file(tmp_path: Path) -> None:
    for content in ("zwei ö\n", "zwei ö\n".encode(), iter([b"zwei ", "ö\n".encode()])):
        digest = write_whole(tmp_path / "deep" / "file", content)
        assert digest == hashlib.sha256((tmp_path / "deep" / "file").read_bytes()).hexdigest()
        assert (tmp_path / "deep" / "file").read_text(encoding="utf-8") == "zwei ö\n"


BLOCK = files._BLOCK


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 12_345])
@pytest.mark.parametrize("direct", ["as it is", "refused", "refused later", "missing"])
def test_long_files_go_past_the_page_cache_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, direct: str
) -> None:
    """A file system may know no direct writes, or take the flag and refuse the write."""
    content = np.random.default_rng(size).bytes(size)
    control, write, flag = fcntl.fcntl, os.write, getattr(os, "O_DIRECT", 0)

    def no_flag(descriptor: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL and value & flag:
            raise OSError(errno.EINVAL, "no direct writes here")
        return control(descriptor, command, value)

    def no_write(descriptor: int, part: memoryview) -> int:
        if control(descriptor, fcntl.F_GETFL) & flag:
            raise OSError(errno.EINVAL, "not so")
        return write(descriptor, part[:100_000])  # a short write

    if direct == "refused":
        monkeypatch.setattr(fcntl, "fcntl", no_flag)
    elif direct == "refused later":
        monkeypatch.setattr(os, "write", no_write)
    elif direct == "missing":
        monkeypatch.delattr(os, "O_DIRECT", raising=False)
    parts = [content[start : start + 300_007] for start in range(0, size, 300_007)]
    digest = write_whole(tmp_path / "file", iter(parts))
    assert (tmp_path / "file").read_bytes() == content and digest == hashlib.sha256(content).hexdigest()
    assert write_whole(tmp_path / "whole", content) == digest and (tmp_path / "whole").read_bytes() == content


def test_a_write_that_fails_is_not_tried_forever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.EINVAL, "never")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="never"):
        write_whole(tmp_path / "file", bytes(BLOCK + 1))
    assert not list(tmp_path.iterdir())


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


def test_a_folder_is_replaced(tmp_path: Path) -> None:
    for content in ("old", "new"):
        partial = partial_of(tmp_path / "set")
        write_whole(partial / "file", content)
        publish(partial, tmp_path / "set")
    assert (tmp_path / "set" / "file").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_a_killed_process_left_is_put_right(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os; print(os.getpid())"]
    gone = int(subprocess.run(command, capture_output=True, check=True).stdout)
    path = tmp_path / "set"
    write_whole(path / "file", "whole")
    kept = [
        f".set.{os.getpid()}-ab12.partial",
        ".set.part-0.work",
        ".set.b.1-ab12.partial",
        f".other.{gone}-ab.partial",
    ]
    for name in (*kept, f".set.{gone}-ab12.partial", f".set.{gone}-ab12.old"):
        (tmp_path / name).mkdir()
    (tmp_path / f".set.{gone}-cd34.partial").write_text("half")
    recover(path)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([*kept, "set"])
    os.rename(path, tmp_path / f".set.{gone}-ab12.old")  # killed between the two renames
    recover(path)
    assert (path / "file").read_text() == "whole" and sorted(one.name for one in tmp_path.iterdir())[-1] == "set"


def test_a_process_of_the_same_number_that_began_at_another_time_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "set"
    ours = partial_of(path)  # of a process that runs
    words = re.fullmatch(r"(.*-\d+s)(\d+)(-.*)\.partial", ours.name)
    assert words is not None
    theirs = tmp_path / f"{words[1]}{int(words[2]) + 1}{words[3]}.old"  # of one before the container was restarted
    write_whole(theirs / "file", "whole")
    write_whole(ours, "half")
    recover(path)
    assert (path / "file").read_text() == "whole" and ours.exists() and not theirs.exists()


def test_what_another_machine_writes_is_left_alone_for_a_day(tmp_path: Path) -> None:
    path, theirs = tmp_path / "set", tmp_path / ".set.m0badca-1-ab12.partial"
    ours = partial_of(path).name.split(".")[2].partition("-")[0]
    assert ours.startswith("m") and ours != "m0badca"
    write_whole(theirs / "chunk", "half")
    recover(path)
    assert (theirs / "chunk").exists()
    for one in (theirs / "chunk", theirs):
        os.utime(one, (time.time() - 90_000,) * 2)
    recover(path)
    assert not theirs.exists()
    old = tmp_path / ".set.m0badca-1-ab12.old"
    write_whole(old / "file", "whole")
    recover(path)  # nothing is at its place: it is restored at once, whosever it was
    assert (path / "file").read_text() == "whole" and not old.exists()


OUTSIDE = ["../../x", "/abs", "a/../../b", "..", "", ".", "a//b", "a/", "C:x", "c:/x", "a\\b", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_of_a_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no plain name of a file below") as error:
        below(tmp_path, name)
    assert repr(name) in str(error.value)


def test_plain_names_are_joined(tmp_path: Path) -> None:
    for name in ("chunk-0-0.bin", "a/b.json", "..a", "a..b/.c", "ö x"):
        assert below(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa red cat\r\nb\xe2\x80\xa8c\x0bd\x0ce\x85\n", b"a red cat\n\n\n"])
def test_lines_end_at_line_feeds_only_and_have_no_mark(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content.replace(b"\x85", "\x85".encode()))
    assert read_lines(path) in (["a red cat", "b\u2028c\x0bd\x0ce\x85"], ["a red cat", "", ""])
    assert read_utf8(path).startswith("a red")


def test_half_a_character_is_shown(tmp_path: Path) -> None:
    check_text("a cat \U0001f431", "prompts.txt")
    with pytest.raises(ValueError, match=r"line 3 of a.tsv holds half a character, '\\ud83d' in 'a cat \\ud83d'"):
        check_text("a cat \ud83d", "line 3 of a.tsv")
