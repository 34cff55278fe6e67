"""Results of long work on the disk: shards of fixed, consecutive items, each complete or absent, with a ledger.

A folder of work::

    .lock              held by the first process of the call that works here
    work.json          what is computed: identity, number of items, items a shard
    shard-000007.bin   the results of shard 7, as a chunk of LitData's format
    shard-000007.json  its line of the ledger: SHA-256, number of results, items that have none and why

A shard is finished when its line of the ledger exists and the hash is right; the line is written last. Only its number
decides which items a shard holds, so any number of processes of one call may share the work, and stop at any moment.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from t2ikit.files import parse_json, write_whole
from t2ikit.lock import LOCK, PREPARES, lock, unlock
from t2ikit.pretrained import sha256_of
from t2ikit.records.chunks import ChunkBuffer, read_chunk

WORK_NAME = "work.json"


@dataclass(frozen=True)
class Rejected:
    """An item that has no result, and why: a photo that cannot be decoded."""

    reason: str


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        identity: of the work.
        shard: its number.
        sha256: of its file.
        count: results in it.
        size: of its file, in bytes.
        rejected: (item, reason) of the items without a result.
        facts: numbers that the work keeps about its results.
    """

    identity: str
    shard: int
    sha256: str
    count: int
    size: int
    rejected: tuple[tuple[int, str], ...] = ()
    facts: Mapping[str, int] = field(default_factory=dict)


class Ledger:
    """The shards of one work in one folder.

    Args:
        folder: where they are.
        identity: hash of everything that decides the results.
        items: N, their number.
        shard_size: items of every shard but the last.
    """

    def __init__(self, folder: Path, identity: str, items: int, shard_size: int) -> None:
        if shard_size < 1:
            raise ValueError(f"a shard needs at least one item, not {shard_size}")
        self.folder = folder
        self.identity = identity
        self.items = items
        self.shard_size = shard_size
        self._chunk = ChunkBuffer()

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.items // self.shard_size)

    def range(self, shard: int) -> range:
        """The items of a shard."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.items))

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"shard-{shard:06d}.bin"

    def check_owner(self) -> None:
        """Raises FileExistsError if the folder holds results of other work, which must not be mixed with these."""
        path = self.folder / WORK_NAME
        if path.is_file() and _read(path) != self._header():
            raise FileExistsError(
                f"{self.folder} holds unfinished results of other inputs: give the options of that call to finish "
                "them, or drop them with --overwrite"
            )

    def hold(self) -> None:
        """Makes the folder and locks it, until ``release``, ``discard`` or the end of this process.

        Raises:
            Locked: another call works there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock(self.folder, PREPARES)

    def release(self) -> None:
        """Lets another process work in the folder."""
        unlock(self.folder)

    def open(self) -> None:
        """Makes and locks the folder; results of other work and files that a killed process left are removed.

        Raises:
            Locked: another call works there, whose files these may be.
        """
        self.hold()
        header = self.folder / WORK_NAME
        if _read(header) != self._header():
            self._clear()
        for partial in self.folder.glob(".*.partial"):
            partial.unlink(missing_ok=True)
        write_whole(header, json.dumps(self._header()))

    def discard(self) -> None:
        """Removes the folder, its lock last: nobody begins in a folder that is being removed."""
        self._clear()
        with suppress(OSError):
            (self.folder / LOCK).unlink()
        self.release()
        with suppress(OSError):  # another call may have begun
            self.folder.rmdir()

    def entry(self, shard: int) -> Entry | None:
        """The line of a shard, if there is one of this work; the shard itself is not read."""
        try:
            values = _read(self._line(shard))
            rejected = tuple((int(item), str(reason)) for item, reason in values.pop("rejected"))
            entry = Entry(**values, rejected=rejected)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return entry if (entry.identity, entry.shard) == (self.identity, shard) else None

    def verify(self, shard: int) -> bool:
        """Whether a shard is finished; the line of one whose hash is another one's is removed, so that it is redone."""
        entry = self.entry(shard)
        if entry is not None and self.path(shard).is_file() and sha256_of(self.path(shard)) == entry.sha256:
            return True
        self._line(shard).unlink(missing_ok=True)
        return False

    def finished(self) -> list[int]:
        """Shards that have a line, in order."""
        return sorted(int(path.stem.removeprefix("shard-")) for path in self.folder.glob("shard-*.json"))

    def write(self, shard: int, results: Iterable[bytes | Rejected], facts: Mapping[str, int] | None = None) -> None:
        """Writes a shard, then its line, both whole or not at all. One thread of a process at a time."""
        items, chunk, count = self.range(shard), self._chunk, 0
        rejected: list[tuple[int, str]] = []
        chunk.clear()
        for count, result in enumerate(results, start=1):
            if isinstance(result, Rejected):
                rejected.append((items.start + count - 1, result.reason))
            else:
                chunk.add(result)
        if count != len(items):
            raise ValueError(f"shard {shard} has {len(items)} items, but {count} results")
        path = self.path(shard)
        digest = write_whole(path, chunk.content())
        entry = Entry(self.identity, shard, digest, len(chunk), path.stat().st_size, tuple(rejected), dict(facts or {}))
        write_whole(self._line(shard), json.dumps(asdict(entry)))

    def _clear(self) -> None:
        """Removes what is in the folder, as far as it can be, but for the lock."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                with suppress(OSError):
                    path.unlink()

    def _line(self, shard: int) -> Path:
        return self.path(shard).with_suffix(".json")

    def _header(self) -> dict[str, Any]:
        return {"identity": self.identity, "items": self.items, "shard_size": self.shard_size}


class Results:
    """Finished work: ``len`` and iteration give the results in the order of the items, in constant memory.

    Attributes:
        chief: whether this process uses them; the others only call ``discard``.
    """

    def __init__(self, ledger: Ledger, chief: bool = True) -> None:
        self.ledger = ledger
        self.chief = chief

    def __len__(self) -> int:
        return sum(entry.count for entry in self.entries())

    def __iter__(self) -> Iterator[bytes]:
        for entry in self.entries():
            yield from read_chunk(self.ledger.path(entry.shard), entry.count)

    def entries(self) -> Iterator[Entry]:
        """The ledger, in order.

        Raises:
            ValueError: a shard is missing; another process wrote it, to a disk that is not shared.
        """
        for shard in range(self.ledger.shards):
            entry = self.ledger.entry(shard)
            if entry is None:
                raise ValueError(
                    f"{self.ledger.path(shard)} is missing, though every process has finished: --out must be a folder "
                    "that all machines share"
                )
            yield entry

    def rejected(self) -> Iterator[tuple[int, str]]:
        """Items without a result and the reason, in order."""
        for entry in self.entries():
            yield from entry.rejected

    def largest(self, fact: str) -> int:
        """The largest value of a fact that the work keeps."""
        return max((entry.facts.get(fact, 0) for entry in self.entries()), default=0)

    def discard(self) -> None:
        """Removes the folder. Every process calls it; it returns when the chief has done so."""
        if self.chief:
            self.ledger.discard()


def _read(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
