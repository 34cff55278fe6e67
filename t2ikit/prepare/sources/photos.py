"""What a source gives: its photos in the order in which it holds them, and a way to read each."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from array import array
from dataclasses import dataclass, field

import numpy as np

from t2ikit.prepare.sources.files import Files, SourceLost, require_photo_size
from t2ikit.prepare.sources.keys import Keys
from t2ikit.prepare.sources.left_out import LeftOut

NO_CLASS_ID = -1
"""Class of the photos of a source that has none."""

NO_TARGET = "a link to a file that is not in the tar"
"""Why a photo of a tar cannot be read that is such a link."""


class Reader(ABC):
    """Reads a photo by its position in the source; goes to loader processes."""

    @abstractmethod
    def read(self, position: int) -> bytes:
        """The bytes of one photo.

        Raises:
            OSError: this photo cannot be read.
            SourceLost: no photo can be read.
        """

    @abstractmethod
    def where(self, position: int) -> str:
        """Where a photo lies, for messages."""


@dataclass(frozen=True, eq=False)
class Photos:
    """The photos of one split, in the order of the source.

    Attributes:
        keys: [N] their paths, as in a folder of class folders where the source allows it.
        sizes: [N] int64 bytes, -1 where the source does not tell.
        labels: [N] int64, the class as the source numbers it, or an index into ``texts``.
        reader: by position in ``keys``.
        texts: the labels of a source that names its classes (a folder, a wnid).
        names: the names that a source gives to its numbers, if it does.
        runs: [R] int64 positions where a run begins that is read at once: its photos stay together in every order.
            Without it, each is read by itself.
        stamp: changes with the content where ``keys`` and ``sizes`` do not.
        left_out: what lies in the source and is none of its photos.
        captions: [N] of the photos, if the source holds them; empty where one has none.
        classless: the source has no classes; ``labels`` are ``NO_CLASS_ID``.
    """

    keys: Keys
    sizes: np.ndarray
    labels: np.ndarray
    reader: Reader
    texts: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    runs: np.ndarray | None = None
    stamp: str = ""
    left_out: LeftOut = field(default_factory=LeftOut)
    captions: Keys | None = None
    classless: bool = False

    def __len__(self) -> int:
        return len(self.keys)


class Listing:
    """Collects photos one by one, in little memory."""

    def __init__(self) -> None:
        self._text, self._starts = bytearray(), array("q", [0])
        self._sizes, self._labels = array("q"), array("q")
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, key: str, size: int, label: str | int) -> None:
        """One more.

        Raises:
            ValueError: the labels of a source must be all words or all numbers.
        """
        if len(self) and isinstance(label, str) != bool(self._numbers):
            raise ValueError(
                f"{key} has the label {label!r}: --source must call its classes all by words or by numbers"
            )
        self._text += os.fsencode(key)
        self._starts.append(len(self._text))
        self._sizes.append(size)
        self._labels.append(self._numbers.setdefault(label, len(self._numbers)) if isinstance(label, str) else label)

    @property
    def keys(self) -> Keys:
        return Keys(np.frombuffer(bytes(self._text), np.uint8), np.array(self._starts, np.int64))

    @property
    def sizes(self) -> np.ndarray:
        return np.array(self._sizes, np.int64)

    @property
    def labels(self) -> np.ndarray:
        return np.array(self._labels, np.int64)

    @property
    def texts(self) -> tuple[str, ...] | None:
        return tuple(self._numbers) or None


class FileReader(Reader):
    """Photos that are a file each.

    Args:
        files: how they are read.
        root: the folder, or its URL.
        keys: paths below it.
        sizes: [N] bytes.
    """

    def __init__(self, files: Files, root: str, keys: Keys, sizes: np.ndarray) -> None:
        self.files, self.root, self.keys, self.sizes = files, root, keys, sizes

    def read(self, position: int) -> bytes:
        path = self.where(position)
        require_photo_size(int(self.sizes[position]), path)
        try:
            return self.files.read(path)
        except FileNotFoundError as error:
            if not self.files.is_folder(self.root):
                raise SourceLost(f"there is no folder {self.root} any more") from error
            raise

    def where(self, position: int) -> str:
        return f"{self.root}/{self.keys[position]}"


class PartReader(Reader):
    """Photos that lie one behind the other in a few large files.

    Args:
        files: how they are read.
        paths: the large files.
        file_of: [N] int32, in which file each photo lies.
        offsets: [N] int64, at which byte; negative for a link that leads to no file (see ``Member``).
        sizes: [N] int64 bytes.
    """

    def __init__(
        self, files: Files, paths: tuple[str, ...], file_of: np.ndarray, offsets: np.ndarray, sizes: np.ndarray
    ) -> None:
        self.files, self.paths, self.file_of, self.offsets, self.sizes = files, paths, file_of, offsets, sizes

    def read(self, position: int) -> bytes:
        path = self.paths[self.file_of[position]]
        if self.offsets[position] < 0:
            raise OSError(errno.ENOENT, NO_TARGET, path)
        return self.files.read_part(path, int(self.offsets[position]), int(self.sizes[position]))

    def where(self, position: int) -> str:
        offset = int(self.offsets[position])
        return f"{self.paths[self.file_of[position]]} from byte {offset if offset >= 0 else ~offset:,}"
