"""Text states of many prompts on the disk: those of 100,000 captions of 80 tokens and width 2,048 are 65 GB.

Shapes: L text tokens, D width of the states, P of the pooled vector; a text is one row, [1, L, D] without padding.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch

from t2ikit.batch import Text

IN_MEMORY = 2048
"""So many different prompts are kept in memory; the states of more are kept in a file of the folder for such files
(``TMPDIR``), which is gone with the process."""


class StoredTexts(Sequence[Text]):
    """Texts of one row each, written once and read one by one."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the sequence)
        self._places = array("q")  # first byte, L, D, P of every text
        self._end = 0

    def append(self, text: Text) -> None:
        """Adds a text of one row: embeddings [1, L, D] float32, pooled [1, P] float32 or None."""
        parts = [text.embeddings] if text.pooled is None else [text.embeddings, text.pooled]
        content = b"".join(part.to(torch.float32).contiguous().numpy().tobytes() for part in parts)
        width = 0 if text.pooled is None else text.pooled.shape[-1]
        self._places.extend((self._end, *text.embeddings.shape[1:], width))
        self._file.seek(self._end)
        self._file.write(content)
        self._end += len(content)

    def __len__(self) -> int:
        return len(self._places) // 4

    @overload
    def __getitem__(self, index: int) -> Text: ...

    @overload
    def __getitem__(self, index: slice) -> list[Text]: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        first, length, width, pooled = self._places[4 * row : 4 * row + 4]
        self._file.seek(first)
        content = self._file.read(4 * (length * width + pooled))
        values = torch.from_numpy(np.frombuffer(bytearray(content), np.float32))
        embeddings = values[: length * width].view(1, length, width)
        mask = torch.ones(1, length, dtype=torch.bool)
        return Text(embeddings, mask, values[length * width :].view(1, pooled) if pooled else None)


class Chosen(Sequence[Any]):
    """Entries of another sequence in an order of their own; an entry may be chosen several times.

    Args:
        entries: the sequence.
        order: an index into it for each entry of this one.
    """

    def __init__(self, entries: Sequence[Any], order: Sequence[int]) -> None:
        self._entries = entries
        self._order = array("q", order)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Any]:
        return (self._entries[index] for index in self._order)

    def __getitem__(self, index: Any) -> Any:
        chosen = self._order[index]
        return [self._entries[entry] for entry in chosen] if isinstance(index, slice) else self._entries[chosen]


class Zipped(Sequence[tuple[Any, ...]]):
    """Entry i is the tuple of the entries i of several sequences of one length."""

    def __init__(self, columns: Sequence[Sequence[Any]]) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, index: Any) -> Any:
        rows = [column[index] for column in self._columns]
        return list(zip(*rows, strict=True)) if isinstance(index, slice) else tuple(rows)
