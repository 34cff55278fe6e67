"""Stored sets: records in LitData chunks, a manifest with their hashes, the states of the empty prompt.

A set is a folder: ``chunk-0-*.bin`` and ``index.json`` (LitData's format, one bytes leaf a sample, so that its own
``StreamingDataset`` opens it too), ``empty_prompt.npz`` and ``manifest.json``. It appears whole or not at all.

Reading maps the chunks and slices them: LitData's reader decodes windows of items and keeps an order of its own, while
here the order is a pure function of the run (``streams.py``) and a record is read only when it is used.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import shutil
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t2ikit.data.layout import Record, RecordView, Tokens, quantise_tokens
from t2ikit.data.manifest import MANIFEST_NAME, PREPARE_COMMANDS, Manifest
from t2ikit.files import sync

if TYPE_CHECKING:
    from t2ikit.data.verified import SetFiles

__all__ = [
    "MANIFEST_NAME",
    "PREPARE_COMMANDS",
    "Manifest",
    "Record",
    "RecordSet",
    "RecordView",
    "Tokens",
    "damaged_files",
    "quantise_tokens",
    "write_set",
]

CHUNK_BYTES = 64 * 2**20
_INDEX_NAME = "index.json"
_EMPTY_PROMPT_NAME = "empty_prompt.npz"
_OPEN_CHUNKS = 256  # mapped files a process keeps, for each set


def write_set(
    folder: str | os.PathLike[str],
    records: Iterable[Record],
    manifest: Manifest,
    empty_prompt: Tokens | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    overwrite: bool = False,
) -> Manifest:
    """Writes a set, in the order of ``records``, in memory that does not grow with their number.

    Everything is written to a folder beside the target that is renamed at the end: an interrupted call leaves the
    target as it was.

    Args:
        folder: the target; must be missing or empty.
        records: the samples; may be a generator.
        manifest: description; ``count``, ``max_tokens`` and ``chunk_sha256`` are filled in here.
        empty_prompt: states of the empty prompt, needed by a set that is trained on.
        chunk_bytes: size of a chunk.
        overwrite: replace a target that is not empty.

    Returns:
        The manifest as written.

    Raises:
        FileExistsError: if the target is not empty and ``overwrite`` is False.
        ValueError: if there is no record, or one does not fit the manifest.
    """
    # Imported here: LitData takes seconds to import and reading does not need it.
    from litdata.streaming.writer import BinaryWriter

    target = Path(folder)
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise FileExistsError(f"{target} is not empty: choose another folder, or allow it to be replaced (overwrite)")
    target.parent.mkdir(parents=True, exist_ok=True)
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    partial = target.with_name(f".{target.name}.{token}.partial")
    partial.mkdir()
    try:
        writer = BinaryWriter(str(partial), chunk_bytes=chunk_bytes)
        writer._rank = 0  # one writer a set; LitData would put the rank of a distributed launch into the file names
        count, longest, hashes = 0, 0, {}
        for record in records:
            _check_fits(record, manifest, count)
            longest = max([longest, *(len(tokens) for tokens in record.tokens)])
            chunk = writer.add_item(count, record.to_bytes())
            count += 1
            if chunk is not None:
                hashes[Path(chunk).name] = _settle(Path(chunk))
        if count == 0:
            raise ValueError(f"there is no record to write to {target}: the source is empty")
        for chunk in writer.done():
            hashes[Path(chunk).name] = _settle(Path(chunk))
        writer._merge_no_wait()
        if empty_prompt is not None:
            if empty_prompt.scales is None:
                np.savez(partial / _EMPTY_PROMPT_NAME, values=empty_prompt.values)
            else:
                np.savez(partial / _EMPTY_PROMPT_NAME, values=empty_prompt.values, scales=empty_prompt.scales)
            hashes[_EMPTY_PROMPT_NAME] = _settle(partial / _EMPTY_PROMPT_NAME)
        hashes[_INDEX_NAME] = _settle(partial / _INDEX_NAME)
        whole = replace(manifest, count=count, max_tokens=longest, chunk_sha256=hashes)
        (partial / MANIFEST_NAME).write_text(whole.to_json(), encoding="utf-8")
        _settle(partial / MANIFEST_NAME)
        _move_in_place(partial, target, token)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return whole


def _check_fits(record: Record, manifest: Manifest, index: int) -> None:
    kind = "pixels" if record.image.dtype == np.uint8 else "latents"
    found: dict[str, Any] = {"kind": kind, "image_shape": record.image.shape}
    if manifest.text_dim:
        found["text_dim"] = record.tokens[0].values.shape[1] if record.tokens else 0
        found["token_format"] = record.tokens[0].values.dtype.name if record.tokens else "missing"
    for name, value in found.items():
        if value != getattr(manifest, name):
            key = record.metadata.get("key")
            raise ValueError(
                f"record {index} ({key}) has {name} {value}, but its manifest says {getattr(manifest, name)}"
            )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settle(path: Path) -> str:
    """Flushes a file to the disk; its SHA-256."""
    sync(path)
    return _sha256(path)


def _move_in_place(partial: Path, target: Path, token: str) -> None:
    if not target.exists():
        os.rename(partial, target)
        return
    old = target.with_name(f".{target.name}.{token}.old")
    os.rename(target, old)
    os.rename(partial, target)
    shutil.rmtree(old)


def damaged_files(folder: str | os.PathLike[str]) -> list[str]:
    """What differs from the manifest: one line for every file that is missing or whose SHA-256 is another.

    Reads the whole set; LitData itself returns a flipped byte without a word.
    """
    damaged = []
    for name, digest in Manifest.read(folder).chunk_sha256.items():
        path = Path(folder) / name
        if not path.is_file():
            damaged.append(f"{path} is missing")
        elif _sha256(path) != digest:
            damaged.append(f"{path} differs from its manifest (SHA-256)")
    return damaged


class RecordSet:
    """Random access to a stored set. Cheap to pickle; chunks are mapped on first use in each process.

    Attributes:
        folder: where the set is.
        files: brings and checks a chunk before it is mapped; None takes it as it lies in ``folder``.
        manifest: what it holds.
        chunk_sizes: number of records of every chunk, in order.

    Raises:
        FileNotFoundError: if the folder holds no set; names ``--data.root`` and the prepare commands.
        ValueError: if the manifest or the index cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.files: SetFiles | None = None
        self.manifest = Manifest.read(folder)
        try:
            index = json.loads((self.folder / _INDEX_NAME).read_text(encoding="utf-8"))
            names = [str(chunk["filename"]) for chunk in index["chunks"]]
            sizes = [int(chunk["chunk_size"]) for chunk in index["chunks"]]
            layout = (index["config"]["data_format"], index["config"]["compression"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(self._damage(self.folder / _INDEX_NAME, f"cannot be read ({error})")) from error
        if layout != (["bytes"], None) or sum(sizes) != self.manifest.count:
            raise ValueError(self._damage(self.folder / _INDEX_NAME, f"does not fit {MANIFEST_NAME}"))
        self.chunk_sizes = tuple(sizes)
        self._names = names
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
        place = index - (self._ends[chunk] - self.chunk_sizes[chunk])
        # LitData precedes an item with the sizes of its leaves: one leaf, four bytes.
        return buffer[offsets[place] + 4 : offsets[place + 1]]

    def view(self, index: int) -> RecordView:
        """The record at ``index`` in place; see :meth:`raw`."""
        try:
            return RecordView(self.raw(index))
        except ValueError as error:
            raise ValueError(f"record {index} of {self.folder}: {error}\n{self.repair()}") from error

    @property
    def chunk_names(self) -> tuple[str, ...]:
        """File names of the chunks, in order."""
        return tuple(self._names)

    @property
    def empty_prompt(self) -> Tokens:
        """The states of the empty prompt, which replace a dropped caption.

        Raises:
            ValueError: if the set was written without them.
        """
        path = self.folder / _EMPTY_PROMPT_NAME
        if not path.is_file():
            raise ValueError(f"{self.folder} has no text states: run t2ikit prepare encode --out {self.folder.parent}")
        with np.load(path, allow_pickle=False) as arrays:
            return Tokens(arrays["values"], arrays.get("scales"))

    def _map(self, chunk: int) -> tuple[memoryview, list[int]]:
        path = self.folder / self._names[chunk]
        if self.files is not None:
            self.files.ready(path.name)
        size = self.chunk_sizes[chunk]
        if not path.is_file():
            raise FileNotFoundError(self._damage(path, "is missing"))
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < 4 * (size + 2):
                raise ValueError(self._damage(path, "is cut short"))
            buffer = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        # LitData's chunk: number of items, their offsets and the end, the items.
        header = np.frombuffer(buffer, np.uint32, size + 2)
        if header[0] != size or header[-1] != len(buffer):
            raise ValueError(self._damage(path, f"has {len(buffer)} bytes where its header says {header[-1]}"))
        opened = (buffer, header[1:].tolist())
        self._open[chunk] = opened
        if len(self._open) > (_OPEN_CHUNKS if self.files is None else self.files.most_open):
            self._open.popitem(last=False)  # unmapped when the last view of it is gone
        return opened

    def _damage(self, path: Path, what: str) -> str:
        return f"{path} {what}.\n{self.repair()}"

    def repair(self) -> str:
        """How to see what is damaged, and how to write the set again; the end of a message."""
        root, step = self.folder.parent, "encode"
        if root.name == "images":  # an image set, not yet encoded: photos, or the CutMix images of a setting
            _, _, setting = self.folder.name.partition("_")
            root, step = root.parent, f"cutmix --setting {setting}" if setting else "images --source IMAGE_FOLDER"
        return (
            f"See what is damaged with: t2ikit prepare check {self.folder}\n"
            f"Then remove {self.folder} and write it again: t2ikit prepare {step} --out {root}"
        )
