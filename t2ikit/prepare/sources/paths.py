"""What a path or a pattern on the command line means."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from os.path import commonprefix

from t2ikit.prepare.sources.files import Files, LocalFiles
from t2ikit.prepare.sources.remote import RemoteFiles

SPLITS = ("train", "val")
_SPLIT = re.compile(r"(?:^|[_.-])(train|validation|valid|val|dev|test)(?=[_.-]|\d|$)", re.IGNORECASE)
_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def files_of(path: str) -> Files:
    """How a path is read.

    Raises:
        ValueError: a URL of a kind that needs a package, which is named.
    """
    return RemoteFiles(path) if "://" in path else LocalFiles()


def expand(pattern: str) -> list[str]:
    """The paths that a pattern names: ``{000..146}`` and ``{a,b}`` anywhere, ``*`` and ``?`` in the last part.

    Raises:
        FileNotFoundError: nothing has such a name.

    Example:
        >>> expand("train-{08..10}.tar")
        ['train-08.tar', 'train-09.tar', 'train-10.tar']
    """
    paths = list(_braces(pattern))
    matches = []
    for path in paths:
        folder, slash, name = path.rpartition("/")
        if not any(mark in name for mark in "*?["):
            matches.append(path)
            continue
        files = files_of(path)
        names = sorted(entry.name for entry in files.visible(folder or ".") if fnmatchcase(entry.name, name))
        matches += [f"{folder}{slash}{match}" for match in names]
    if not matches:
        raise FileNotFoundError(f"there is no file {pattern}: --source names none")
    return matches


def split_of(path: str) -> str:
    """The split that a file's name or its folder tells: "train", "val", "test" or nothing.

    Example:
        >>> split_of("data/validation-00000-of-00014.parquet"), split_of("train/0000.parquet"), split_of("a/0.tar")
        ('val', 'train', '')
    """
    folder, _, name = path.rpartition("/")
    return [split_of_folder(folder.rpartition("/")[2]), *map(split_of_folder, _SPLIT.findall(name))][-1]


def split_of_folder(name: str) -> str:
    """The split that a folder of this name holds: "train", "val", "test" or nothing.

    Example:
        >>> split_of_folder("Validation"), split_of_folder("n01440764")
        ('val', '')
    """
    return _SPLIT_FOLDERS.get(name.lower(), "")


def shard_names(paths: Sequence[str], ending: str) -> list[str]:
    """What keys call each of several files: by its base name, or by its path where others have the same base name.

    Args:
        paths: all the files.
        ending: is left out.

    Example:
        >>> shard_names(["set/a/0.tar", "set/b/0.tar", "set/b/1.tar"], ".tar")
        ['a/0', 'b/0', '1']
    """
    base_names = [path.rpartition("/")[2] for path in paths]
    counts = Counter(base_names)
    shared = len(commonprefix([path.split("/")[:-1] for path in paths]))  # folders that all paths begin with
    return [
        (name if counts[name] == 1 else "/".join(path.split("/")[shared:])).removesuffix(ending)
        for path, name in zip(paths, base_names, strict=True)
    ]


def is_pattern(path: str) -> bool:
    """Whether a path names several files."""
    return any(mark in path for mark in "*?[{")


def _braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        words = [str(value).zfill(len(span[1])) for value in range(int(span[1]), int(span[2]) + 1)]
    else:
        words = match[1].split(",")
    for word in words:
        yield from _braces(pattern[: match.start()] + word + pattern[match.end() :])
