"""Existing captions from a file into those of the image sets; memory does not grow with their length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from t2ikit.prepare.captions.caption_file import (
    CAPTIONS,
    CaptionColumn,
    Captioned,
    caption_file,
    column_names,
    images_done,
    write_captions,
)
from t2ikit.prepare.captions.table import CaptionTable, hashes_of
from t2ikit.prepare.images import image_sets, metadata_of

_SHOWN = 3


def import_captions(
    root: Path, targets: Sequence[str], file: Path, names: Sequence[str], add: bool, overwrite: bool, every: bool
) -> list[str]:
    """Gives the image sets ``targets`` the captions of a file; other arguments: as in ``prepare_captions``.

    Args:
        every: all targets need captions, also those of which the file has no key.

    Returns:
        The sets that have them now.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: which line is wrong, which key is unknown, which image has none.
    """
    with CaptionTable(file, root / CAPTIONS) as table:
        labels = column_names(names, "own", table.columns)
        hashes = {name: hashes_of(_keys(root, name)) for name in targets}
        _refuse_unknown(root, table, hashes)
        described = [name for name in targets if every or table.knows(hashes[name]).any()]
        columns = {}
        for name in described:  # all sets are checked before the first one is written
            _refuse_missing(root, name, table)
            digests = _digests(_rows(root, name, table), table.columns)
            columns[name] = tuple(
                CaptionColumn(column, "file", digest, str(file)) for column, digest in zip(labels, digests, strict=True)
            )
        for name in described:
            if not images_done(root, name, columns[name], add, overwrite):
                write_captions(root, name, columns[name], _rows(root, name, table), add)
    for name in image_sets(root):
        if not caption_file(root, name).is_file():
            print(f"{name}: no captions yet")
    return described


def _keys(root: Path, name: str) -> Iterator[str]:
    return (str(metadata["key"]) for metadata in metadata_of(root, name))


def _rows(root: Path, name: str, table: CaptionTable) -> Iterator[Captioned]:
    for metadata in metadata_of(root, name):
        captions = table.get(metadata["key"])
        assert captions is not None, metadata["key"]
        yield metadata, captions


def _digests(rows: Iterator[Captioned], columns: int) -> list[str]:
    """SHA-256 of the captions of each column."""
    digests = [hashlib.sha256() for _ in range(columns)]
    for _, captions in rows:
        for digest, caption in zip(digests, captions, strict=True):
            digest.update(caption.encode() + b"\n")
    return [digest.hexdigest() for digest in digests]


def _refuse_unknown(root: Path, table: CaptionTable, hashes: dict[str, np.ndarray]) -> None:
    unknown = table.unknown(np.concatenate(list(hashes.values())))
    if len(unknown):
        line, key = table.at(int(unknown[0]))
        example = next(_keys(root, next(iter(hashes))))
        raise ValueError(
            f"{len(unknown)} keys of {table.path} are no image of {', '.join(hashes)}, the first on {table.word} "
            f"{line}: {key} (a key is a path relative to the --source of `prepare images`, such as {example})"
        )


def _refuse_missing(root: Path, name: str, table: CaptionTable) -> None:
    missing = (key for key in _keys(root, name) if table.get(key) is None)
    first = list(islice(missing, _SHOWN))
    if first:
        count = len(first) + sum(1 for _ in missing)
        more = ", ..." if count > _SHOWN else ""
        raise ValueError(
            f"{count} images of {name} have no caption in {table.path}, which must have one of every image of a set: "
            f"{', '.join(first)}{more}"
        )
