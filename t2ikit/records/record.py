"""One sample as bytes: image, text states, captions and metadata behind an offset header.

Shapes::

    image   [3, H, W] uint8 pixels, or [2, C, H, W] float16 posterior mean and standard deviation
    L, D    tokens of one caption, width of the text states
    G       scales a token: one a group of 64 channels, ceil(D / 64)

Bytes of a record, little-endian::

    header | table: one (offset, L) a caption | image | values, scales of caption 0, 1, ... | JSON: captions, metadata

Training reads the header, the image and the states of one caption; the JSON is never parsed.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # imported where states are quantised: `t2ikit prepare --help` would take 1.5 s longer
    from torch import Tensor

GROUP = 64
"""Channels that share one scale."""

_MAGIC = b"T2IR"
_VERSION = 1
# magic, version, image code, token code, captions, captions with states, D, image shape (0 = no axis), JSON offset
# and length
_HEADER = struct.Struct("<4sHBBHHI4III")
_ROW = struct.Struct("<II")
_IMAGE_TYPES = (np.dtype(np.uint8), np.dtype(np.float16))
_TOKEN_TYPES = (np.dtype(np.int8), np.dtype(np.float16))
_SCALE = np.dtype(np.float16)
_DAMAGED = "the parts of this record do not fit its header: the set is damaged"


def groups(width: int) -> int:
    """Scales that one int8 token of ``width`` channels has."""
    return -(-width // GROUP)


@dataclass(frozen=True)
class Tokens:
    """States of one caption, as stored.

    Attributes:
        values: [L, D] int8, or float16.
        scales: [L, G] float16 for int8 values, None for float16 values.
    """

    values: np.ndarray
    scales: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype not in _TOKEN_TYPES:
            raise ValueError(f"token values are [L, D] int8 or float16; got {self.values.shape} {self.values.dtype}")
        if (self.scales is None) != (self.values.dtype == np.float16):
            raise ValueError("int8 token values need scales, float16 values have none")
        if self.scales is not None and self.scales.shape != (len(self.values), groups(self.values.shape[1])):
            raise ValueError(f"scales {self.scales.shape} do not fit values {self.values.shape}")

    def __len__(self) -> int:
        return len(self.values)

    def dequantise(self) -> np.ndarray:
        """The states, [L, D] float32."""
        states = self.values.astype(np.float32)
        if self.scales is None:
            return states
        return states * np.repeat(self.scales.astype(np.float32), GROUP, axis=1)[:, : states.shape[1]]


def quantise_tokens(states: np.ndarray | Tensor, token_format: str = "int8") -> Tokens:
    """Text states as they are stored.

    Measured on flan-T5-XL states: int8 with groups of 64 has a median relative error of 0.67 % a token (at most 1.9 %);
    one scale a token has 1.2 % (outlier channels), float16 has 0.02 % for twice the bytes.

    Args:
        states: [L, D] float.
        token_format: "int8" or "float16".

    Raises:
        ValueError: for states that are not finite, an empty text or an unknown format.
    """
    import torch

    return quantise_states([torch.as_tensor(states, dtype=torch.float32)], token_format)[0]


def quantise_states(texts: Sequence[Tensor], token_format: str = "int8") -> list[Tokens]:
    """The states of several texts as they are stored: computed at once, on their device.

    Args:
        texts: [L, D] float each.
        token_format: "int8" or "float16".

    Raises:
        ValueError: as :func:`quantise_tokens`.
    """
    import torch

    if token_format not in ("int8", "float16"):
        raise ValueError(f'token_format is "int8" or "float16", not "{token_format}"')
    for states in texts:
        if states.dim() != 2 or len(states) == 0:
            raise ValueError(f"text states are [L, D] with L >= 1; got {tuple(states.shape)}")
    if not texts:
        return []
    rows = torch.cat([states.detach() for states in texts]).float()
    finite = torch.isfinite(rows).all()
    scales = None
    if token_format == "float16":
        values = rows.clamp(-65504, 65504).half()
    else:
        width = rows.shape[1]
        padded = torch.nn.functional.pad(rows, (0, groups(width) * GROUP - width)).view(len(rows), -1, GROUP)
        scales = (padded.abs().amax(dim=2) / 127).half()
        # Divided by the rounded scale that will be read back, so that its rounding costs nothing.
        divisor = torch.where(scales > 0, scales, 1).float()[:, :, None]
        values = (padded / divisor).round().clamp(-127, 127).to(torch.int8).view(len(rows), -1)[:, :width].contiguous()
        scales = scales.cpu()
    values = values.cpu()
    if not finite:
        raise ValueError("text states hold values that are not finite: run the text encoder in float32 or bfloat16")
    lengths = [len(states) for states in texts]
    scales_of = [None] * len(texts) if scales is None else [rows.numpy() for rows in scales.split(lengths)]
    return [Tokens(rows.numpy(), scale) for rows, scale in zip(values.split(lengths), scales_of, strict=True)]


class RecordView:
    """A record read in place: header parsed at once, arrays as views of the buffer (copy before keeping them).

    Attributes:
        captions_count: captions of the record.
        states_count: captions whose states are stored: all of them, or none.
        image_shape, image_type: of the stored image.
        token_type, width: type and channels D of the stored states.
    """

    __slots__ = (
        "_buffer",
        "_details",
        "captions_count",
        "image_shape",
        "image_type",
        "states_count",
        "token_type",
        "width",
    )

    def __init__(self, buffer: bytes | memoryview) -> None:
        self._buffer = buffer
        if len(buffer) < _HEADER.size:
            raise ValueError(f"a record has at least {_HEADER.size} bytes, this one {len(buffer)}: it is damaged")
        magic, version, image, token, captions, states, width, a, b, c, d, start, size = _HEADER.unpack_from(buffer)
        if magic != _MAGIC:
            raise ValueError("this is no t2ikit record: the set is damaged or was written by another program")
        if version != _VERSION:
            raise ValueError(f"record version {version}, this t2ikit reads {_VERSION}: prepare the set again")
        if start + size != len(buffer):
            raise ValueError(f"a record of {start + size} bytes has only {len(buffer)}: the set is damaged")
        if image >= len(_IMAGE_TYPES) or token >= len(_TOKEN_TYPES) or start < _HEADER.size + _ROW.size * states:
            raise ValueError(_DAMAGED)
        self.captions_count = captions
        self.states_count = states
        self.image_type = _IMAGE_TYPES[image]
        self.token_type = _TOKEN_TYPES[token]
        self.width = width
        self.image_shape = tuple(size for size in (a, b, c, d) if size)
        self._details = (start, size)
        self._check_parts(start)

    def _check_parts(self, end: int) -> None:
        """Raises ValueError unless image and states follow each other without a gap, from the table to ``end``."""
        position = _HEADER.size + _ROW.size * self.states_count
        position += math.prod(self.image_shape) * self.image_type.itemsize
        token_bytes = self.width * self.token_type.itemsize
        if self.token_type == np.int8:
            token_bytes += groups(self.width) * _SCALE.itemsize
        for offset, length in _ROW.iter_unpack(
            self._buffer[_HEADER.size : _HEADER.size + _ROW.size * self.states_count]
        ):
            if offset != position or length == 0:
                raise ValueError(_DAMAGED)
            position += length * token_bytes
        if position != end or len(self.image_shape) != 3 + (self.image_type == np.float16):
            raise ValueError(_DAMAGED)

    def image(self) -> np.ndarray:
        """[3, H, W] uint8 or [2, C, H, W] float16, a view."""
        count, offset = math.prod(self.image_shape), _HEADER.size + _ROW.size * self.states_count
        return np.frombuffer(self._buffer, self.image_type, count, offset).reshape(self.image_shape)

    def length(self, caption: int) -> int:
        """Tokens L of a caption."""
        return self._row(caption)[1]

    def tokens(self, caption: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Values [L, D] and scales [L, G] (None for float16 values) of a caption, views."""
        offset, length = self._row(caption)
        values = np.frombuffer(self._buffer, self.token_type, length * self.width, offset).reshape(length, self.width)
        if self.token_type == np.float16:
            return values, None
        count = groups(self.width)
        scales = np.frombuffer(self._buffer, _SCALE, length * count, offset + values.nbytes)
        return values, scales.reshape(length, count)

    def details(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Captions and metadata; parses the JSON."""
        start, size = self._details
        content = json.loads(bytes(self._buffer[start : start + size]).decode())
        return tuple(content["captions"]), content["metadata"]

    def _row(self, caption: int) -> tuple[int, int]:
        if not 0 <= caption < self.states_count:
            raise IndexError(f"caption {caption} of a record that has states of {self.states_count}")
        offset, length = _ROW.unpack_from(self._buffer, _HEADER.size + _ROW.size * caption)
        return offset, length


@dataclass(frozen=True)
class Record:
    """One sample.

    Attributes:
        image: [3, H, W] uint8 pixels, or [2, C, H, W] float16 posterior mean and standard deviation.
        captions: one or several captions (none in a set that has not been captioned yet).
        tokens: the states of every caption, in order; empty in a set that has not been encoded yet.
        metadata: JSON-able; "key" (relative path of the source, unique), "class_id", "class_name"; for CutMix also
            "other_key", "other_class_id", "other_class_name", "rectangle" [x0, y0, x1, y1] (pixels, half-open) and
            "setting".
    """

    image: np.ndarray
    captions: tuple[str, ...] = ()
    tokens: tuple[Tokens, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.image.dtype not in _IMAGE_TYPES or self.image.ndim != 3 + (self.image.dtype == np.float16):
            raise ValueError(
                "a stored image is [3, H, W] uint8 or [2, C, H, W] float16 (mean, std); "
                f"got {self.image.shape} {self.image.dtype}"
            )
        if self.tokens and len(self.tokens) != len(self.captions):
            raise ValueError(f"{len(self.captions)} captions but states of {len(self.tokens)}")
        if len({(tokens.values.dtype, tokens.values.shape[1]) for tokens in self.tokens}) > 1:
            raise ValueError("the captions of a record need states of one width and one format")

    def to_bytes(self) -> bytes:
        """The record as it is stored; :meth:`from_bytes` is its inverse."""
        width = self.tokens[0].values.shape[1] if self.tokens else 0
        token_code = _TOKEN_TYPES.index(self.tokens[0].values.dtype) if self.tokens else 0
        pieces = [np.ascontiguousarray(self.image).data]  # views: the bytes are copied once, into the record
        offset = _HEADER.size + _ROW.size * len(self.tokens) + pieces[0].nbytes
        table = []
        for tokens in self.tokens:
            table.append(_ROW.pack(offset, len(tokens)))
            arrays = (tokens.values,) if tokens.scales is None else (tokens.values, tokens.scales)
            pieces += [np.ascontiguousarray(array).data for array in arrays]
            offset += sum(array.nbytes for array in arrays)
        content = {"captions": list(self.captions), "metadata": self.metadata}
        details = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        shape = (*self.image.shape, 0)[:4]
        image_code = _IMAGE_TYPES.index(self.image.dtype)
        counts = (len(self.captions), len(self.tokens), width)
        header = _HEADER.pack(_MAGIC, _VERSION, image_code, token_code, *counts, *shape, offset, len(details))
        return b"".join([header, *table, *pieces, details])

    @staticmethod
    def from_bytes(buffer: bytes | memoryview) -> Record:
        """Everything of a record, copied out of the buffer.

        Raises:
            ValueError: for bytes that are no record, of another version, or cut short.
        """
        view = RecordView(buffer)
        captions, metadata = view.details()
        tokens = []
        for caption in range(view.states_count):
            values, scales = view.tokens(caption)
            tokens.append(Tokens(values.copy(), None if scales is None else scales.copy()))
        return Record(view.image().copy(), captions, tuple(tokens), metadata)
