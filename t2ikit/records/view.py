"""A stored record read in place; only what is asked for is touched.

Shapes: L tokens of a caption, D width of the text states, G scales a token, P width of a pooled vector.
"""

from __future__ import annotations

import struct
from math import prod
from typing import Any

import numpy as np

from t2ikit.files import parse_json
from t2ikit.records.compressed import Compressed
from t2ikit.records.layout import DAMAGED, QUANTISED, Column, Layout, parsed_layout
from t2ikit.records.states import GROUP, Tokens

MAGIC = b"T2IR"
VERSION = 2
HEADER = struct.Struct("<4sHHII")
"""Magic, version, bytes of the layout block, offset and length of the JSON."""

_SCALE = np.dtype(np.float16)
# Version 1: magic, version, image code, token code, captions, captions with states, width, image shape, JSON.
_HEADER_1 = struct.Struct("<4sHBBHHI4III")
_LAYOUT_1 = Layout([("image", "uint8", 3)])


class RecordView:
    """A record read in place: its table is parsed at once, arrays are views of the buffer (copy before keeping them).

    Raises:
        ValueError: the buffer holds no record, one of another version, or a damaged one.
    """

    __slots__ = ("_buffer", "_details", "_numbers", "layout")

    def __init__(self, buffer: bytes | memoryview) -> None:
        self._buffer = buffer
        if len(buffer) < HEADER.size:
            raise ValueError(f"a record has at least {HEADER.size} bytes, this one {len(buffer)}: it is damaged")
        magic, version, size, start, length = HEADER.unpack_from(buffer)
        if magic != MAGIC:
            raise ValueError("this is no t2ikit record: the set is damaged or was written by another program")
        if version == 1:
            self._read_version_1()
            return
        if version != VERSION:
            raise ValueError(f"record version {version}, this t2ikit reads {VERSION}: prepare the set again")
        if start + length != len(buffer):
            raise ValueError(f"a record of {start + length} bytes has only {len(buffer)}: the set is damaged")
        first = HEADER.size + size
        self._details = (start, length)
        self.layout = layout = parsed_layout(bytes(buffer[HEADER.size : first]))
        if first + layout.numbers.size > start:
            raise ValueError(DAMAGED)
        self._numbers: tuple[int, ...] = layout.numbers.unpack_from(buffer, first)
        self._check_parts(first + layout.numbers.size, start)

    def _read_version_1(self) -> None:
        """Images before encoding are read from a record of version 1, since their photos may be gone."""
        if len(self._buffer) < _HEADER_1.size:
            raise ValueError(DAMAGED)
        _, _, image, _, _, states, _, *shape, last, start, length = _HEADER_1.unpack_from(self._buffer)
        if image or states or last:
            raise ValueError("record version 1 with text states or latents: encode the set again")
        if start + length != len(self._buffer):
            raise ValueError(DAMAGED)
        self.layout = _LAYOUT_1
        self._numbers = (_HEADER_1.size, *shape)
        self._details = (start, length)
        self._check_parts(_HEADER_1.size, start)

    def _check_parts(self, position: int, end: int) -> None:
        """Raises ValueError unless the arrays follow each other without a gap, from ``position`` to ``end``."""
        numbers = self._numbers
        for _, storage, type_of_numbers, first, end_of_sizes in self.layout.columns.values():
            if numbers[first] != position:
                raise ValueError(DAMAGED)
            if type_of_numbers is not None:
                size = prod(numbers[first + 1 : end_of_sizes]) * type_of_numbers.itemsize
            elif storage == QUANTISED:
                width = numbers[first + 2]
                size = numbers[first + 1] * (width + -(-width // GROUP) * _SCALE.itemsize)
            else:
                size = numbers[end_of_sizes]
            if not size:
                raise ValueError(DAMAGED)
            position += size
        if position != end:
            raise ValueError(DAMAGED)

    @property
    def captions_count(self) -> int:
        """Captions whose states are stored: all of them, or none."""
        return self.layout.captions_count

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array; of a compressed picture, once it is decoded."""
        column = self.layout.columns[name]
        return self._numbers[column.first + 1 : column.end]

    def array(self, name: str) -> np.ndarray:
        """An array: a view of the buffer, or the pixels of a compressed picture.

        Raises:
            KeyError: the record has no array of that name.
            ValueError: it is quantised (``tokens`` gives its parts), or a picture that cannot be decoded.
        """
        column = self.layout.columns[name]
        if column.type is not None:
            return self._plain(column)
        if column.storage == QUANTISED:
            raise ValueError(f"array {name} is quantised: RecordView.tokens gives its values and scales")
        return self._compressed(column).decode()

    def stored(self, name: str) -> np.ndarray | Tokens | Compressed:
        """An array as it is stored: text states with their scales, a picture as compressed bytes."""
        column = self.layout.columns[name]
        if column.storage == QUANTISED:
            return Tokens(*self._quantised(column))
        return self._compressed(column) if column.type is None else self._plain(column)

    def length(self, encoder: str, caption: int) -> int:
        """Tokens L of a caption."""
        return self._numbers[self._text(encoder, caption).first + 1]

    def tokens(self, encoder: str, caption: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Values [L, D] and scales [L, G] (None for float16 values) of a caption, views."""
        column = self._text(encoder, caption)
        return self._quantised(column) if column.type is None else (self._plain(column), None)

    def pooled(self, encoder: str, caption: int) -> np.ndarray:
        """The pooled vector [P] of a caption, a view; KeyError for an encoder that gives none."""
        return self._plain(self.layout.pooled[encoder][caption])

    def details(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Captions and metadata; parses the JSON."""
        start, size = self._details
        content = parse_json(bytes(self._buffer[start : start + size]).decode())
        return tuple(content["captions"]), content["metadata"]

    def _text(self, encoder: str, caption: int) -> Column:
        captions = self.layout.texts.get(encoder, ())
        if not 0 <= caption < len(captions):
            raise IndexError(
                f"caption {caption} of a record that has {len(captions)} captions with states of {encoder}"
            )
        return captions[caption]

    def _plain(self, column: Column) -> np.ndarray:
        shape = self._numbers[column.first + 1 : column.end]
        assert column.type is not None
        return np.frombuffer(self._buffer, column.type, prod(shape), self._numbers[column.first]).reshape(shape)

    def _quantised(self, column: Column) -> tuple[np.ndarray, np.ndarray]:
        offset, length, width = self._numbers[column.first : column.end]
        values = np.frombuffer(self._buffer, np.int8, length * width, offset)
        count = -(-width // GROUP)
        scales = np.frombuffer(self._buffer, _SCALE, length * count, offset + length * width)
        return values.reshape(length, width), scales.reshape(length, count)

    def _compressed(self, column: Column) -> Compressed:
        offset, *shape, size = self._numbers[column.first : column.end + 1]
        return Compressed(column.storage, self._buffer[offset : offset + size], tuple(shape))
