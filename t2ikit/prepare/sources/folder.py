"""Class folders: one folder per class, here or behind a URL."""

from __future__ import annotations

from collections.abc import Iterator

from t2ikit.prepare.sources.files import Files
from t2ikit.prepare.sources.photos import FileReader, Listing, Photos
from t2ikit.prepare.sources.truth import Truth, truth_of

SPLITS = ("train", "val")


def folder_photos(files: Files, root: str, labels: str | None) -> dict[str, Photos]:
    """The photos of a folder of class folders, or of one with ``train`` and ``val``.

    Args:
        files: how the folder is read.
        root: the folder or its URL.
        labels: the option ``--val-labels``, for a ``val`` without class folders.
    """
    splits = {split for split in SPLITS if files.is_folder(f"{root}/{split}")}
    if not {"train"} & splits:
        return {"train": _listed(files, root, "", None)}
    by_split = {"train": _listed(files, root, "train", None)}
    if "val" in splits:
        flat = not any(entry.is_folder for entry in files.entries(f"{root}/val"))
        by_split["val"] = _listed(files, root, "val", truth_of(labels, f"{root}/val") if flat else None)
    return by_split


def _listed(files: Files, root: str, split: str, truth: Truth | None) -> Photos:
    listing = Listing()
    folder = f"{root}/{split}".rstrip("/")
    prefix = f"{split}/" if split else ""
    if truth is not None:
        for entry in sorted(files.entries(folder)):
            if not entry.is_folder:
                listing.add(f"{prefix}{entry.name}", entry.size, truth.wnid_of(entry.name))
    else:
        for name in sorted(entry.name for entry in files.entries(folder) if entry.is_folder):
            for path, size in sorted(_below(files, f"{folder}/{name}", f"{prefix}{name}")):
                listing.add(path, size, name)
    keys, sizes = listing.keys, listing.sizes
    return Photos(keys, sizes, listing.labels, FileReader(files, root, keys, sizes), listing.texts)


def _below(files: Files, folder: str, key: str) -> Iterator[tuple[str, int]]:
    for entry in files.entries(folder):
        if entry.is_folder and not entry.is_link:
            yield from _below(files, f"{folder}/{entry.name}", f"{key}/{entry.name}")
        else:
            yield f"{key}/{entry.name}", entry.size
