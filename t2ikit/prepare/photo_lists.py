"""Which photos an image set was made from, one file per part, so that photos that come later are recognised.

``photos-0.jsonl`` of a set has one line per photo, used or not, in the order of the source list::

    ["train/n02012849/n02012849_0000.JPEG", 10423, 134, "crane", ""]

key, bytes (-1 if the source does not tell), number and name of the class, and why it has no record. Those with a reason
are listed for the user in ``bad_<set>.tsv`` beside the set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from t2ikit.files import parse_json
from t2ikit.photos import SIDE_BELOW
from t2ikit.prepare.sources import ImageList
from t2ikit.prepare.steps import hash_of, write_lines
from t2ikit.records.record_set import RecordSet

_SHOWN = 3
Line = tuple[str, int, int, str]


def list_name(part: int) -> str:
    """File of the photos of a part."""
    return f"photos-{part}.jsonl"


def photo_lines(images: ImageList, rejected: Iterable[tuple[int, str]]) -> Iterator[bytes]:
    """The content of such a file.

    Args:
        images: the photos of the part.
        rejected: number and reason of those without a record, in order.
    """
    reasons = iter(rejected)
    bad = next(reasons, None)
    for index in range(len(images)):
        reason = ""
        if bad is not None and bad[0] == index:
            reason, bad = bad[1], next(reasons, None)
        yield json.dumps([*_line(images, index), reason]).encode() + b"\n"


def bad_photos(folder: Path, parts: int) -> Iterator[tuple[str, str]]:
    """Key and reason of every photo without a record."""
    for line, reason in _read(folder, parts):
        if reason:
            yield line[0], reason


def list_bad(folder: Path, parts: int) -> str:
    """Writes, or removes, the list of the photos without a record; returns a remark for the message."""
    reasons = [reason for _, reason in bad_photos(folder, parts)]
    bad, small = len(reasons), sum(reason.startswith(SIDE_BELOW) for reason in reasons)
    if not bad:
        _bad_list(folder).unlink(missing_ok=True)
        return ""
    path = write_bad(folder, bad_photos(folder, parts))
    told = [f"{bad - small} files could not be used"] if bad > small else []
    told += [f"{small} are smaller than --min-side"] if small else []
    return f", {', '.join(told)} (listed in {path})"


def write_bad(folder: Path, photos: Iterable[tuple[str, str]]) -> Path:
    """Writes key and reason of the photos without a record beside a set, whether or not that is there; the list."""
    path = _bad_list(folder)
    write_lines(path, (f"{_shown(key)}\t{reason}" for key, reason in photos))
    return path


def class_ids(records: RecordSet, count: int) -> np.ndarray:
    """The class of each of the first ``count`` images of a set, [count] int64.

    From the lists where there are some: the records lie a hundred kilobytes apart.
    """
    folder, parts = records.folder, len(records.manifest.parts)
    if all((folder / list_name(part)).is_file() for part in range(parts)):
        numbers = (line[2] for line, reason in _read(folder, parts) if not reason)
        return np.fromiter(islice(numbers, count), np.int64, count)
    return np.fromiter((records.view(index).details()[1]["class_id"] for index in range(count)), np.int64, count)


def unlisted(images: ImageList, folder: Path, parts: int) -> ImageList:
    """The photos of a source that a set was not made from, in their order.

    Args:
        images: what the source holds now.
        folder: the set.
        parts: how many it has.

    Raises:
        ValueError: the set was made from photos that are gone or have changed; names some.
    """
    now, then = _digests(images, folder, parts)
    lost = np.isin(then, now, invert=True)
    if lost.any():
        shown = (line[0] for (line, _), is_lost in zip(_read(folder, parts), lost, strict=True) if is_lost)
        names = ", ".join(islice(shown, _SHOWN))
        raise ValueError(
            f"{int(lost.sum())} photos that {folder} was made from are not in the source any more, or have another "
            f"size or class: {names}. --append only adds: put them back, or make the set anew with --overwrite"
        )
    return images.take(np.flatnonzero(np.isin(now, then, invert=True)))


def same_photos(images: ImageList, folder: Path, parts: int) -> bool:
    """Whether a set was made from these photos, with the same classes, in whatever order; False if it does not say."""
    if not all((folder / list_name(part)).is_file() for part in range(parts)):
        return False
    now, then = _digests(images, folder, parts)
    return np.array_equal(np.sort(now), np.sort(then))


def _digests(images: ImageList, folder: Path, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """What stands for each photo of a source, in its order, and for each that a set was made from."""
    now = np.fromiter((_digest(_line(images, index)) for index in range(len(images))), np.uint64, len(images))
    return now, np.fromiter((_digest(line) for line, _ in _read(folder, parts)), np.uint64)


def _line(images: ImageList, index: int) -> Line:
    class_id = int(images.class_ids[index])
    return images.keys[index], int(images.sizes[index]), class_id, images.class_names[class_id]


def _digest(line: Line) -> int:
    return hash_of(json.dumps(line).encode())


def _bad_list(folder: Path) -> Path:
    return folder.with_name(f"bad_{folder.name}.tsv")


def _shown(key: str) -> str:
    """A key that is no UTF-8 with its odd bytes written out."""
    return key.encode("utf-8", "backslashreplace").decode()


def _read(folder: Path, parts: int) -> Iterator[tuple[Line, str]]:
    for part in range(parts):
        path = folder / list_name(part)
        if not path.is_file():
            raise ValueError(f"{folder} does not say which photos it was made from: make it anew with --overwrite")
        with path.open(encoding="utf-8") as stream:
            for text in stream:
                key, size, class_id, name, reason = parse_json(text)
                yield (key, size, class_id, name), reason
