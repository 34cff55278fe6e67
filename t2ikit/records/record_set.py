"""Stored sets: records in LitData chunks, a manifest with their hashes, the states of the empty prompt.

A set is a folder: ``chunk-0-*.bin`` and ``index.json`` (LitData's format, one bytes leaf a sample, so that its own
``StreamingDataset`` opens it too), ``empty_prompt.npz`` and ``manifest.json``. It appears whole or not at all.

Reading maps the chunks and slices them: LitData's reader decodes windows of items and keeps an order of its own, while
here the order is a pure function of the run (``data/streams.py``) and a record is read only when it is used.
"""

from __future__ import annotations

import os
import resource
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from t2ikit.pretrained import sha256_of
from t2ikit.records.chunks import INDEX_NAME, open_chunk, read_index
from t2ikit.records.manifest import MANIFEST_NAME, Manifest, root_and_name
from t2ikit.records.record import Record
from t2ikit.records.states import States, Tokens
from t2ikit.records.view import RecordView
from t2ikit.records.writing import EMPTY_PROMPT_NAME

_MOST_OPEN = 256
"""Chunks that a process keeps mapped, for each set."""

_readers: WeakSet[RecordSet] = WeakSet()  # of this process, with mapped chunks


def damaged_files(folder: Path, digests: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Reads whole files and names each one that is missing or damaged: LitData itself does not notice a flipped byte.

    Args:
        folder: of the set.
        digests: name and SHA-256 of the files, such as ``manifest.chunk_sha256.items()``.

    Yields:
        A line for every file that is missing or has another SHA-256.
    """
    for name, digest in digests:
        path = folder / name
        if not path.is_file():
            yield f"{path} is missing"
        elif sha256_of(path) != digest:
            yield f"{path} differs from its manifest (SHA-256)"


def _most_open(sets: int) -> int:
    """Chunks that each of ``sets`` may keep mapped: all together half of the files that this process may open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN if limit == resource.RLIM_INFINITY else max(1, min(_MOST_OPEN, limit // (2 * sets)))


class SetFiles(ABC):
    """Fetches and checks the chunks of a set, one by one."""

    @abstractmethod
    def ready(self, name: str, wait: bool = True) -> bool:
        """Makes sure that a chunk is in the folder of the set, whole and as its manifest says.

        Args:
            name: of the file.
            wait: for a process that is busy with the same chunk; otherwise leave it to that one.

        Returns:
            False where it was left to another process.

        Raises:
            FileNotFoundError, ValueError: the chunk is missing or damaged; names it and the repair.
        """


class RecordSet:
    """Random access to a stored set. Cheap to pickle; chunks are mapped on first use in each process.

    Attributes:
        folder: where the set is.
        address: where it is downloaded from; empty for a set that is kept in ``folder``.
        files: fetches and checks a chunk before it is mapped; None takes it unchecked from ``folder``.
        manifest: what it holds.
        chunk_sizes: number of records of every chunk, in order.

    Raises:
        FileNotFoundError: if the folder holds no set; names ``--data.root`` and the prepare commands.
        ValueError: if the manifest or the index cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.address = ""
        self.files: SetFiles | None = None
        self.manifest = Manifest.read(folder)
        try:
            chunks = read_index(self.folder)
        except ValueError as error:
            raise ValueError(self._damage(self.folder / INDEX_NAME, str(error))) from error
        sizes = [chunk.count for chunk in chunks]
        if sum(sizes) != self.manifest.count:
            raise ValueError(self._damage(self.folder / INDEX_NAME, f"does not fit {MANIFEST_NAME}"))
        self.chunk_sizes = tuple(sizes)
        self._names = [chunk.name for chunk in chunks]
        self._ends = list(accumulate(sizes))
        self._open: OrderedDict[int, tuple[memoryview, list[int]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __len__(self) -> int:
        return self.manifest.count

    def __iter__(self) -> Iterator[Record]:
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: int) -> Record:
        """The record at ``index``, copied: it stays valid and may be written to."""
        return Record.from_bytes(self.raw(index))

    def raw(self, index: int) -> memoryview:
        """The bytes of a record, read-only and without a copy: a window of the mapped chunk.

        Raises:
            IndexError: outside the set.
            FileNotFoundError, ValueError: for a chunk that is missing or cut short; names it and the repair.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of a set of {len(self)}: {self.folder}")
        chunk = bisect_right(self._ends, index)
        opened = self._open.get(chunk)
        if opened is None:
            opened = self._map(chunk)
        buffer, offsets = opened
        row = index - (self._ends[chunk] - self.chunk_sizes[chunk])
        # LitData precedes an item with the sizes of its leaves: one leaf, four bytes.
        return buffer[offsets[row] + 4 : offsets[row + 1]]

    def view(self, index: int) -> RecordView:
        """The record at ``index`` in place; see :meth:`raw`."""
        buffer = self.raw(index)
        try:
            return RecordView(buffer)
        except ValueError as error:
            path = self.folder / self._names[bisect_right(self._ends, index)]
            raise ValueError(f"record {index} of the set, in {path}: {error}.\n{self.repair()}") from error

    @property
    def chunk_names(self) -> tuple[str, ...]:
        """File names of the chunks, in order."""
        return tuple(self._names)

    @property
    def empty_prompt(self) -> dict[str, States]:
        """For every text encoder, its states of the empty prompt, which replace a dropped caption.

        Raises:
            ValueError: if the set was written without them.
        """
        path = self.folder / EMPTY_PROMPT_NAME
        if not path.is_file():
            raise ValueError(
                f"{self.folder} has no text states: run t2ikit prepare encode --out {root_and_name(self.folder)[0]}"
            )
        with np.load(path, allow_pickle=False) as arrays:
            return {
                name: States(
                    Tokens(arrays[f"text.{name}.values"], arrays.get(f"text.{name}.scales")),
                    arrays.get(f"pooled.{name}"),
                )
                for name in self.manifest.texts
            }

    def _map(self, chunk: int) -> tuple[memoryview, list[int]]:
        path = self.folder / self._names[chunk]
        if self.files is not None:
            self.files.ready(path.name)
        try:
            opened = open_chunk(path, self.chunk_sizes[chunk])
        except FileNotFoundError as error:
            raise FileNotFoundError(self._damage(path, "is missing")) from error
        except ValueError as error:
            raise ValueError(self._damage(path, str(error))) from error
        self._open[chunk] = opened
        _readers.add(self)
        most = _most_open(len(_readers))
        for reader in list(_readers):
            reader._let_go(most)
        return opened

    def _let_go(self, most: int) -> None:
        """Unmaps chunks, when the last view of each is gone: but for ``most``, and those deleted from a cache, whose
        place on the disk is free only then."""
        while len(self._open) > most:
            self._open.popitem(last=False)
        if self.address:
            for chunk in [chunk for chunk in self._open if not (self.folder / self._names[chunk]).exists()]:
                del self._open[chunk]

    def _damage(self, path: Path, what: str) -> str:
        return f"{path} {what}.\n{self.repair()}"

    def repair(self) -> str:
        """How to see what is damaged, and how to write the set again; the end of a message."""
        if self.address:
            return (
                "See what is damaged where the set was made: t2ikit prepare check DIR\n"
                f"Then copy it to {self.address} again"
            )
        (root, name), step = root_and_name(self.folder), "encode"
        if root.name == "images":  # an image set, not yet encoded: photos, or the CutMix images of a setting
            _, _, setting = name.partition("_")
            root, step = root.parent, f"cutmix --setting {setting}" if setting else "images --source IMAGE_FOLDER"
        return (
            f"See what is damaged with: t2ikit prepare check {self.folder}\n"
            f"Then remove {self.folder} and write it again: t2ikit prepare {step} --out {root}"
        )
