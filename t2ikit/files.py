"""Files that are whole or not there: written under another name, synced to the disk, renamed."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import mmap
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST_CHARACTERS = 2**16
"""Of a caption or a prompt: a hundred times a long caption, eight times what the longest text encoder reads."""

_BLOCK = 2**22
_OWNER = re.compile(
    r"(?:(?P<machine>m[0-9a-f]+)-)?(?P<process>\d+)(?:s(?P<start>\d*))?-[0-9a-f]+\.(?P<kind>partial|old)"
)
_DAY = 24 * 3600.0  # seconds


def below(folder: Path, name: str) -> Path:
    """The path of a file of ``folder`` whose name comes from a file or from a server.

    Args:
        folder: the folder; it need not exist.
        name: relative, its parts separated by "/".

    Raises:
        ValueError: the name could lead out of the folder, or is no plain one on every system; shows it.

    Example:
        >>> below(Path("set"), "chunk-0-0.bin").as_posix()
        'set/chunk-0-0.bin'
    """
    drive = re.match(r"[A-Za-z]:", name)
    if drive or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(
            f"{name!r} is no plain name of a file below {folder}: names that are absolute, that hold .., a drive, a "
            "backslash or an empty part could write or read elsewhere"
        )
    return folder / name


def require_folder(path: Path, option: str) -> None:
    """Refuses a folder that cannot be made or written, before work whose results would be lost.

    Args:
        path: the folder; it need not exist.
        option: what names it, for the message.

    Raises:
        ValueError: a file stands there or above it, this user may not write there, or the name is too long.
    """
    existing = path.absolute()
    try:
        while not existing.exists():
            existing = existing.parent
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror}: choose another folder") from error
    if not existing.is_dir():
        raise ValueError(f"{option} {path}: {existing} is a file, no folder: choose another one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {path}: this user may not write to {existing}: choose another folder")


def partial_of(path: Path) -> Path:
    """A name next to ``path`` for its unfinished content; no other process takes the same one."""
    process = f"{os.getpid()}s{_start_of(os.getpid())}"
    return path.with_name(f".{path.name}.{_machine()}-{process}-{secrets.token_hex(4)}.partial")


def sync(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: Path, path: Path) -> None:
    """Syncs ``partial``, a file or a folder as ``partial_of`` names it, and renames it to ``path``.

    Replaces what is at ``path``. A folder cannot be replaced atomically: a process that is killed in between leaves the
    old one under another name, and ``recover`` restores it.
    """
    for file in [file for file in partial.rglob("*") if file.is_file()] if partial.is_dir() else [partial]:
        sync(file)
    if partial.is_dir() and path.is_dir():
        old = partial.with_suffix(".old")
        os.replace(path, old)
        os.replace(partial, path)
        shutil.rmtree(old)
    else:
        os.replace(partial, path)
    sync(path.parent)


def recover(path: Path) -> None:
    """Repairs what killed processes left next to ``path``: removes unfinished content, restores a replaced folder.

    What belongs to processes of this machine that still run is left alone, and for a day what those of others write: of
    them nobody here knows whether they run.
    """
    for hidden in path.parent.glob(f".{glob.escape(path.name)}.*"):
        owner = _OWNER.fullmatch(hidden.name[len(path.name) + 2 :])
        if owner is None:
            continue
        elsewhere = owner["machine"] is not None and owner["machine"] != _machine()
        if not elsewhere and _runs(int(owner["process"]), owner["start"]):
            continue
        if owner["kind"] == "old" and not path.exists():
            os.replace(hidden, path)
        elif elsewhere and _written_lately(hidden):
            continue
        elif hidden.is_dir():
            shutil.rmtree(hidden, ignore_errors=True)
        else:
            hidden.unlink(missing_ok=True)


def write_whole(path: str | Path, content: bytes | str | Iterable[bytes | memoryview]) -> str:
    """Writes a file, whole or not at all; the folder is made.

    Args:
        path: the file; an old one stays as it was until the new one is complete.
        content: bytes, text (UTF-8), or pieces that are written as they come.

    Returns:
        Its SHA-256.

    Example:
        >>> import tempfile
        >>> write_whole(f"{tempfile.mkdtemp()}/scores.json", "{}")[:12]
        '44136fa355b3'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pieces = [content] if isinstance(content, bytes) else [content.encode()] if isinstance(content, str) else content
    partial = partial_of(path)
    try:
        digest = _write(partial, pieces)
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return digest


