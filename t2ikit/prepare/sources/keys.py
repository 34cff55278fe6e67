"""The names of a million photos in two arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np


class Keys(Sequence[str]):
    """Many short strings, about 8 bytes each beside their own characters.

    A list of strings takes some 60 bytes more a string, and every loader process copies it page by page, since counting
    references writes to it; arrays stay shared.

    Args:
        text: [M] uint8, all strings one behind the other, encoded as file names are (UTF-8 where they are text).
        starts: [N + 1] int64, where each begins; the last one is M.
        order: [K] int64, which of the N strings this sequence holds, in this order; default: all.
    """

    def __init__(self, text: np.ndarray, starts: np.ndarray, order: np.ndarray | None = None) -> None:
        self.text = text
        self.starts = starts
        self.order = order

    def take(self, order: np.ndarray) -> Keys:
        """The same strings in another order, or some of them; the text is shared."""
        return Keys(self.text, self.starts, order if self.order is None else self.order[order])

    def position(self, index: int) -> int:
        """Which of the N packed strings ``self[index]`` is."""
        if self.order is None:
            return range(len(self))[index]
        return int(self.order[index])

    def encoded(self, index: int) -> bytes:
        """One string as bytes."""
        position = self.position(index)
        return self.text[self.starts[position] : self.starts[position + 1]].tobytes()

    def repeated(self) -> tuple[int, int] | None:
        """The indices of two equal strings, if there are any."""
        hashes = np.fromiter((hash(self.encoded(index)) for index in range(len(self))), np.int64, len(self))
        order = np.argsort(hashes, kind="stable")
        for place in np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]):
            first, second = int(order[place]), int(order[place + 1])
            if self.encoded(first) == self.encoded(second):
                return first, second
        return None

    def __len__(self) -> int:
        return len(self.starts) - 1 if self.order is None else len(self.order)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Keys: ...
    def __getitem__(self, index: int | slice) -> str | Keys:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return os.fsdecode(self.encoded(index))

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, (Keys, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]
