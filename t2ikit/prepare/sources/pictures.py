"""A folder of pictures without classes, at any depth, with or without captions beside them."""

from __future__ import annotations

from collections.abc import Iterator

from t2ikit.photos import SUFFIXES
from t2ikit.prepare.sources.captions import caption_ending, caption_in
from t2ikit.prepare.sources.files import Files
from t2ikit.prepare.sources.folder import BESIDE
from t2ikit.prepare.sources.left_out import OF_SYSTEM, LeftOut, is_of_system
from t2ikit.prepare.sources.paths import SPLITS, split_of_folder
from t2ikit.prepare.sources.photos import NO_CLASS_ID, FileReader, Listing, Photos

NO_PICTURE = "no picture"


def picture_photos(files: Files, root: str, caption_field: str | None) -> dict[str, Photos]:
    """The pictures of a folder, by split; those of a folder without train are "train".

    Args:
        files: how the folder is read.
        root: the folder or its URL.
        caption_field: the option ``--caption-field``: ``txt``, or a field of the JSON beside a picture.

    Raises:
        ValueError: a caption that cannot be read.
    """
    entries = sorted(files.visible(root))
    folders = {split_of_folder(entry.name): entry.name for entry in entries if entry.is_folder}
    splits = {split: folders[split] for split in SPLITS if split in folders}
    if "train" not in splits:
        splits = {"train": ""}
    by_split = {split: _listed(files, root, folder, caption_field) for split, folder in splits.items()}
    if splits["train"]:
        for entry in entries:
            if entry.name not in splits.values():
                by_split["train"].left_out.add(BESIDE, entry.name)
    return by_split


def _listed(files: Files, root: str, folder: str, caption_field: str | None) -> Photos:
    left_out, listing, captions = LeftOut(), Listing(), Listing()
    ending = caption_ending(caption_field)
    sizes = dict(_below(files, f"{root}/{folder}".rstrip("/"), f"{folder}/" if folder else "", left_out))
    texts = {path for path in sizes if ending and path.endswith(ending)}
    for path in sorted(sizes.keys() - texts):
        stem, dot, suffix = path.rpartition(".")
        if f"{dot}{suffix}".lower() not in SUFFIXES:
            left_out.add(NO_PICTURE, path)
            continue
        listing.add(path, sizes[path], NO_CLASS_ID)
        if caption_field is not None:
            beside = f"{stem}{ending}"
            texts.discard(beside)
            contents = {ending: files.read(f"{root}/{beside}")} if beside in sizes else {}
            captions.add(caption_in(contents, caption_field, path), -1, NO_CLASS_ID)
    for path in sorted(texts):
        left_out.add("captions without a picture", path)
    keys = listing.keys
    return Photos(
        keys,
        listing.sizes,
        listing.labels,
        FileReader(files, root, keys, listing.sizes),
        left_out=left_out,
        captions=captions.keys if caption_field is not None else None,
        classless=True,
    )


def _below(files: Files, folder: str, prefix: str, left_out: LeftOut) -> Iterator[tuple[str, int]]:
    """Path and size of every file below a folder; links to folders are not followed."""
    for entry in files.entries(folder):
        path = f"{prefix}{entry.name}"
        if is_of_system(entry.name):
            left_out.add(OF_SYSTEM, path)
        elif entry.is_folder and not entry.is_link:
            yield from _below(files, f"{folder}/{entry.name}", f"{path}/", left_out)
        elif not entry.is_folder:
            yield path, entry.size
