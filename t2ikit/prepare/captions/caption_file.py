"""A file of captions: a header that says how they were made, then one line of JSON per image, in their order::

    {"key": "train/n02012849/n02012849_0000.JPEG", "captions": ["An image of crane", "A grey crane stands in ..."]}

An image may have several captions, one in each *column*: caption i of every image was made in the same way. Streams
choose columns by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from t2ikit.files import parse_json
from t2ikit.launch import first_rank
from t2ikit.prepare.captions.captioner import Decoding
from t2ikit.prepare.captions.lines import read_row
from t2ikit.prepare.images import IMAGES
from t2ikit.prepare.steps import identity, known_parts, tracked, write_lines
from t2ikit.pretrained import EncoderReference
from t2ikit.records.manifest import Manifest

CAPTIONS = "captions"
"""Folder of the captions below the output folder."""

Row = tuple[str, tuple[str, ...]]
"""Key of an image and its captions."""

Captioned = tuple[dict[str, Any], tuple[str, ...]]
"""Metadata of an image and its captions."""

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class CaptionColumn:
    """How caption i of every image was made.

    Attributes:
        name: of the column, unique in the file; streams mix columns by it.
        kind: "aio", "source", "llava", "http" or "file".
        identity: hash of what decides the captions: weights, prompts and decoding, or the captions themselves.
        source: file, or address of the server.
        model: name of the captioner.
        captioner: its weights; None where they are not known.
        prompt, cutmix_prompt: its instructions for plain and for CutMix images.
        decoding: how its answers were decoded.
        empty: images for which it gave an empty answer, and which have a plain caption instead.
        versions: of the programs that made the captions.
    """

    name: str
    kind: str
    identity: str
    source: str = ""
    model: str = ""
    captioner: EncoderReference | None = None
    prompt: str = ""
    cutmix_prompt: str = ""
    decoding: Decoding | None = None
    empty: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CaptionColumn:
        """From ``asdict``."""
        reference = EncoderReference.from_dict(values["captioner"]) if values.get("captioner") else None
        decoding = Decoding(**values["decoding"]) if values.get("decoding") else None
        return cls(**{**values, "captioner": reference, "decoding": decoding})

    def made_as(self, other: CaptionColumn) -> bool:
        """Whether both hold the same captions under the same name."""
        return (self.name, self.kind, self.identity) == (other.name, other.kind, other.identity)


@dataclass(frozen=True)
class CaptionHeader:
    """First line of a file of captions.

    Attributes:
        columns: how the captions of an image were made, in their order.
        images: identity of the image set that they belong to.
        count: number of images.
    """

    columns: tuple[CaptionColumn, ...]
    images: str
    count: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def kind(self) -> str:
        """The names as one word, as the manifest of an encoded set holds them: "aio", "aio+long"."""
        return "+".join(self.kinds)

    def holds(self, columns: Sequence[CaptionColumn], alone: bool) -> bool:
        """Whether the file has these columns, made in the same way; ``alone``: these in this order and no other."""
        stored = {column.name: column for column in self.columns}
        same = all(column.name in stored and column.made_as(stored[column.name]) for column in columns)
        return same and (not alone or tuple(column.name for column in columns) == self.kinds)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CaptionHeader:
        """From ``asdict``."""
        columns = tuple(CaptionColumn.from_dict(column) for column in values["columns"])
        return cls(columns, values["images"], values["count"])


class CaptionSet:
    """The captions of one image set, read line by line.

    Raises:
        FileNotFoundError: there are none; says how to make them.
        ValueError: the file holds no captions, or was written by another version.
    """

    def __init__(self, out: Path, name: str) -> None:
        self.path = caption_file(out, name)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"the images of {name} have no captions: run t2ikit prepare captions --out {out} first (--kind llava "
                "for a captioner, --captions FILE for your own)"
            )
        with self.path.open(encoding="utf-8") as stream:
            try:
                self.header = CaptionHeader.from_dict(parse_json(stream.readline()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{self.path} has no header of captions, or that of another version ({error!r}): make it again "
                    f"with t2ikit prepare captions --out {out} --overwrite"
                ) from error

    def __iter__(self) -> Iterator[Row]:
        with self.path.open(encoding="utf-8") as stream:
            stream.readline()
            for line_number, line in enumerate(stream, 2):
                yield read_row(line, self.path, line_number)


def caption_file(root: Path, name: str) -> Path:
    """Where the captions of an image set are."""
    return root / CAPTIONS / f"{name}.jsonl"


def source_caption(metadata: dict[str, Any]) -> str:
    """The caption that the source holds beside a photo.

    Raises:
        ValueError: it holds none; says how to read it.
    """
    caption = metadata.get("caption")
    if not isinstance(caption, str):
        raise ValueError(
            f"the images were read without captions, such as {metadata['key']}: give t2ikit prepare images "
            "--caption-field NAME, the column or field of the source that holds them"
        )
    return caption


def aio_caption(metadata: dict[str, Any]) -> str:
    """ "An image of <class name>"; a CutMix image names both classes.

    Raises:
        ValueError: the image has no class.
    """
    if not metadata["class_name"]:
        raise ValueError(
            f"the images have no classes, such as {metadata['key']}: give t2ikit prepare captions --kind source for "
            "the captions of their source, --kind llava for a captioner, or --captions FILE for your own"
        )
    caption = f"An image of {metadata['class_name']}"
    return f"{caption} and {metadata['other_class_name']}" if "other_class_name" in metadata else caption


def images_done(root: Path, name: str, columns: Sequence[CaptionColumn], add: bool, overwrite: bool) -> int:
    """How many images of a set have these captions: all, none, or those before the appended images.

    Args:
        root: the folder of the data set.
        name: of the image set.
        columns: how the captions are to be made.
        add: they stand beside the stored ones.
        overwrite: they may replace stored ones.

    Raises:
        FileExistsError: the file holds other captions, which may not be replaced.
        ValueError: these cannot be added to the stored ones.
    """
    path, manifest = caption_file(root, name), Manifest.read(root / IMAGES / name)
    if not path.is_file():
        return 0
    try:
        header = CaptionSet(root, name).header
    except ValueError:
        if overwrite and not add:
            return 0
        raise
    known = known_parts(manifest, header.images)
    if not (known and header.holds(columns, alone=not add)):
        _check_replaceable(path, header, columns, known, len(manifest.parts), add, overwrite)
        return 0
    if known < len(manifest.parts):
        _check_extendable(path, header, columns)
    elif first_rank():
        print(f"{path}: up to date")
    return header.count


def _check_replaceable(
    path: Path,
    header: CaptionHeader,
    columns: Sequence[CaptionColumn],
    known: int,
    parts: int,
    add: bool,
    overwrite: bool,
) -> None:
    """Refuses columns that the options do not allow to be written; the file has ``known`` of the images' ``parts``."""
    if not add:
        if not overwrite:
            difference = "holds other captions" if known else "belongs to other images"
            raise FileExistsError(f"{path} {difference}: replace it with --overwrite, or keep both captions with --add")
        return
    if not known:
        raise ValueError(f"{path} belongs to other images: leave --add out, and replace it with --overwrite")
    taken = [column.name for column in columns if column.name in header.kinds]
    if taken and not overwrite:
        raise FileExistsError(
            f"{path} has captions called {taken[0]} that were made with other options: give these another --name, "
            "or replace those with --overwrite"
        )
    if known < parts:
        raise ValueError(
            f"{path} lacks the images that were appended: first run t2ikit prepare captions with the options that made "
            "its captions"
        )


