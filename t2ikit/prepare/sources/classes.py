"""From the names of classes in a source to their numbers and names.

A class of ImageNet is known by its wnid, and timm's tables give its number and its name: not the order of the folders,
since train and val may hold other classes, and not the name, since "crane" and "maillot" each stand for two classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from t2ikit.files import read_lines
from t2ikit.prepare.sources.keys import Keys
from t2ikit.prepare.sources.photos import NO_CLASS_ID, Photos

IMAGENET = "imagenet"
"""Value of ``--class-names`` that says: numbers 0 .. 999 are ImageNet's."""

_WNID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"\s*[0-9]{1,9}\s*")
_EVIDENCE = 1000
"""Photos whose names are compared with their numbers."""


@cache
def imagenet_classes() -> dict[str, tuple[int, str]]:
    """wnid -> number and name, the first of its synonyms."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return {
        wnid: (class_id, _first_synonym(info.label_name_to_description(wnid)))
        for class_id, wnid in enumerate(info.label_names())
    }


def wnid_in(path: str) -> str | None:
    """The wnid at the beginning of a file's name (``n01440764_10026.JPEG``, ``n01440764.tar``), if there is one."""
    match = _WNID.match(path.rpartition("/")[2])
    return match[0] if match else None


def resolve(photos: Photos, class_names: str | None, source: str) -> tuple[np.ndarray, dict[int, str]]:
    """The classes of photos.

    Args:
        photos: of one split.
        class_names: the option ``--class-names``: a file, "imagenet", or nothing.
        source: for messages.

    Returns:
        [N] int64 numbers, and the name of every number that occurs.

    Raises:
        FileNotFoundError, ValueError: a class that has no name; names the option.
    """
    if not len(photos):
        return photos.labels, {}
    if photos.classless:
        return photos.labels, {NO_CLASS_ID: ""}
    photos = _with_numbers(photos, class_names)
    if photos.texts is not None:
        numbers, names = _of_texts(photos.texts, class_names, source)
        class_ids = numbers[photos.labels]
    else:
        table = _of_numbers(photos, class_names, source)
        class_ids = photos.labels
        unknown = class_ids[(class_ids < 0) | (class_ids >= len(table))]
        if len(unknown):
            raise ValueError(
                f"{source} has photos of class {unknown[0]}, but there are names for 0 .. {len(table) - 1}: leave "
                "splits without classes out, or name all classes with --class-names FILE"
            )
        if any(class_id != row for row, (class_id, _) in enumerate(table)):  # a part of ImageNet, by its wnids
            class_ids = np.array([class_id for class_id, _ in table], np.int64)[class_ids]
        names = dict(table)
    return class_ids, {int(class_id): names[int(class_id)] for class_id in np.unique(class_ids)}


def read_class_names(path: Path) -> dict[str, tuple[int, str]]:
    """The file of ``--class-names``: folder -> number (its line, from 0) and name.

    Raises:
        FileNotFoundError, ValueError: no such file, or a line that cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}: give one line `folder<TAB>name` a class with --class-names, or the word "
            f"{IMAGENET} if the numbers are those of ImageNet's 1,000 classes"
        )
    classes: dict[str, tuple[int, str]] = {}
    for class_id, line in enumerate(read_lines(path)):
        folder, tab, name = line.partition("\t")
        if not tab or not folder.strip() or not name.strip():
            raise ValueError(f"line {class_id + 1} of {path} is {line!r}; --class-names needs `folder<TAB>name`")
        if _plain(folder) in classes:
            raise ValueError(f"line {class_id + 1} of {path} names the folder {folder.strip()} a second time")
        classes[_plain(folder)] = class_id, name.strip()
    return classes


def _plain(name: str) -> str:
    """A name of a folder in one Unicode form, without spaces around it: a Mac unpacks other forms than Linux."""
    return unicodedata.normalize("NFC", name).strip()


def _of_texts(texts: tuple[str, ...], class_names: str | None, source: str) -> tuple[np.ndarray, dict[int, str]]:
    from_file = class_names is not None and class_names != IMAGENET
    classes = read_class_names(Path(str(class_names))) if from_file else imagenet_classes()
    folders: dict[str, str] = {}
    for text in texts:
        other = folders.setdefault(_plain(text), text)
        if other != text:
            raise ValueError(
                f"{source} has two class folders that differ only in spaces or in their Unicode form, {ascii(other)} "
                f"and {ascii(text)}: rename one of them"
            )
    unknown = sorted(text for text in texts if _plain(text) not in classes)
    if unknown:
        known = f"is not in {class_names}" if from_file else "is no wnid of ImageNet's 1,000 classes"
        raise ValueError(
            f"{len(unknown)} of {len(texts)} class folders in {source} are unknown, the first one "
            f"{unknown[0]}, which {known}{_alike(unknown[0], classes)}: name them with --class-names FILE, one "
            "`folder<TAB>name` a line"
        )
    return np.array([classes[_plain(text)][0] for text in texts], np.int64), dict(classes.values())


def _with_numbers(photos: Photos, class_names: str | None) -> Photos:
    """The same with whole numbers as labels where a source writes them as text: "0", "1" in a column of Parquet."""
    if photos.texts is None or not all(_NUMBER.fullmatch(text) for text in photos.texts):
        return photos
    named = class_names not in (None, IMAGENET) and read_class_names(Path(str(class_names)))
    if named and any(_plain(text) in named for text in photos.texts):
        return photos  # folders of these names
    numbers = np.array([int(text) for text in photos.texts], np.int64)
    return replace(photos, labels=numbers[photos.labels], texts=None)


def _alike(text: str, known: Iterable[str]) -> str:
    """A known name that looks like the text, where there is one, with both written so that the difference shows."""

    def letters(name: str) -> str:
        return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name)).casefold()

    other = next((name for name in known if letters(name) == letters(text) != ""), None)
    return "" if other is None else f" ({ascii(text)} is not {ascii(other)})"


def _of_numbers(photos: Photos, class_names: str | None, source: str) -> list[tuple[int, str]]:
    """Number and name of the classes that a source knows by 0, 1, 2, ..."""
    imagenet = list(imagenet_classes().values())
    if class_names == IMAGENET:
        return imagenet
    if class_names is not None:
        return list(read_class_names(Path(class_names)).values())
    if photos.names is not None:
        by_wnid = imagenet_classes()
        if all(name in by_wnid for name in photos.names):
            return [by_wnid[name] for name in photos.names]
        alike = sum(_first_synonym(name) == known for name, (_, known) in zip(photos.names, imagenet, strict=False))
        if len(photos.names) == len(imagenet) and alike >= 0.9 * len(imagenet):
            return imagenet
        return list(enumerate(photos.names))
    if _named_by_wnid(photos.keys, photos.labels):
        return imagenet
    raise ValueError(
        f"{source} numbers its classes and does not name them: give --class-names {IMAGENET} if the numbers are those "
        "of ImageNet's 1,000 classes, or a FILE with one `folder<TAB>name` a line, the first line for class 0"
    )


def _named_by_wnid(keys: Keys, labels: np.ndarray) -> bool:
    """Whether the photos are called by their wnid, and their numbers are ImageNet's."""
    classes = imagenet_classes()
    for index in np.linspace(0, len(keys) - 1, min(len(keys), _EVIDENCE)).astype(int):
        wnid = wnid_in(keys[int(index)])
        if wnid is None or classes.get(wnid, (None,))[0] != labels[index]:
            return False
    return len(keys) > 0


def _first_synonym(name: str) -> str:
    return name.split(",")[0].strip()
