"""The captions of an image set by number: only where each line begins is kept in memory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from t2ikit.files import check_text, parse_json


def read_row(line: str | bytes, path: Path, line_number: int) -> tuple[str, tuple[str, ...]]:
    """Key and captions of a line of a file of captions.

    Raises:
        ValueError: the line is damaged; names file and line.
    """
    try:
        row = parse_json(line)
        key, captions = row["key"], tuple(row["captions"])
        for text in (key, *captions):
            check_text(text, "it")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"line {line_number} of {path} is damaged ({error}): make the file again with t2ikit prepare captions "
            "--overwrite"
        ) from error
    return key, captions


class CaptionLines:
    """Rows of a file of captions (``caption_file.py``) by the number of the image; goes to loader processes.

    Args:
        path: the file: a header, then a line of JSON an image.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as stream:
            lengths = np.fromiter((len(line) for line in stream), np.int64)
        self._starts = np.cumsum(lengths)  # the first line is the header: line k + 1 begins where line k ends
        self._descriptor: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def __len__(self) -> int:
        return max(len(self._starts) - 1, 0)

    def __getitem__(self, index: int) -> tuple[str, tuple[str, ...]]:
        """Key and captions of an image.

        Raises:
            ValueError: the line is damaged.
        """
        return read_row(self._bytes(index, index + 1), self.path, index + 2)

    def sha256(self, rows: range) -> str:
        """Hash of some consecutive rows."""
        digest = hashlib.sha256()
        for start in range(rows.start, rows.stop, 1024):
            digest.update(self._bytes(start, min(start + 1024, rows.stop)))
        return digest.hexdigest()

    def _bytes(self, first: int, stop: int) -> bytes:
        start, end = int(self._starts[first]), int(self._starts[stop])
        if self._descriptor is None or self._descriptor[0] != os.getpid():
            self._descriptor = os.getpid(), os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._descriptor[1], end - start, start)
