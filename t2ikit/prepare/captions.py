"""Captions of the image sets: "An image of <class name>" (AIO), those of a captioner, or the user's own from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from t2ikit.data.manifest import MANIFEST_NAME, Manifest
from t2ikit.data.records import RecordSet
from t2ikit.first_rank import first_rank
from t2ikit.prepare.captioners import Captioner
from t2ikit.prepare.captions_set import CAPTIONS, CaptionColumn, CaptionHeader, CaptionSet, Row, caption_file
from t2ikit.prepare.images import IMAGES
from t2ikit.prepare.steps import identity, known_parts, tracked, write_lines

if TYPE_CHECKING:
    from t2ikit.prepare.engine import Launch

__all__ = [
    "CAPTIONS",
    "CaptionColumn",
    "CaptionSet",
    "aio_caption",
    "caption_file",
    "image_sets",
    "prepare_captions",
    "write_aio",
]

Item = TypeVar("Item")
Captioned = tuple[dict[str, Any], tuple[str, ...]]
"""Metadata of an image and its captions."""

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def aio_caption(metadata: dict[str, Any]) -> str:
    """ "An image of <class name>"; a CutMix image names both classes."""
    caption = f"An image of {metadata['class_name']}"
    return f"{caption} and {metadata['other_class_name']}" if "other_class_name" in metadata else caption


def prepare_captions(
    out: str | Path,
    *,
    captioner: Captioner | None = None,
    file: str | Path | None = None,
    sets: Sequence[str] | None = None,
    names: Sequence[str] = (),
    add: bool = False,
    launch: Launch | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Writes the captions of image sets: of a captioner, from a file, or else from the class names (AIO).

    Args:
        out: the folder of the data set.
        captioner: a model that describes the images.
        file: TSV, JSON lines or Parquet with your own captions. The key or path in it is the key of the image:
            relative to the source, and for CutMix with the name of the set before that of the base image
            (``train_cmall/train/n02012849/x.JPEG``).
        sets: names of the image sets; None takes all, of a file those that it has keys of.
        names: of the columns; default "aio", "long" for a captioner, for a file "own" ("own1", "own2", ... where it has
            several captions an image).
        add: keep the captions that are there and add these.
        launch: on which devices the captioner runs.
        overwrite: replace captions that were made otherwise or belong to other images.

    Captions stay when images are appended: the same call then makes those of the new ones only. AIO captions beside
    them are made along.

    Returns:
        Names of the sets that have these captions now.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: what is wrong with which option, or which line.
    """
    root = Path(out)
    targets = wanted_sets(root, sets)
    if captioner is not None and file is not None:
        raise ValueError("captions come from a file (--captions) or from a captioner (--kind), not from both at once")
    if captioner is None and not first_rank():
        return targets  # nothing to share: one process writes
    if captioner is not None:
        from t2ikit.prepare.captions_model import caption_images

        name = column_names(names, "long", 1)[0]
        caption_images(root, targets, captioner, name, add, launch, overwrite)
    elif file is not None:
        from t2ikit.prepare.captions_import import import_captions

        targets = import_captions(root, targets, Path(file), names, add, overwrite, every=sets is not None)
    else:
        name = column_names(names, "aio", 1)[0]
        for one in targets:
            write_aio(root, one, overwrite, name, add)
    return targets


def write_aio(root: Path, name: str, overwrite: bool, column: str = "aio", add: bool = False) -> None:
    """Writes the AIO captions of one image set; does nothing where they are there."""
    columns = (CaptionColumn(column, "aio", "aio"),)
    done = images_done(root, name, columns, add, overwrite)
    if done < len(RecordSet(root / IMAGES / name)):
        rows = ((metadata, (aio_caption(metadata),)) for metadata in metadata_of(root, name, done))
        write_captions(root, name, columns, rows, add, done)


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
