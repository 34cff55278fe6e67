"""A folder of pictures without classes, at any depth, with or without captions beside them."""

from __future__ import annotations

from t2ikit.photos import SUFFIXES
from t2ikit.prepare.sources.captions import caption_ending, caption_in
from t2ikit.prepare.sources.files import Files
from t2ikit.prepare.sources.folder import count_beside, files_below, named_by_split
from t2ikit.prepare.sources.left_out import LeftOut
from t2ikit.prepare.sources.paths import SPLITS
from t2ikit.prepare.sources.photos import NO_CLASS_ID, FileReader, Listing, Photos

NO_PICTURE = "no picture"
LINK = "a link to a folder further down, which is not entered"


def picture_photos(files: Files, root: str, caption_field: str | None) -> dict[str, Photos]:
    """The pictures of a folder, by split; those of a folder without train are "train".

    Args:
        files: how the folder is read.
        root: the folder or its URL.
        caption_field: the option ``--caption-field``: ``txt``, or a field of the JSON beside a picture.

    Raises:
        ValueError: two folders of one split, or a caption that cannot be read.
    """
    folders = named_by_split(files, root)
    if "train" not in folders:
        return {"train": _listed(files, root, "", caption_field)}
    by_split = {split: _listed(files, root, folders[split], caption_field) for split in SPLITS if split in folders}
    count_beside(files, root, folders.values(), by_split["train"].left_out)
    return by_split


def _listed(files: Files, root: str, folder: str, caption_field: str | None) -> Photos:
    left_out, listing, captions = LeftOut(), Listing(), Listing()
    ending = caption_ending(caption_field)
    sizes: dict[str, int] = {}
    for path, entry in files_below(files, f"{root}/{folder}".rstrip("/"), f"{folder}/" if folder else "", left_out):
        if entry.is_folder:
            left_out.add(LINK, path)
        else:
            sizes[path] = entry.size
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
