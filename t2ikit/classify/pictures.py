"""Pictures with their labels: class folders, or a prepared set whose records hold ``class_id``.

Everything is looked at once before a training: every file is decoded and hashed, and what was found is kept in the
user's cache by size and time of the file, so that the next training on the same pictures begins at once.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from t2ikit import rng
from t2ikit.classify.classes import ClassList
from t2ikit.config.errors import nearest
from t2ikit.files import parse_json, read_utf8, write_whole
from t2ikit.photos import SUFFIXES, BadImage, read_rgb
from t2ikit.pretrained import cache_folder
from t2ikit.records.manifest import MANIFEST_NAME
from t2ikit.records.record_set import RecordSet

_WNID = re.compile(r"n\d{8}")
_MARKS = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"RI": "webp", b"GI": "gif", b"BM": "bmp"}


@dataclass(frozen=True)
class Facts:
    """What was found in one picture.

    Attributes:
        sha256: of the file; of a record, of its pixels.
        height, width: pixels.
        kind: "jpeg", "png", ..., "other", or "pixels" for a record.
    """

    sha256: str
    height: int
    width: int
    kind: str


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures, which stay where they are.

    Attributes:
        folder: where they are.
        keys: of each, its path below the folder, or the number of its record.
        labels: [N] int64.
        facts: of each; empty until :func:`checked`.
        records: the prepared set, or None for class folders.
    """

    folder: Path
    keys: tuple[str, ...]
    labels: np.ndarray
    facts: tuple[Facts, ...] = ()
    records: RecordSet | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> np.ndarray:
        """One picture, [3, H, W] uint8.

        Raises:
            BadImage: the file has changed since it was checked.
        """
        if self.records is not None:
            return np.array(self.records.view(int(self.keys[index])).array("image"))
        return read_rgb((self.folder / self.keys[index]).read_bytes())

    def rows(self, index: np.ndarray) -> Pictures:
        """Some of them, in this order."""
        facts = tuple(self.facts[row] for row in index) if self.facts else ()
        return replace(self, keys=tuple(self.keys[row] for row in index), labels=self.labels[index], facts=facts)

    def counts(self, classes: int) -> list[int]:
        """Pictures of every class."""
        return np.bincount(self.labels, minlength=classes).tolist()

    @cached_property
    def description(self) -> dict[str, Any]:
        """For a fingerprint: how many, their formats, and one hash of what they show and how they are labelled."""
        pairs = [f"{label} {facts.sha256}" for label, facts in zip(self.labels, self.facts, strict=True)]
        kinds = Counter(facts.kind for facts in self.facts)
        digest = hashlib.sha256("\n".join(pairs).encode()).hexdigest()
        return {"images": len(self), "formats": dict(sorted(kinds.items())), "sha256": digest}


