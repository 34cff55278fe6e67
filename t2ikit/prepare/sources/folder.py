"""Class folders: one folder per class, here or behind a URL."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from t2ikit.prepare.sources.files import Entry, Files
from t2ikit.prepare.sources.left_out import OF_SYSTEM, LeftOut, is_of_system
from t2ikit.prepare.sources.paths import SPLITS, split_of_folder
from t2ikit.prepare.sources.photos import FileReader, Listing, Photos
from t2ikit.prepare.sources.truth import Truth, truth_of

NO_CLASS = "in no class folder"
BESIDE = "beside the folders of train and val"


def split_folders(files: Files, root: str) -> dict[str, str]:
    """The folders of train and val below ``root``, by split; empty where there are none, but class folders.

    Raises:
        ValueError: two folders of one split.
    """
    folders = named_by_split(files, root)
    if "train" not in folders or not any(entry.is_folder for entry in files.visible(f"{root}/{folders['train']}")):
        return {}
    return folders


def named_by_split(files: Files, root: str) -> dict[str, str]:
    """The folders in ``root`` whose names are those of train and val, by split.

    Raises:
        ValueError: two folders of one split.
    """
    folders: dict[str, str] = {}
    for entry in files.visible(root):
        split = split_of_folder(entry.name)
        if entry.is_folder and split in SPLITS:
            if split in folders:
                names = " and ".join(sorted((folders[split], entry.name)))
                raise ValueError(f"{root} holds two folders of {split}, {names}: give --source a folder with one")
            folders[split] = entry.name
    return folders


def folder_photos(files: Files, root: str, labels: str | None) -> dict[str, Photos]:
    """The photos of a folder of class folders, or of one with train and val.

    Args:
        files: how the folder is read.
        root: the folder or its URL.
        labels: the option ``--val-labels``, for a val without class folders.
    """
    folders = split_folders(files, root)
    if not folders:
        return {"train": _listed(files, root, "", None)}
    by_split = {"train": _listed(files, root, folders["train"], None)}
    if "val" in folders:
        path = f"{root}/{folders['val']}"
        flat = not any(entry.is_folder for entry in files.visible(path))
        by_split["val"] = _listed(files, root, folders["val"], truth_of(labels, path) if flat else None)
    count_beside(files, root, folders.values(), by_split["train"].left_out)
    return by_split


def count_beside(files: Files, root: str, folders: Collection[str], left_out: LeftOut) -> None:
    """Counts what ``root`` holds beside the folders of its splits."""
    for entry in sorted(files.entries(root)):
        if entry.name not in folders:
            reason = OF_SYSTEM if is_of_system(entry.name) else BESIDE
            left_out.add(reason, entry.name, _count(files, root, entry))


def _listed(files: Files, root: str, split: str, truth: Truth | None) -> Photos:
    listing, left_out = Listing(), LeftOut()
    folder = f"{root}/{split}".rstrip("/")
    prefix = f"{split}/" if split else ""
    for entry in sorted(files.entries(folder)):
        key = f"{prefix}{entry.name}"
        if is_of_system(entry.name):
            left_out.add(OF_SYSTEM, key, _count(files, folder, entry))
        elif truth is not None and not entry.is_folder:
            listing.add(key, entry.size, truth.wnid_of(entry.name))
        elif entry.is_folder:
            for path, inner in sorted(files_below(files, f"{folder}/{entry.name}", f"{key}/", left_out, links=0)):
                listing.add(path, inner.size, entry.name)
        else:
            left_out.add(NO_CLASS, key)
    keys, sizes = listing.keys, listing.sizes
    reader = FileReader(files, root, keys, sizes)
    return Photos(keys, sizes, listing.labels, reader, listing.texts, left_out=left_out)


def files_below(
    files: Files, folder: str, prefix: str, left_out: LeftOut, links: int = 1
) -> Iterator[tuple[str, Entry]]:
    """Path and entry of every file below a folder, in no order.

    Args:
        files: how it is read.
        folder: its path or URL.
        prefix: what the paths begin with.
        left_out: counts what systems put there.
        links: how many levels deep links to folders are entered: one where class folders lie, as any of them may be a
            link. Further down, where a link may lead in a circle, it is given as if it were a file.
    """
    for entry in files.entries(folder):
        path = f"{prefix}{entry.name}"
        if is_of_system(entry.name):
            left_out.add(OF_SYSTEM, path, _count(files, folder, entry))
        elif entry.is_folder and (links > 0 or not entry.is_link):
            yield from files_below(files, f"{folder}/{entry.name}", f"{path}/", left_out, links - 1)
        else:
            yield path, entry


def _count(files: Files, folder: str, entry: Entry) -> int:
    """Files that an entry of a folder stands for."""
    if not entry.is_folder or entry.is_link:
        return 1
    path = f"{folder}/{entry.name}"
    return sum(_count(files, path, inner) for inner in files.entries(path))
