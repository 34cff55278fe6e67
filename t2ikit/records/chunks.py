"""Chunk files of a stored set, in LitData's format, and the index that lists them.

A chunk is little-endian and holds one bytes leaf an item::

    u32 n | u32 offset of item 0, 1, ... n - 1, end of the file | items: u32 size, content

Written by hand, not by LitData's ``BinaryWriter``: that decides by itself where a chunk ends, while here a chunk must
hold the same items however the work was spread or interrupted. ``test_chunks.py`` compares the bytes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t2ikit.files import below, parse_json

INDEX_NAME = "index.json"
_LIMIT = 2**32 - 1
_SIZE = struct.Struct("<I")
_PART = 2**18
"""Bytes that are hashed and then written while they are still in the cache of the processor."""
_CONFIG = {
    "chunk_bytes": None,
    "chunk_size": None,
    "compression": None,
    "compression_batch_size": None,
    "compression_level": None,
    "data_format": ["bytes"],
    "data_spec": '[1, {"type": null, "context": null, "children_spec": []}]',  # LitData's pytree of one leaf
    "encryption": None,
    "ipc_compression": None,
    "item_loader": "PyTreeLoader",
    "types": "bytes",
}


@dataclass(frozen=True)
class Chunk:
    """One chunk file.

    Attributes:
        name: of the file.
        count: items in it.
        size: of the file, in bytes.
        sha256: of the file; an index does not say it.
    """

    name: str
    count: int
    size: int
    sha256: str = ""


def chunk_name(index: int) -> str:
    """Name of chunk ``index`` of a set."""
    return f"chunk-0-{index}.bin"


class ChunkBuffer:
    """Gathers the items of a chunk, in memory that serves one chunk after the other.

    A list of items would take fresh memory for every chunk, which the system hands out page by page: for images, that
    costs as much as their SHA-256.

    Args:
        items: the first ones.

    Example:
        >>> buffer = ChunkBuffer([b"one", b"two"])
        >>> len(buffer), buffer.size, len(b"".join(buffer.content()))
        (2, 14, 30)
    """

    def __init__(self, items: Iterable[bytes] = ()) -> None:
        self._memory = memoryview(b"")
        self._ends = [0]
        for item in items:
            self.add(item)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getstate__(self) -> tuple[()]:
        return ()  # to another process it goes empty

    def __setstate__(self, state: tuple[()]) -> None:
        self.__init__()  # type: ignore[misc]

    @property
    def size(self) -> int:
        """Bytes of the items as they are stored, without the header."""
        return self._ends[-1]

    def clear(self) -> None:
        """Begins another chunk."""
        self._ends = [0]

    def add(self, item: bytes) -> None:
        """One more item, copied."""
        start, end = self.size, self.size + _SIZE.size + len(item)
        if end > len(self._memory):
            larger = np.empty(max(end, 2 * len(self._memory)), np.uint8).data  # in huge pages, where Linux has them
            larger[:start] = self._memory[:start]
            self._memory = larger
        _SIZE.pack_into(self._memory, start, len(item))
        self._memory[start + _SIZE.size : end] = item
        self._ends.append(end)

    def content(self) -> Iterator[bytes | memoryview]:
        """The parts of the file, to be written one after the other before another item is added.

        Raises:
            ValueError: more than 4 GiB.
        """
        offsets = np.array(self._ends, dtype=np.int64) + 4 * (len(self) + 2)
        if offsets[-1] > _LIMIT:
            raise ValueError(
                f"a chunk of {offsets[-1]:,} bytes: its offsets reach to 4 GiB only; write fewer items to one"
            )
        yield _SIZE.pack(len(self)) + offsets.astype("<u4").tobytes()
        for start in range(0, self.size, _PART):
            yield self._memory[start : min(start + _PART, self.size)]


def open_chunk(path: Path, count: int) -> tuple[memoryview, list[int]]:
    """Maps a chunk: its bytes, and the offsets of its ``count`` items and of its end.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is cut short or holds another number of items; the message is the second half of a sentence.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 4 * (count + 2):
            raise ValueError("is cut short")
        buffer = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    header = np.frombuffer(buffer, "<u4", count + 2)
    if header[0] != count or header[-1] != len(buffer):
        raise ValueError(f"has {len(buffer)} bytes where its header says {header[-1]}")
    return buffer, header[1:].tolist()


def read_chunk(path: Path, count: int) -> Iterator[bytes]:
    """The items of a chunk, copied; raises as :func:`open_chunk`."""
    buffer, offsets = open_chunk(path, count)
    for start, end in zip(offsets, offsets[1:], strict=False):
        yield bytes(buffer[start + 4 : end])


def index_content(chunks: Iterable[Chunk]) -> str:
    """LitData's ``index.json``.

    Where LitData puts the time, by which its cache knows a set that was written again, stands a number made from the
    hashes of the chunks: the same records give the same file.
    """
    rows, digest = [], hashlib.sha256()
    for chunk in chunks:
        rows.append({"chunk_bytes": chunk.size, "chunk_size": chunk.count, "dim": None, "filename": chunk.name})
        digest.update(chunk.sha256.encode())
    return json.dumps({"chunks": rows, "config": _CONFIG, "updated_at": str(int(digest.hexdigest()[:12], 16))}) + "\n"


def read_index(folder: Path) -> list[Chunk]:
    """The chunks that ``index.json`` lists.

    Raises:
        ValueError: it is missing, cannot be read, describes another layout, or names a chunk outside the folder.
    """
    try:
        index = parse_json((folder / INDEX_NAME).read_text(encoding="utf-8"))
        layout = (index["config"]["data_format"], index["config"]["compression"])
        chunks = [
            Chunk(str(row["filename"]), int(row["chunk_size"]), int(row["chunk_bytes"])) for row in index["chunks"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot be read ({error})") from error
    if layout != (["bytes"], None):
        raise ValueError(f"describes items {layout}, not one bytes leaf without compression")
    for chunk in chunks:
        try:
            below(folder, chunk.name)
        except ValueError as error:
            raise ValueError(f"cannot be used: {error}") from error
    return chunks