def find(folder: str, classes: ClassList, option: str) -> Pictures:
    """The pictures of a folder, with labels by class folder or ``class_id``; nothing is decoded yet.

    Class folders of ImageNet that are not among the classes are left out.

    Args:
        folder: of class folders, or a prepared set.
        classes: which ones.
        option: what names the folder, for messages.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a missing, empty or unknown class folder, or a set without ``class_id`` or without pixels.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{option}: there is no folder {folder}: give one that holds a folder for each class")
    pictures = _records(path, classes, option) if (path / MANIFEST_NAME).is_file() else _files(path, classes, option)
    lacking = [classes.classes[label] for label, count in enumerate(pictures.counts(len(classes))) if count == 0]
    if lacking:
        first = lacking[0]
        raise ValueError(
            f"{option}: {path} has no picture of {len(lacking)} of the {len(classes)} classes, the first one "
            f"{first.key} ({first.name}): add its folder {' or '.join(first.folders[:3])}, or name fewer classes "
            "with data.classes FILE"
        )
    return pictures


def _files(path: Path, classes: ClassList, option: str) -> Pictures:
    labels = classes.label_of_folder
    of_imagenet = all(map(_WNID.fullmatch, labels))
    keys: list[str] = []
    numbers: list[int] = []
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        label = labels.get(unicodedata.normalize("NFC", folder.name).strip())  # as the list of classes has it
        if label is None:
            if of_imagenet and _WNID.fullmatch(folder.name):
                continue  # another class of ImageNet
            raise ValueError(
                f"{option}: {folder} is no folder of the classes {classes.source}{nearest(folder.name, labels)}: "
                "rename or remove it, or name all classes with data.classes FILE"
            )
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file():
                keys.append(file.relative_to(path).as_posix())
                numbers.append(label)
    return Pictures(path, tuple(keys), np.array(numbers, np.int64))


def _records(path: Path, classes: ClassList, option: str) -> Pictures:
    records = RecordSet(path)
    if records.manifest.kind != "pixels":
        raise ValueError(
            f"{option}: {path} holds {records.manifest.kind}, and a classifier looks at pixels: give its set of "
            "images, such as images/train"
        )
    keys: list[str] = []
    numbers: list[int] = []
    for index in range(len(records)):
        class_id = records.view(index).details()[1].get("class_id")
        if class_id is None:
            raise ValueError(f"{option}: record {index} of {path} has no class_id: prepare the set from class folders")
        label = classes.label_of_number.get(int(class_id))
        if label is not None:
            keys.append(str(index))
            numbers.append(label)
    return Pictures(path, tuple(keys), np.array(numbers, np.int64), records=records)


def checked(pictures: Pictures, check: Callable[[tuple[int, int]], None], option: str, threads: int = 1) -> Pictures:
    """Decodes and hashes every picture, and sorts them by label and hash, so that no name of a file decides anything.

    Args:
        pictures: of :func:`find`.
        check: gets (height, width) of every size that occurs, and refuses it by a ValueError.
        option: what names the folder, for messages.
        threads: how many pictures are decoded at once.

    Raises:
        ValueError: a picture that cannot be read, or a size that is refused; names the file.
    """
    facts = _facts_of_records(pictures) if pictures.records is not None else _facts_of_files(pictures, threads, option)
    seen: set[tuple[int, int]] = set()
    for key, fact in zip(pictures.keys, facts, strict=True):
        shape = fact.height, fact.width
        if shape not in seen:
            seen.add(shape)
            try:
                check(shape)
            except ValueError as error:
                raise ValueError(f"{option}: {pictures.folder / key}: {error}") from error
    order = sorted(range(len(facts)), key=lambda row: (pictures.labels[row], facts[row].sha256, pictures.keys[row]))
    return replace(pictures, facts=tuple(facts)).rows(np.array(order, np.int64))


def _facts_of_records(pictures: Pictures) -> list[Facts]:
    facts = []
    for index in range(len(pictures)):
        pixels = pictures.read(index)
        _, height, width = pixels.shape
        facts.append(Facts(hashlib.sha256(pixels.tobytes()).hexdigest(), height, width, "pixels"))
    return facts


def _facts_of_files(pictures: Pictures, threads: int, option: str) -> list[Facts]:
    """Out of the cache, or by decoding; processes that look at one folder wait for each other."""
    digest = hashlib.sha256(str(pictures.folder.resolve()).encode()).hexdigest()[:32]
    notes = cache_folder() / "classify" / f"{digest}.json"
    lock = FileLock(notes.with_suffix(".lock"))
    with suppress(OSError):  # a cache that cannot be written only costs time
        notes.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        known: dict[str, list[int | str]] = {}
        with suppress(OSError, ValueError):
            known = parse_json(read_utf8(notes))
        stats = [(pictures.folder / key).stat() for key in pictures.keys]
        stamps = [[stat.st_size, stat.st_mtime_ns] for stat in stats]
        missing = [key for key, stamp in zip(pictures.keys, stamps, strict=True) if known.get(key, [0, 0])[:2] != stamp]
        stamp_of = dict(zip(pictures.keys, stamps, strict=True))
        try:
            with ThreadPoolExecutor(max(threads, 1)) as pool:
                facts = pool.map(lambda key: _looked_at(pictures.folder / key, option), missing)
                bar = tqdm(facts, desc=f"checking {option}", total=len(missing), unit="img", leave=False, disable=None)
                for key, fact in zip(missing, bar, strict=True):
                    known[key] = [*stamp_of[key], fact.sha256, fact.height, fact.width, fact.kind]
        finally:
            if missing:  # after a picture that cannot be read, too: the others are not looked at again
                with suppress(OSError):
                    write_whole(notes, json.dumps(known))
        return [
            Facts(str(sha256), int(height), int(width), str(kind))
            for sha256, height, width, kind in (known[key][2:] for key in pictures.keys)
        ]
    finally:
        lock.release()


def _looked_at(file: Path, option: str) -> Facts:
    content = file.read_bytes()
    try:
        pixels = read_rgb(content)
    except BadImage as error:
        raise ValueError(f"{option}: {file} cannot be read: {error}: replace or remove it") from error
    _, height, width = pixels.shape
    return Facts(hashlib.sha256(content).hexdigest(), height, width, _MARKS.get(content[:2], "other"))


# ------------------------------------------------------------------ which of them


def first_per_class(pictures: Pictures, count: int, seed: int, classes: ClassList) -> Pictures:
    """``count`` pictures of every class, keyed by ``seed``; a smaller count takes some of those of a larger one.

    Raises:
        ValueError: a class has fewer.
    """
    kept = []
    for label in np.unique(pictures.labels):
        rows = np.flatnonzero(pictures.labels == label)
        if len(rows) < count:
            key = classes.classes[label].key
            raise ValueError(f"data.train: class {key} has {len(rows)} pictures, fewer than data.per_class {count}")
        kept.append(rows[rng.permutation(seed, "classifier subset", int(label), len(rows))[:count]])
    return pictures.rows(np.sort(np.concatenate(kept)))


def held_out(pictures: Pictures, share: float, seed: int) -> tuple[Pictures, Pictures]:
    """The pictures that are trained on, and a share of every class that is not: at least one of it."""
    out = []
    for label in np.unique(pictures.labels):
        rows = np.flatnonzero(pictures.labels == label)
        order = rng.permutation(seed, "classifier held out", int(label), len(rows))
        out.append(rows[order[: max(1, round(share * len(rows)))]])
    rows = np.sort(np.concatenate(out))
    return pictures.rows(np.setdiff1d(np.arange(len(pictures)), rows)), pictures.rows(rows)


def refuse_shared(train: Pictures, other: Pictures, option: str) -> None:
    """Refuses a test of pictures that were trained on, by the hashes of their files.

    Raises:
        ValueError: names the first pair.
    """
    known = {fact.sha256: key for fact, key in zip(train.facts, train.keys, strict=True)}
    shared = [(known[f.sha256], key) for f, key in zip(other.facts, other.keys, strict=True) if f.sha256 in known]
    if shared:
        raise ValueError(
            f"{option}: {len(shared)} of {len(other)} pictures in {other.folder} are in data.train too, the first one "
            f"{shared[0][1]} ({train.folder / shared[0][0]}): remove them from one of the two"
        )


def check_counts(pictures: Pictures, classes: ClassList, option: str) -> None:
    """Refuses a class with one picture, and warns of unequal numbers.

    Raises:
        ValueError: names the class.
    """
    counts: Sequence[int] = pictures.counts(len(classes))
    if min(counts) < 2:
        lonely = classes.classes[counts.index(min(counts))]
        raise ValueError(
            f"{option}: class {lonely.key} ({lonely.name}) has {min(counts)} picture; at least 2 are needed, one to "
            "train on and one to validate"
        )
    if min(counts) < max(counts):
        fewest, most = (classes.classes[counts.index(count)].key for count in (min(counts), max(counts)))
        warnings.warn(
            f"{option}: the classes have unequal numbers of pictures, from {min(counts)} ({fewest}) to {max(counts)} "
            f"({most}): data.per_class {min(counts)} takes as many of each",
            stacklevel=2,
        )
