"""One sample: named arrays, captions and metadata, and the bytes that stand for them (``layout.py`` describes these).

Names of arrays::

    image                        [3, H, W] uint8 pixels, or [2, C, H, W] float16 posterior mean and standard deviation
    text.<encoder>.<caption>     [L, D] states of a caption, by its number from 0; the encoder is a short name that the
                                 manifest knows
    pooled.<encoder>.<caption>   [P] float16, one vector for a caption
    picture                      [3, H, W] uint8, the picture beside latents
    features.<network>           what a network sees in the image; further arrays have any other name
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from t2ikit.records.compressed import Compressed
from t2ikit.records.layout import PLAIN, QUANTISED, Layout, layout_of
from t2ikit.records.states import States, Tokens
from t2ikit.records.view import HEADER, MAGIC, VERSION, RecordView

Stored = np.ndarray | Tokens | Compressed
"""An array as it is stored."""


def text_arrays(encoder: str, captions: Iterable[States]) -> dict[str, Stored]:
    """The arrays that hold what one text encoder gave for the captions of a record."""
    arrays: dict[str, Stored] = {}
    for caption, states in enumerate(captions):
        arrays[f"text.{encoder}.{caption}"] = states.tokens
        if states.pooled is not None:
            arrays[f"pooled.{encoder}.{caption}"] = states.pooled
    return arrays


@dataclass(frozen=True)
class Record:
    """One sample.

    Attributes:
        arrays: by name, in the order in which they are stored; text states are :class:`Tokens`, compressed pictures
            :class:`Compressed`.
        captions: one or several captions (none in a set that has not been captioned yet).
        metadata: JSON-able; "key" (relative path of the source, unique), "class_id", "class_name"; for CutMix also
            "other_key", "other_class_id", "other_class_name", "rectangle" [x0, y0, x1, y1] (pixels, half-open) and
            "setting".

    Raises:
        ValueError: an image of another type or shape, an array of a type that is not stored, captions without states.
    """

    arrays: Mapping[str, Stored]
    captions: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        image = self.arrays.get("image")
        if image is None:  # a part of a record, as one pass of `prepare encode` makes it
            known = True
        elif isinstance(image, np.ndarray):
            known = image.dtype in (np.uint8, np.float16) and image.ndim == 3 + (image.dtype == np.float16)
        else:
            known = isinstance(image, Compressed)
        if not known:
            given = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(
                f"a stored image is [3, H, W] uint8 or [2, C, H, W] float16 (mean, std), or compressed; got {given}"
            )
        texts = self.layout.texts
        for encoder, captions in texts.items():
            if len(captions) != len(self.captions):
                raise ValueError(f"{len(self.captions)} captions but states of {len(captions)} ({encoder})")
            formats = [self._tokens(column.name).values for column in captions]
            if len({(values.dtype, values.shape[1]) for values in formats}) > 1:
                raise ValueError("the captions of a record need states of one width and one format")

    @property
    def layout(self) -> Layout:
        """Names, kinds of storage and axes of the arrays."""
        return layout_of(tuple((name, *_kind(name, array)) for name, array in self.arrays.items()))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array; of a compressed picture, once it is decoded."""
        return _parts(self.arrays[name])[0]

    @property
    def image(self) -> np.ndarray:
        """[3, H, W] uint8 pixels, or [2, C, H, W] float16 posterior mean and standard deviation."""
        image = self.arrays["image"]
        if isinstance(image, Compressed):
            return image.decode()
        assert isinstance(image, np.ndarray)
        return image

    @property
    def texts(self) -> dict[str, tuple[States, ...]]:
        """For every text encoder, what it gave for the captions, in their order."""
        layout = self.layout
        pooled = {encoder: [self.arrays[column.name] for column in row] for encoder, row in layout.pooled.items()}
        return {
            encoder: tuple(
                States(self._tokens(column.name), vector)  # type: ignore[arg-type]  # pooled vectors are plain arrays
                for column, vector in zip(captions, pooled.get(encoder, [None] * len(captions)), strict=True)
            )
            for encoder, captions in layout.texts.items()
        }

    def _tokens(self, name: str) -> Tokens:
        array = self.arrays[name]
        if isinstance(array, np.ndarray):
            return Tokens(array)
        assert isinstance(array, Tokens)
        return array

    def to_bytes(self) -> bytes:
        """The record as it is stored; :meth:`from_bytes` is its inverse."""
        layout = self.layout
        offset = HEADER.size + len(layout.block) + layout.numbers.size
        pieces: list[bytes | memoryview] = []  # views: the bytes are copied once, into the record
        numbers: list[int] = []
        for array in self.arrays.values():
            shape, parts = _parts(array)
            numbers += (offset, *shape)
            pieces += parts
            size = sum(memoryview(part).nbytes for part in parts)
            offset += size
            if isinstance(array, Compressed):
                numbers.append(size)
        content = {"captions": list(self.captions), "metadata": self.metadata}
        details = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        header = HEADER.pack(MAGIC, VERSION, len(layout.block), offset, len(details))
        return b"".join([header, layout.block, layout.numbers.pack(*numbers), *pieces, details])

    @staticmethod
    def from_bytes(buffer: bytes | memoryview) -> Record:
        """Everything of a record, copied out of the buffer.

        Raises:
            ValueError: for bytes that are no record, of another version, or cut short.
        """
        view = RecordView(buffer)
        return Record({name: _copied(view.stored(name)) for name in view.layout.columns}, *view.details())


def _kind(name: str, array: Stored) -> tuple[str, int]:
    """Kind of storage and number of axes."""
    if isinstance(array, Compressed):
        return array.codec, len(array.shape)
    if isinstance(array, Tokens):
        return (QUANTISED if array.scales is not None else "float16"), 2
    if array.dtype.name not in PLAIN or array.size == 0:
        raise ValueError(f"array {name} is {array.shape} {array.dtype}; a record holds {', '.join(PLAIN)}, not empty")
    return array.dtype.name, array.ndim


def _parts(array: Stored) -> tuple[tuple[int, ...], list[bytes | memoryview]]:
    """Shape and bytes of an array."""
    if isinstance(array, Compressed):
        return array.shape, [array.content]
    if isinstance(array, Tokens):
        arrays = [array.values] if array.scales is None else [array.values, array.scales]
        return array.values.shape, [np.ascontiguousarray(part).data for part in arrays]
    return array.shape, [np.ascontiguousarray(array).data]


def _copied(array: Stored) -> Stored:
    if isinstance(array, Compressed):
        return Compressed(array.codec, bytes(array.content), array.shape)
    if isinstance(array, Tokens):
        return Tokens(array.values.copy(), None if array.scales is None else array.scales.copy())
    return array.copy()
