"""Where photos come from: a folder of class folders, and what its classes are called.

A class is known by the name of its folder. For ImageNet that is the wnid, and timm's tables give its number and its
name: not the order of the folders, since train and val may hold unlike classes, and not the name, since "crane" and
"maillot" each stand for two classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t2ikit.draws import permutation

SPLITS = ("train", "val")

_File = tuple[str, int, int]
"""Key, class number, bytes."""


@dataclass(frozen=True)
class ImageList:
    """The photos of one split, in the order in which they will be stored.

    Attributes:
        root: the folder that was given.
        keys: [N] path of every photo below ``root``, with forward slashes.
        class_ids: [N] int64.
        class_names: name of every class that occurs.
        sha256: of the keys and sizes of the files, in alphabetical order.
    """

    root: Path
    keys: list[str]
    class_ids: np.ndarray
    class_names: dict[int, str]
    sha256: str

    def __len__(self) -> int:
        return len(self.keys)


def find_images(
    source: str | os.PathLike[str], class_names: str | None = None, val_share: float = 0.02, seed: int = 0
) -> dict[str, ImageList]:
    """Lists the photos of a source, shuffled: in the order of the folders every chunk would hold one class.

    Args:
        source: a folder of class folders, or one with ``train`` and ``val``, each a folder of class folders.
        class_names: file with one ``folder<TAB>name`` a line, for classes that are not ImageNet's; a class's number is
            its line, from 0.
        val_share: which part of a source without ``val`` is held out; a photo's path and the seed decide on which
            side it is.
        seed: decides the order.

    Returns:
        The lists of "train" and "val".

    Raises:
        FileNotFoundError: no such folder or file; names the option.
        ValueError: no photos, class folders of unknown names, or a class file that cannot be read.
    """
    root = Path(source).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}: give a folder of class folders with --source")
    classes = _read_class_names(Path(class_names)) if class_names else _imagenet_classes()
    split_folders = {split: root / split for split in SPLITS if (root / split).is_dir()}
    if "train" in split_folders:
        found = {split: _scan(folder, root, classes, class_names) for split, folder in split_folders.items()}
    else:
        found = {"train": _scan(root, root, classes, class_names)}
    if "val" not in found:
        found["train"], found["val"] = _hold_out(found["train"], val_share, seed)
    names = dict(classes.values())
    lists = {}
    for split in SPLITS:
        files = found[split]
        if not files:
            raise ValueError(
                f"{split} has no photos: {root} needs class folders with at least a few photos each (--source), or "
                "hold out another share (--val-share)"
            )
        digest = hashlib.sha256("".join(f"{key}\t{size}\n" for key, _, size in files).encode()).hexdigest()
        order = permutation(seed, f"prepare-{split}", 0, len(files))
        class_ids = np.array([number for _, number, _ in files], dtype=np.int64)[order]
        occurring = {int(number): names[int(number)] for number in np.unique(class_ids)}
        lists[split] = ImageList(root, [files[k][0] for k in order], class_ids, occurring, digest)
    return lists


def _imagenet_classes() -> dict[str, tuple[int, str]]:
    """wnid -> number and name, the first of its synonyms."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return {
        wnid: (number, info.label_name_to_description(wnid).split(",")[0].strip())
        for number, wnid in enumerate(info.label_names())
    }


def _read_class_names(path: Path) -> dict[str, tuple[int, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give one line `folder<TAB>name` a class with --class-names")
    classes: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines()):
        folder, tab, name = line.partition("\t")
        if not tab or not folder.strip() or not name.strip():
            raise ValueError(f"line {number + 1} of {path} is {line!r}; --class-names needs `folder<TAB>name`")
        if folder.strip() in classes:
            raise ValueError(f"line {number + 1} of {path} names the folder {folder.strip()} a second time")
        classes[folder.strip()] = number, name.strip()
    return classes


def _scan(folder: Path, root: Path, classes: dict[str, tuple[int, str]], class_names: str | None) -> list[_File]:
    """Every file in the class folders, in alphabetical order of the keys."""
    class_folders = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _hidden(entry.name))
    unknown = [name for name in class_folders if name not in classes]
    if unknown:
        known = f"is not in {class_names}" if class_names else "is no wnid of ImageNet's 1,000 classes"
        raise ValueError(
            f"{len(unknown)} of {len(class_folders)} class folders in {folder} are unknown, the first one "
            f"{unknown[0]}, which {known}: name them with --class-names FILE, one `folder<TAB>name` a line"
        )
    prefix = "" if folder == root else folder.relative_to(root).as_posix() + "/"
    files = []
    for name in class_folders:
        number = classes[name][0]
        for path, size in _files(folder / name, f"{prefix}{name}"):
            files.append((path, number, size))
    return sorted(files)


def _files(folder: Path, key: str) -> Iterator[tuple[str, int]]:
    for entry in os.scandir(folder):
        if _hidden(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _files(folder / entry.name, f"{key}/{entry.name}")
        else:
            # A link that leads nowhere is listed, too: it shows up among the bad files, not as a photo less.
            yield f"{key}/{entry.name}", entry.stat(follow_symlinks=os.path.exists(entry.path)).st_size


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _hold_out(files: list[_File], share: float, seed: int) -> tuple[list[_File], list[_File]]:
    """Splits by a hash of the path, so that a photo stays on its side when others are added."""
    if not 0 < share < 1:
        raise ValueError(f"--val-share must lie between 0 and 1; got {share}")
    kept: list[_File] = []
    held_out: list[_File] = []
    for file in files:
        digest = hashlib.blake2b(f"{seed}\0{file[0]}".encode(), digest_size=8).digest()
        (held_out if int.from_bytes(digest, "little") < share * 2**64 else kept).append(file)
    return kept, held_out