def read_utf8(file: Path) -> str:
    """The text of a file, without the mark that some programs put at its start (U+FEFF).

    Raises:
        ValueError: it is no UTF-8 text.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text ({error})") from error


def read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 file. A line ends at a line feed, or at a carriage return and a line feed, only.

    Python's ``splitlines`` also splits at the separators that stand inside texts from the web, such as U+2028.

    Raises:
        ValueError: it is no UTF-8 text.
    """
    lines = read_utf8(file).split("\n")
    if not lines[-1]:
        del lines[-1]
    return [line.removesuffix("\r") for line in lines]


def check_text(text: str, where: str) -> None:
    """Refuses a caption or a prompt from outside that is too long, or holds half a character.

    Half of a pair of surrogates is what JSON can say (half an emoji) and UTF-8 cannot.

    Args:
        text: any.
        where: file and line, for the message.

    Raises:
        ValueError: says what is wrong and where.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(
            f"{where} has {len(text):,} characters, and {MOST_CHARACTERS:,} are the most that a text may have: "
            f"{ascii(text[:80])}..."
        )
    half = re.search("[\ud800-\udfff]", text)
    if half is not None:
        raise ValueError(f"{where} holds half a character, {ascii(half[0])} in {ascii(text[:80])}: write it whole")


def parse_json(text: str | bytes) -> Any:
    """As ``json.loads``, for files and answers that may come from strangers.

    Raises:
        ValueError: it is no JSON, or its brackets are nested more deeply than Python follows (``json.loads`` raises a
            RecursionError then, which no reader of a file expects).
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("brackets are nested too deeply", "", 0) from None


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Writes the pieces and returns their SHA-256.

    What is longer than a block goes to the disk past the page cache, where the system can do that: nobody reads a chunk
    of a large set soon, and filling the cache costs more time of the processor than the hash.
    """
    digest, filled = hashlib.sha256(), 0
    memory = memoryview(mmap.mmap(-1, _BLOCK))  # direct writes come from whole pages
    with path.open("xb", buffering=0) as stream:
        for piece in pieces:
            digest.update(piece)  # while it is in the cache of the processor
            with memoryview(piece) as rest:
                done = 0
                while done < len(rest):
                    length = min(_BLOCK - filled, len(rest) - done)
                    memory[filled : filled + length] = rest[done : done + length]
                    done, filled = done + length, filled + length
                    if filled == _BLOCK:
                        _set_direct(stream.fileno(), True)
                        _write_all(stream.fileno(), memory)
                        filled = 0
        _set_direct(stream.fileno(), False)  # the rest is no whole number of sectors
        _write_all(stream.fileno(), memory[:filled])
    return digest.hexdigest()


def _write_all(descriptor: int, content: memoryview) -> None:
    done = 0
    while done < len(content):
        try:
            done += os.write(descriptor, content[done:])
        except OSError as error:
            if error.errno != errno.EINVAL or not _set_direct(descriptor, False):
                raise


def _set_direct(descriptor: int, direct: bool) -> bool:
    """Has a file written past the page cache, or through it; whether that changed anything."""
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        return False
    before = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    after = before | flag if direct else before & ~flag
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, after)
    except OSError:  # a file system without it
        return False
    return before != after


def _machine() -> str:
    """A short name of this machine or container, as processes are numbered in it."""
    return "m" + hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:6]


def _written_lately(hidden: Path) -> bool:
    """Whether a file, or any of a folder, was written during the last day; false where it is gone already."""
    try:
        newest = max(path.stat().st_mtime for path in [hidden, *hidden.rglob("*")])
    except FileNotFoundError:
        return False
    return newest > time.time() - _DAY


def _start_of(process: int) -> str:
    """When a process began, in clock ticks since the machine did; empty where the system does not tell."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _runs(process: int, start: str | None = None) -> bool:
    """Whether a process runs. One of the same number that began at another time is another one: a container that is
    restarted keeps its name, and its first process the number 1."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = _start_of(process)
    return not start or not now or start == now
