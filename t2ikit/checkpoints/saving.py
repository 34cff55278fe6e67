"""Checkpoint files: written whole or not at all, hashed while they are written, compared with the hash when read.

A file is what ``torch.save`` writes, a zip archive, with a comment of the archive at its end: the SHA-256 of all bytes
before the comment. ``torch.load``, also with ``mmap``, and ``zipfile`` read it as any other.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from t2ikit.checkpoints.foreign import kind_of_file, reason_of
from t2ikit.files import partial_of, publish, recover

_MARK = b"t2ikit sha256 "
_COMMENT = len(_MARK) + 2 * hashlib.sha256().digest_size
_END = b"PK\5\6"
_END_SIZE = 22
"""Bytes of the last record of a zip archive (APPNOTE 4.3.16); its last two are the length of the comment after it."""
_TAIL = _END_SIZE + 2**16
"""The last record of a zip archive lies within these last bytes: its comment is at most 64 KiB long."""
_STEP = re.compile(r"(?:^|[-_])step[-=](\d+)(?:-v\d+)?$")
"""The step in a name of ours, ``step-00001000.ckpt``, and of Lightning, ``epoch=2-step=1000-v1.ckpt``."""


class _HashedFile:
    """What ``torch.save`` writes to: passes everything on, hashed, and puts the hash into the archive's comment.

    An error of the disk is kept until :meth:`close`: torch cannot leave a half-written archive without writing more.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._digest = stream, hashlib.sha256()
        self._held = b""
        self._failure: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        """Writes all but what may be the last record, whose comment is not known yet."""
        size = memoryview(content).nbytes
        if size < _END_SIZE:
            held = self._held + bytes(content)
            self._held = held[-_END_SIZE:]
            self._put(held[:-_END_SIZE])
        else:
            self._put(self._held)
            view = memoryview(content).cast("B")
            self._put(view[:-_END_SIZE])
            self._held = bytes(view[-_END_SIZE:])
        return size

    def flush(self) -> None:
        """Nothing: ``close`` does."""

    def close(self) -> None:
        """Writes the last record, which now tells the length of the comment, and the comment.

        Raises:
            OSError: the first error of the disk.
        """
        if self._failure is None and not self._held.startswith(_END):
            raise RuntimeError("torch.save wrote no zip archive; is its old format switched on?")
        self._put(self._held[:-2] + _COMMENT.to_bytes(2, "little"))
        self._put(_MARK + self._digest.hexdigest().encode())
        if self._failure is not None:
            raise self._failure

    def _put(self, content: bytes | memoryview) -> None:
        if self._failure is not None:
            return
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self._stream.write(rest) :]  # the system takes at most 2 GiB at once
        except OSError as error:
            self._failure = error
        self._digest.update(content)


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Writes a checkpoint beside its place, syncs it to the disk and renames it; an old one stays until then.

    Tensors go to the disk one after the other: no second copy of the state is made.

    Raises:
        OSError: it could not be written; nothing is left of it.
    """
    import torch  # here: looking for checkpoints needs none

    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    partial = partial_of(path)
    try:
        with partial.open("xb", buffering=0) as stream:
            file = _HashedFile(stream)
            torch.save(content, file)  # type: ignore[arg-type]
            file.close()
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint is whole: torch's zip archive with its directory at the end."""
    if not checkpoint.is_file():  # opening a pipe would wait for ever
        return False
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return any(entry.endswith("data.pkl") for entry in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None: a byte that was not written so, its end missing, another step inside.

    A file without a hash, of another program, is only looked at for its end and its step. A file that has not changed
    is read once a process.
    """
    if checkpoint.is_dir():
        return "it is a folder, as FSDP and DeepSpeed write, and no checkpoint of a run; nothing in it is read"
    try:
        status = checkpoint.stat()
    except OSError as error:
        return str(error.strerror)
    return _fault_of(checkpoint, status.st_ino, status.st_size, status.st_mtime_ns)


def step_in_name(checkpoint: Path) -> int:
    """1000 of ``step-00001000.ckpt`` or ``epoch=2-step=1000.ckpt``; -1 of a name that says no step."""
    named = _STEP.search(checkpoint.stem)
    return int(named[1]) if named else -1


@lru_cache
def _fault_of(checkpoint: Path, *changed: int) -> str | None:
    """As :func:`fault_of`; ``changed`` differs when the file does."""
    if _is_damaged(checkpoint):
        return "the file is damaged: its bytes have another SHA-256 than those that were written"
    if not is_complete(checkpoint):
        return f"not a complete checkpoint ({kind_of_file(checkpoint)})"
    named = step_in_name(checkpoint)
    if named < 0:
        return None
    import torch

    try:
        content = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
        inside = int(content["global_step"])
    except Exception as error:
        return f"its name is that of a checkpoint of step {named}, but it is none of a run ({reason_of(error)})"
    return None if inside == named else f"its name says step {named}, but step {inside} is inside"


def _is_damaged(checkpoint: Path) -> bool:
    """Whether a file has a hash, and its bytes have another one.

    Mark and length of the comment are each a sign of a hash, wherever the file ends now: neither damage to one of them
    nor bytes that are cut off or added behind them hide it.
    """
    size = checkpoint.stat().st_size
    if size < _END_SIZE:
        return False
    with checkpoint.open("rb") as stream:
        stream.seek(max(0, size - _TAIL))
        tail = stream.read(_TAIL)
        last = tail[tail.rfind(_END) :]
        if last[_END_SIZE - 2 : _END_SIZE] != _COMMENT.to_bytes(2, "little") and _MARK not in tail:
            return False
        stream.seek(0)
        digest, rest = hashlib.sha256(), size - _COMMENT
        while rest > 0:
            block = stream.read(min(rest, 2**22))
            digest.update(block)
            rest -= len(block)
            if not block:  # cut off meanwhile
                return True
    return tail[-_COMMENT:] != _MARK + digest.hexdigest().encode()
