"""A file of captions: a header that says how they were made, then one line of JSON an image, in the images' order::

    {"key": "train/n02012849/n02012849_0000.JPEG", "captions": ["An image of crane", "A grey crane stands in ..."]}

An image may have several captions, one of each *column*: caption i of every image was made in the same way. Streams
draw from the columns by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from t2ikit.launch import first_rank
from t2ikit.prepare.captions.captioner import Decoding
from t2ikit.prepare.images import IMAGES
from t2ikit.prepare.steps import identity, known_parts, tracked, write_lines
from t2ikit.pretrained import EncoderReference
from t2ikit.records.manifest import MANIFEST_NAME, Manifest
from t2ikit.records.record_set import RecordSet

CAPTIONS = "captions"
"""Folder of the captions below the output folder."""

Row = tuple[str, tuple[str, ...]]
"""Key of an image and its captions."""


@dataclass(frozen=True)
class CaptionColumn:
    """How caption i of every image was made.

    Attributes:
        name: of the column, unlike the others'; streams mix columns by it.
        kind: "aio", "llava", "http" or "file".
        identity: hash of what decides the captions: weights, prompts and decoding, or the captions themselves.
        source: file, or address of the server.
        model: name of the captioner.
        captioner: its weights; None where they are not known.
        prompt, cutmix_prompt: what it was asked about plain and about CutMix images.
        decoding: how its answers were drawn.
        empty: images about which it had nothing to say, and which have their AIO caption instead.
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
        captioner, decoding = values.get("captioner"), values.get("decoding")
        return cls(
            **{
                **values,
                "captioner": EncoderReference.from_dict(captioner) if captioner else None,
                "decoding": Decoding(**decoding) if decoding else None,
            }
        )

    def made_as(self, other: CaptionColumn) -> bool:
        """Whether both hold the same captions of an image, and are called the same."""
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

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CaptionHeader:
        """From ``asdict``."""
        return cls(tuple(CaptionColumn.from_dict(one) for one in values["columns"]), values["images"], values["count"])


class CaptionSet:
    """The captions of one image set, read line by line.

    Raises:
        FileNotFoundError: there are none; says how to make them.
        ValueError: the file is none of captions, or of another version.
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
                self.header = CaptionHeader.from_dict(json.loads(stream.readline()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{self.path} has no header of captions, or that of another version ({error!r}): make it again "
                    f"with t2ikit prepare captions --out {out} --overwrite"
                ) from error

    def __iter__(self) -> Iterator[Row]:
        with self.path.open(encoding="utf-8") as stream:
            stream.readline()
            for line in stream:
                row = json.loads(line)
                yield row["key"], tuple(row["captions"])


def caption_file(root: Path, name: str) -> Path:
    """Where the captions of an image set are."""
    return root / CAPTIONS / f"{name}.jsonl"


Item = TypeVar("Item")


Captioned = tuple[dict[str, Any], tuple[str, ...]]
"""Metadata of an image and its captions."""


_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def aio_caption(metadata: dict[str, Any]) -> str:
    """ "An image of <class name>"; a CutMix image names both classes."""
    caption = f"An image of {metadata['class_name']}"
    return f"{caption} and {metadata['other_class_name']}" if "other_class_name" in metadata else caption


def images_done(root: Path, name: str, columns: Sequence[CaptionColumn], add: bool, overwrite: bool) -> int:
    """How many images of a set, from the first on, have these captions: all, none, or those before appended ones.

    Raises:
        FileExistsError: there are others, and they may not be replaced.
        ValueError: these cannot be put to those that are there.
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
    parts = known_parts(manifest, header.images)
    if not parts and add:
        raise ValueError(f"{path} belongs to other images: leave --add out, and replace it with --overwrite")
    there = {column.name: column for column in header.columns}
    names = [column.name for column in columns]
    same = all(column.name in there and column.made_as(there[column.name]) for column in columns)
    if parts and same and (add or names == list(header.kinds)):
        return _completed(path, manifest, header, parts, names)
    clash = [one for one in names if one in there]
    if add and clash and not overwrite:
        raise FileExistsError(
            f"{path} has captions called {clash[0]} that were made otherwise: give these another --name, or replace "
            "those with --overwrite"
        )
    if add and parts < len(manifest.parts):
        raise ValueError(
            f"{path} lacks the images that were appended: run t2ikit prepare captions with the options of then first"
        )
    if not add and not overwrite:
        whose = "holds other captions" if parts else "belongs to other images"
        raise FileExistsError(f"{path} {whose}: replace it with --overwrite, or keep both captions with --add")
    return 0