def _check_extendable(path: Path, header: CaptionHeader, columns: Sequence[CaptionColumn]) -> None:
    """Refuses to extend a file to appended images where other columns need more than the class names."""
    names = {column.name for column in columns}
    others = [column.name for column in header.columns if column.name not in names and column.kind != "aio"]
    if others:
        raise ValueError(
            f"{path} lacks the images that were appended, and the captions {', '.join(others)} of those cannot be made "
            "in this call: replace all of it with --overwrite"
        )


def write_captions(
    root: Path, name: str, columns: Sequence[CaptionColumn], rows: Iterable[Captioned], add: bool, done: int = 0
) -> None:
    """Writes the captions of one image set, whole or not at all.

    Args:
        root: the folder of the data set.
        name: of the image set.
        columns: how the captions were made.
        rows: the metadata of every image and one caption per column, in the order of the images.
        add: keep the stored columns; one of the same name is replaced, others are put behind them.
        done: images that have these captions; ``rows`` begins behind them.
    """
    path = caption_file(root, name)
    manifest = Manifest.read(root / IMAGES / name)
    table = {column.name: column for column in columns}
    new: Iterable[Row] = ((metadata["key"], texts) for metadata, texts in rows)
    if path.is_file() and (add or done):
        old = CaptionSet(root, name)
        stored = {column.name: column for column in old.header.columns}
        if done:
            table = {key: replace(column, empty=column.empty + stored[key].empty) for key, column in table.items()}
            new = chain(old, _with_aio(list(stored), list(table), rows))
        else:
            new = _joined(old, list(table), new)
        table = stored | table
    header = CaptionHeader(tuple(table.values()), identity(manifest), manifest.count)
    tracked_rows = tracked(new, manifest.count, f"write captions of {name}")
    content = (json.dumps({"key": key, "captions": list(texts)}, ensure_ascii=False) for key, texts in tracked_rows)
    write_lines(path, chain([json.dumps(asdict(header), ensure_ascii=False)], content))
    added = f", {manifest.count - done:,} of them new" if done else ""
    print(f"{path}: captions of {manifest.count:,} images{added} ({header.kind})")


def _joined(old: CaptionSet, names: Sequence[str], rows: Iterable[Row]) -> Iterator[Row]:
    """The stored rows with the new columns ``names`` replaced or put behind."""
    for (key, stored), (new_key, texts) in zip(old, rows, strict=True):
        if key != new_key:
            raise ValueError(f"{old.path} has {key} where the images have {new_key}: replace it with --overwrite")
        captions = dict(zip(old.header.kinds, stored, strict=True)) | dict(zip(names, texts, strict=True))
        yield key, tuple(captions.values())


def _with_aio(stored: Sequence[str], names: Sequence[str], rows: Iterable[Captioned]) -> Iterator[Row]:
    """Rows of appended images: the columns ``names`` as given, the other stored ones as AIO captions."""
    for metadata, texts in rows:
        given = dict(zip(names, texts, strict=True))
        others = {name: aio_caption(metadata) for name in stored if name not in given}
        captions = dict.fromkeys(stored, "") | others | given
        yield metadata["key"], tuple(captions.values())


def column_names(names: Sequence[str], default: str, count: int) -> tuple[str, ...]:
    """The names of ``count`` columns: as given with ``--name``, or the default.

    Raises:
        ValueError: too few, too many, twice the same, or one that the manifest could not hold.
    """
    if not names:
        return (default,) if count == 1 else tuple(f"{default}{row}" for row in range(1, count + 1))
    if len(names) != count:
        raise ValueError(f"--name needs {count} name(s), one for each caption of an image; got {', '.join(names)}")
    if len(set(names)) != count or not all(_NAME.fullmatch(name) for name in names):
        raise ValueError(f"--name takes different names of letters, digits, `_`, `.` and `-`; got {', '.join(names)}")
    return tuple(names)
