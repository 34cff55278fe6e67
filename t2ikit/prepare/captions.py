"""Captions of the image sets: "An image of <class name>" (AIO), or the user's own from a table.

A set of captions lies beside its images, one line of JSON an image, in the order of the images::

    {"key": "train/n02012849/n02012849_0000.JPEG", "captions": ["An image of crane"]}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from t2ikit.data.manifest import MANIFEST_NAME, Manifest
from t2ikit.data.records import RecordSet
from t2ikit.prepare.engine import identity, tracked, write_lines
from t2ikit.prepare.images import IMAGES
from t2ikit.pretrained import sha256_of

CAPTIONS = "captions"
"""Folder of the captions below the output folder."""

_SHOWN = 3


@dataclass(frozen=True)
class CaptionHeader:
    """First line of a file of captions.

    Attributes:
        kind: "aio", or "tsv" for the user's own.
        images: identity of the image set that they belong to.
        count: number of images.
    """

    kind: str
    images: str
    count: int


class CaptionSet:
    """The captions of one image set, read line by line.

    Raises:
        FileNotFoundError: there are none; says how to make them.
    """

    def __init__(self, out: Path, name: str) -> None:
        self.path = caption_file(out, name)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"the images of {name} have no captions: run t2ikit prepare captions --out {out} first (with --tsv "
                "FILE for your own)"
            )
        with self.path.open(encoding="utf-8") as stream:
            self.header = CaptionHeader(**json.loads(stream.readline()))

    def __iter__(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        with self.path.open(encoding="utf-8") as stream:
            stream.readline()
            for line in stream:
                row = json.loads(line)
                yield row["key"], tuple(row["captions"])


def aio_caption(metadata: dict[str, Any]) -> str:
    """ "An image of <class name>"; a CutMix image names both classes."""
    caption = f"An image of {metadata['class_name']}"
    return f"{caption} and {metadata['other_class_name']}" if "other_class_name" in metadata else caption


def prepare_captions(
    out: str | Path,
    kind: str = "aio",
    tsv: str | None = None,
    sets: Sequence[str] | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Writes the captions of image sets.

    Args:
        out: the folder of the data set.
        kind: "aio", for captions made from the class names.
        tsv: file with one ``path<TAB>caption`` a line, instead of ``kind``; the path is the key of the image: relative
            to the source, and for CutMix with the name of the set before that of the base image
            (``train_cmall/train/n02012849/x.JPEG``).
        sets: names of the image sets; None takes all for AIO, and for a file those that it has paths of.
        overwrite: replace captions of another kind or of other images.

    Returns:
        Names of the sets that have captions now.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: what is wrong with which option, or which line.
    """
    root = Path(out)
    present = image_sets(root)
    for name in sets or ():
        if name not in present:
            raise ValueError(f"there is no image set {name} in {root / IMAGES}; --sets can name {', '.join(present)}")
    if tsv is None:
        if kind != "aio":
            raise ValueError(f"--kind is aio; got {kind!r} (captions of your own come with --tsv FILE)")
        for name in sets or present:
            write_captions(root, name, "aio", _aio_rows(root, name), overwrite)
        return list(sets or present)
    table = _Table(Path(tsv))
    keys = {name: list(_keys(root, name)) for name in sets or present}
    _check_unknown(table, keys)
    if sets is None:
        keys = {name: own for name, own in keys.items() if any(key in table.offsets for key in own)}
    _check_missing(table, keys)
    for name, own in keys.items():
        write_captions(root, name, "tsv", ((key, (table[key],)) for key in own), overwrite)
    for name in present:
        if not caption_file(root, name).is_file():
            print(f"{name}: no captions yet")
    return list(keys)


def write_captions(
    root: Path, name: str, kind: str, rows: Iterable[tuple[str, tuple[str, ...]]], overwrite: bool
) -> None:
    """Writes the captions of one image set, whole or not at all; does nothing where they are there.

    Raises:
        FileExistsError: other captions are there, and they may not be replaced.
    """
    path = caption_file(root, name)
    manifest = Manifest.read(root / IMAGES / name)
    header = CaptionHeader(kind, identity(manifest), manifest.count)
    new = tracked(rows, manifest.count, f"captions {name}")
    content = (json.dumps({"key": key, "captions": list(texts)}, ensure_ascii=False) for key, texts in new)
    beside = path.with_name(f".{path.name}.new")
    try:
        digest = write_lines(beside, chain([json.dumps(asdict(header))], content))
        if path.is_file():
            if sha256_of(path) == digest:
                print(f"{path}: up to date")
                return
            if not overwrite:
                raise FileExistsError(f"{path} holds other captions: replace them with --overwrite")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    print(f"{path}: captions of {manifest.count:,} images ({kind})")


def caption_file(root: Path, name: str) -> Path:
    """Where the captions of an image set are."""
    return root / CAPTIONS / f"{name}.jsonl"


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


def _aio_rows(root: Path, name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    records = RecordSet(root / IMAGES / name)
    for index in range(len(records)):
        metadata = records.view(index).details()[1]
        yield metadata["key"], (aio_caption(metadata),)


def _keys(root: Path, name: str) -> Iterator[str]:
    records = RecordSet(root / IMAGES / name)
    for index in range(len(records)):
        yield records.view(index).details()[1]["key"]


class _Table:
    """``path<TAB>caption`` lines; keeps where each line starts, not the captions."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}: give one line `path<TAB>caption` an image with --tsv")
        self.path = path
        self.offsets: dict[str, int] = {}
        self.lines: dict[str, int] = {}
        with path.open("rb") as stream:
            start = 3 if stream.read(3) == b"\xef\xbb\xbf" else 0
            stream.seek(start)
            for number, content in enumerate(stream, 1):
                key = self._parse(content, number)[0]
                if key in self.offsets:
                    raise ValueError(
                        f"line {number} of {path} has a second caption of {key}, after line {self.lines[key]}"
                    )
                self.offsets[key], self.lines[key] = start, number
                start += len(content)
        self._stream = path.open("rb")

    def __getitem__(self, key: str) -> str:
        self._stream.seek(self.offsets[key])
        return self._parse(self._stream.readline(), self.lines[key])[1]

    def _parse(self, content: bytes, number: int) -> tuple[str, str]:
        try:
            line = content.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} of {self.path} is not UTF-8 ({error.reason})") from error
        key, tab, caption = line.partition("\t")
        if not tab or not key or not caption.strip() or "\t" in caption:
            raise ValueError(f"line {number} of {self.path} is {line[:80]!r}; --tsv needs `path<TAB>caption`")
        return key, caption.strip()


def _check_unknown(table: _Table, sets: dict[str, list[str]]) -> None:
    known = {key for own in sets.values() for key in own}
    unknown = [key for key in table.offsets if key not in known]
    if unknown:
        example = next(iter(sets.values()))[0]
        raise ValueError(
            f"{len(unknown)} paths of {table.path} are no image of {', '.join(sets)}, the first on line "
            f"{table.lines[unknown[0]]}: {unknown[0]} (a path is relative to the --source of `prepare images`, such as "
            f"{example})"
        )


def _check_missing(table: _Table, sets: dict[str, list[str]]) -> None:
    for name, own in sets.items():
        missing = [key for key in own if key not in table.offsets]
        if missing:
            more = ", ..." if len(missing) > _SHOWN else ""
            raise ValueError(
                f"{len(missing)} of {len(own)} images of {name} have no caption in {table.path}: "
                f"{', '.join(missing[:_SHOWN])}{more}"
            )