def write_captions(
    root: Path, name: str, columns: Sequence[CaptionColumn], rows: Iterable[Captioned], add: bool, done: int = 0
) -> None:
    """Writes the captions of one image set, whole or not at all.

    Args:
        root: the folder of the data set.
        name: of the image set.
        columns: how the captions were made.
        rows: the metadata of every image and one caption a column, in the order of the images.
        add: put them behind those that are there, or in the place of columns of the same name.
        done: images that have these captions; ``rows`` begins behind them.
    """
    path = caption_file(root, name)
    manifest = Manifest.read(root / IMAGES / name)
    merged = tuple(columns)
    new: Iterable[Row] = ((metadata["key"], texts) for metadata, texts in rows)
    if path.is_file() and (add or done):
        old = CaptionSet(root, name)
        kept = old.header.kinds
        places = [kept.index(column.name) if column.name in kept else None for column in columns]
        if done:
            empty = [column.empty + there.empty for column, there in zip(columns, _at(old, places), strict=True)]
            columns = [replace(column, empty=count) for column, count in zip(columns, empty, strict=True)]
            new = chain(old, _filled(old.header.columns, rows, places))
        else:
            new = _merged(old, new, places)
        merged = _put(old.header.columns, columns, places)
    header = CaptionHeader(merged, identity(manifest), manifest.count)
    tracked_rows = tracked(new, manifest.count, f"write captions of {name}")
    content = (json.dumps({"key": key, "captions": list(texts)}, ensure_ascii=False) for key, texts in tracked_rows)
    write_lines(path, chain([json.dumps(asdict(header), ensure_ascii=False)], content))
    added = f", {manifest.count - done:,} of them new" if done else ""
    print(f"{path}: captions of {manifest.count:,} images{added} ({header.kind})")


def image_sets(root: Path) -> list[str]:
    """Names of the image sets of a data set: train, val, then the CutMix sets.

    Raises:
        FileNotFoundError: there are none; says how to make them.
    """
    folder = root / IMAGES
    names = sorted(
        path.parent.name for path in folder.glob(f"*/{MANIFEST_NAME}") if not path.parent.name.startswith(".")
    )
    if not names:
        raise FileNotFoundError(
            f"{root} has no images: run t2ikit prepare images --source FOLDER --out {root} --size S first"
        )
    return sorted(names, key=lambda name: (name != "train", name != "val", name))


def wanted_sets(root: Path, sets: Sequence[str] | None) -> list[str]:
    """The image sets that ``--sets`` names, or all.

    Raises:
        ValueError: one of them is none.
    """
    present = image_sets(root)
    for name in sets or ():
        if name not in present:
            raise ValueError(f"there is no image set {name} in {root / IMAGES}; --sets can name {', '.join(present)}")
    return list(sets or present)


def column_names(names: Sequence[str], default: str, count: int) -> tuple[str, ...]:
    """The names of ``count`` columns: as given with ``--name``, or the default.

    Raises:
        ValueError: too few, too many, twice the same, or one that the manifest could not hold.
    """
    if not names:
        return (default,) if count == 1 else tuple(f"{default}{k}" for k in range(1, count + 1))
    if len(names) != count:
        raise ValueError(f"--name needs {count} name(s), one for each caption of an image; got {', '.join(names)}")
    if len(set(names)) != count or not all(_NAME.fullmatch(name) for name in names):
        raise ValueError(f"--name takes unlike names of letters, digits, `_`, `.` and `-`; got {', '.join(names)}")
    return tuple(names)


def metadata_of(root: Path, name: str, start: int = 0) -> Iterator[dict[str, Any]]:
    """The metadata of the images of a set from ``start`` on, in order; pixels are not read."""
    records = RecordSet(root / IMAGES / name)
    for index in range(start, len(records)):
        yield records.view(index).details()[1]


def _completed(path: Path, manifest: Manifest, header: CaptionHeader, parts: int, names: Sequence[str]) -> int:
    if parts == len(manifest.parts):
        if first_rank():
            print(f"{path}: up to date")
        return manifest.count
    others = [column.name for column in header.columns if column.name not in names and column.kind != "aio"]
    if others:
        raise ValueError(
            f"{path} lacks the images that were appended, for which {', '.join(others)} cannot be made here, too: "
            "replace all of it with --overwrite"
        )
    return header.count


def _put(kept: Sequence[Item], new: Sequence[Item], places: Sequence[int | None]) -> tuple[Item, ...]:
    """Each new one in its place among the kept, or behind them."""
    items = list(kept)
    for one, place in zip(new, places, strict=True):
        if place is None:
            items.append(one)
        else:
            items[place] = one
    return tuple(items)


def _merged(old: CaptionSet, rows: Iterable[Row], places: Sequence[int | None]) -> Iterator[Row]:
    for (key, there), (new_key, texts) in zip(old, rows, strict=True):
        if key != new_key:
            raise ValueError(f"{old.path} has {key} where the images have {new_key}: replace it with --overwrite")
        yield key, _put(there, texts, places)


def _at(old: CaptionSet, places: Sequence[int | None]) -> list[CaptionColumn]:
    return [old.header.columns[place] for place in places if place is not None]


def _filled(columns: Sequence[CaptionColumn], rows: Iterable[Captioned], places: Sequence[int | None]) -> Iterator[Row]:
    """Rows of appended images: what is not given are AIO captions."""
    for metadata, texts in rows:
        yield metadata["key"], _put([aio_caption(metadata)] * len(columns), texts, places)
