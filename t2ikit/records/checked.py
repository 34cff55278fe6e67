"""Chunks that were compared with their manifest before a record of them is used.

LitData returns a flipped byte without a word; a manifest knows the SHA-256 of every file. A chunk is read whole once,
when it is first mapped (or a little before, see ``data/prefetch.py``); the result is kept with the size and time of the
file, so that neither another process nor a later run reads it again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock, Timeout

from t2ikit.files import write_whole
from t2ikit.pretrained import cache_folder, sha256_of
from t2ikit.records.record_set import RecordSet, SetFiles

Verify = Literal["once", "always", "never"]
VERIFY: tuple[str, ...] = get_args(Verify)


class CheckedFiles(SetFiles):
    """Files of a folder on this machine, or mounted on it.

    Args:
        folder: the set.
        digests: SHA-256 of every file, by name.
        verify: "once" reads a file that is new or has changed since it was last found good; "always" reads it whenever
            it is mapped; "never" looks at its size only.
        repair: end of the message about a damaged file.
        notes: where it is remembered which files are good; by default below the cache folder of the user. Where that
            cannot be written, every process finds out by itself.
    """

    def __init__(
        self,
        folder: Path,
        digests: Mapping[str, str],
        verify: Verify = "once",
        repair: str = "",
        notes: Path | None = None,
    ) -> None:
        if verify not in VERIFY:
            raise ValueError(f"data.verify must be one of {', '.join(VERIFY)}, not {verify!r}")
        self.folder = folder
        self.digests = digests
        self.verify = verify
        self.repair = repair
        folder_hash = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
        self.notes = cache_folder() / "verified" / folder_hash if notes is None else notes
        self._good: dict[str, str] = {}

    def ready(self, name: str, wait: bool = True) -> bool:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing.\n{self.repair}")
        if self.is_good(name):
            return True
        if self.verify == "always":
            if wait:  # somebody needs it now; ahead of time it would be read for nothing
                self.check(name)
            return True
        with self.alone_with(name, wait) as mine:
            if mine and not self.is_good(name):  # another process may have found out meanwhile
                self.check(name)
        return mine

    def is_good(self, name: str) -> bool:
        """Whether a file need not be read: it is as it was when it was last found good."""
        if self.verify != "once":
            return self.verify == "never"
        state = self._state(name)
        if self._good.get(name) == state:
            return True
        try:
            noted = (self.notes / name).read_text(encoding="utf-8")
        except OSError:
            return False
        if noted == state:
            self._good[name] = state
        return noted == state

    def check(self, name: str) -> None:
        """Reads a file, and remembers that it is good.

        Raises:
            ValueError: it is not what the manifest says.
        """
        state = self._state(name)
        path = self.folder / name
        if sha256_of(path) != self.digests.get(name):
            raise ValueError(f"{path} differs from its manifest (SHA-256).\n{self.repair}")
        self.remember(name, state)

    def remember(self, name: str, state: str | None = None) -> None:
        """Notes that a file, as it is now or in ``state``, is good."""
        state = state or self._state(name)
        self._good[name] = state
        with suppress(OSError):  # a cache that cannot be written only costs time
            write_whole(self.notes / name, state)

    @contextmanager
    def alone_with(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Keeps the other processes of this machine off a file; yields False where one of them has it."""
        try:
            self.notes.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.notes / f"{name}.lock")
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        except OSError:
            yield True  # no place for a lock: the work may be done twice
            return
        try:
            yield True
        finally:
            lock.release()

    def _state(self, name: str) -> str:
        stat = (self.folder / name).stat()
        return f"{self.digests.get(name)} {stat.st_size} {stat.st_mtime_ns}\n"


def open_set(folder: str | os.PathLike[str], verify: Verify = "once") -> RecordSet:
    """A stored set whose chunks are checked before they are used.

    Raises:
        FileNotFoundError, ValueError: as :class:`RecordSet`; index or empty prompt differ from the manifest.
    """
    records = RecordSet(folder)
    digests = records.manifest.chunk_sha256
    records.files = CheckedFiles(records.folder, digests, verify, records.repair())
    for name in digests.keys() - set(records.chunk_names):
        records.files.ready(name)
    return records
