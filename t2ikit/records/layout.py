"""The layout of a record: names, kinds of storage and axes of its arrays.

Bytes of a record, little-endian::

    header   magic "T2IR" | u16 version | u16 bytes of the layout block | u32 offset of the JSON | u32 bytes of the JSON
    layout   u32 CRC-32 of the text | text: JSON [[name, storage, axes], ...], one entry an array, in their order
    numbers  u32s, array after array: offset | size of each axis | for a compressed array its bytes
    arrays   one after the other, without a gap
    JSON     captions and metadata

Offsets count from the start of the record. Most records of a set have the same layout block: it is parsed once, and
found again by its bytes.

Kinds of storage::

    uint8, int8, float16, float32, int64     the numbers, the last axis running fastest
    quantised                                [L, D]: int8 values [L, D], then float16 scales [L, ceil(D / 64)]
    png, webp                                [3, H, W] uint8 as the bytes of a PNG or a lossless WebP file
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from t2ikit.files import parse_json
from t2ikit.records.compressed import CODECS

PLAIN = {name: np.dtype(name) for name in ("uint8", "int8", "float16", "float32", "int64")}
QUANTISED = "quantised"
STORAGE = (*PLAIN, QUANTISED, *CODECS)
DAMAGED = "the parts of this record do not fit its header: the set is damaged"

_CHECKSUM = struct.Struct("<I")


class Column(NamedTuple):
    """One array of a layout.

    Attributes:
        name: of the array.
        storage: kind of storage.
        type: of the numbers; None for a compressed or quantised array.
        first: where its numbers begin among those of the record: offset, then the size of each axis.
        end: where its sizes end there.
    """

    name: str
    storage: str
    type: np.dtype[np.generic] | None
    first: int
    end: int


class Layout:
    """The arrays of a record, without the numbers that differ from record to record.

    Args:
        entries: name, storage and number of axes of every array, in their order.

    Attributes:
        block: the bytes that stand for it in a record.
        numbers: parses the numbers of a record.
        columns: every array by its name, in their order.
        texts: for every text encoder, in their order, the arrays ``text.<encoder>.<caption>`` of caption 0, 1, ...
        pooled: for every text encoder that has them, the arrays ``pooled.<encoder>.<caption>``.
        captions_count: captions whose states are stored: all of a record, or none.

    Raises:
        ValueError: too many arrays, an unknown kind of storage, an array that comes twice, or the captions of a text
            encoder are not 0, 1, ... or others than those of another encoder.
    """

    def __init__(self, entries: Sequence[tuple[str, str, int]]) -> None:
        text = json.dumps([list(entry) for entry in entries], ensure_ascii=False, separators=(",", ":")).encode()
        self.block = _CHECKSUM.pack(zlib.crc32(text)) + text
        if len(self.block) >= 2**16:
            raise ValueError(f"a record of {len(entries)} arrays: their names take more than 64 kB")
        self.columns: dict[str, Column] = {}
        count = 0
        for name, storage, axes in entries:
            if storage not in STORAGE or name in self.columns:
                raise ValueError(f"an array {name!r} of kind {storage!r} cannot be stored, or comes twice")
            end = count + 1 + axes
            self.columns[name] = Column(name, storage, PLAIN.get(storage), count, end)
            count = end + (storage in CODECS)
        self.numbers = struct.Struct(f"<{count}I")
        self.texts = self._captions("text", ("float16", QUANTISED), 2)
        self.pooled = self._captions("pooled", ("float16",), 1)
        counts = {len(captions) for captions in (*self.texts.values(), *self.pooled.values())}
        self.captions_count = max(counts, default=0)
        if len(counts) > 1:
            raise ValueError("every text encoder of a record needs states of the same captions")

    def _captions(self, prefix: str, storage: Sequence[str], axes: int) -> dict[str, tuple[Column, ...]]:
        """The arrays ``<prefix>.<encoder>.<caption>``, by encoder."""
        columns: dict[str, list[Column]] = {}
        for name, column in self.columns.items():
            if name.startswith(f"{prefix}."):
                encoder, _, caption = name.removeprefix(f"{prefix}.").rpartition(".")
                captions = columns.setdefault(encoder, [])
                if (
                    caption != str(len(captions))
                    or column.storage not in storage
                    or column.end != column.first + 1 + axes
                ):
                    raise ValueError(f"array {name} is out of order or of another kind than {' or '.join(storage)}")
                captions.append(column)
        return {encoder: tuple(captions) for encoder, captions in columns.items()}


@lru_cache(maxsize=1024)
def layout_of(entries: tuple[tuple[str, str, int], ...]) -> Layout:
    """The layout of name, storage and number of axes of every array; built once for all records that have it."""
    return Layout(entries)


@lru_cache(maxsize=1024)
def parsed_layout(block: bytes) -> Layout:
    """The layout that a layout block stands for.

    Raises:
        ValueError: the block is damaged.
    """
    text = block[_CHECKSUM.size :]
    if len(block) < _CHECKSUM.size or _CHECKSUM.unpack_from(block)[0] != zlib.crc32(text):
        raise ValueError(DAMAGED)
    return layout_of(tuple((name, storage, axes) for name, storage, axes in parse_json(text)))
