"""The forms of a source of photos, told by names and first bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2ikit.photos import SUFFIXES
from t2ikit.prepare.image_options import Kind
from t2ikit.prepare.sources.files import Files, SourceLost
from t2ikit.prepare.sources.folder import folder_photos, split_folders
from t2ikit.prepare.sources.parquet import parquet_photos
from t2ikit.prepare.sources.paths import expand, files_of, is_pattern
from t2ikit.prepare.sources.photos import Photos
from t2ikit.prepare.sources.pictures import picture_photos
from t2ikit.prepare.sources.tars.listing import tar_photos

FORMS = (
    "a folder of class folders, or one with train/ and val/; a folder of pictures without classes (--kind pictures); a "
    "folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or one of these tars; a folder or pattern of "
    "Parquet files; a folder or pattern of "
    "WebDataset tars, such as 'shards/train-{000..146}.tar'; each also behind s3://, gs://, hf:// or https://"
)

_FEW = 20
"""A folder with more folders than this holds class folders, not folders of shards."""


@dataclass(frozen=True)
class SourceOptions:
    """The options of every source; see :func:`find_images`."""

    val_labels: str | None
    label_field: str | None
    caption_field: str | None
    index: Path | None
    kind: Kind


def photos_of(source: str, option: str, options: SourceOptions) -> dict[str, Photos]:
    """The photos of a source, by split; names and first bytes tell its form."""
    if "://" not in source:
        source = os.path.expanduser(source)
    source = source if source.endswith("://") else source.rstrip("/") or "/"
    files = files_of(source)
    try:
        if files.is_folder(source):
            return _in_folder(files, source, option, options)
        if is_pattern(source) and not files.is_file(source):
            paths = expand(source)
        elif files.is_file(source):
            paths = [source]
        else:
            raise FileNotFoundError(f"there is no folder or file {source}: give {option} {FORMS}")
        photos = _of_files(files, paths, options)
        if photos is not None:
            return photos
    except SourceLost as error:
        raise ValueError(f"{option}: {error}") from error
    except PermissionError as error:
        raise ValueError(
            f"{option}: {error.filename or source} may not be read by this user: {error.strerror}"
        ) from error
    packed = next((path for path in paths if path.endswith((".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip"))), None)
    if packed:
        raise ValueError(
            f"{packed} is compressed, so that a photo cannot be read by itself: unpack it (gunzip leaves a tar, which "
            f"is enough), and give that with {option}"
        )
    asked = "" if options.kind == "auto" else f" as --kind {options.kind}"
    raise ValueError(f"{paths[0]} has no form that photos can be read from{asked}: give {option} {FORMS}")


def _of_files(files: Files, paths: Sequence[str], options: SourceOptions) -> dict[str, Photos] | None:
    """The photos of Parquet files or of tars; None for anything else."""
    if options.kind in ("auto", "parquet") and all(path.endswith(".parquet") for path in paths):
        return parquet_photos(files, paths, options.label_field, options.caption_field)
    if options.kind not in ("parquet", "pictures") and all(path.endswith(".tar") for path in paths):
        fields = options.label_field, options.caption_field
        return tar_photos(files, paths, options.val_labels, fields, options.index, options.kind)
    return None


def _in_folder(files: Files, root: str, option: str, options: SourceOptions) -> dict[str, Photos]:
    """A folder of class folders, of tars or of Parquet files; unpacked photos are preferred to their tars."""
    if options.kind == "pictures":
        return picture_photos(files, root, options.caption_field)
    if options.kind == "folders" or (options.kind == "auto" and split_folders(files, root)):
        return _class_folders(files, root, options)
    names = [entry.name for entry in files.visible(root) if not entry.is_folder]
    imagenet = [name for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar") if name in names]
    shards = [f"{root}/{name}" for name in imagenet] or sorted(_shards(files, root))
    tables = [path for path in shards if path.endswith(".parquet")]
    tars = [path for path in shards if path.endswith(".tar")]
    # A downloader of pictures writes a table of what it has done beside every tar.
    beside_tars = all(f"{path.removesuffix('.parquet')}.tar" in tars for path in tables)
    shards = tables if options.kind == "parquet" or (options.kind == "auto" and not beside_tars) else tars
    if not shards and options.kind != "auto":
        raise ValueError(f"{root} holds no file of --kind {options.kind}: give {option} {FORMS}")
    if not shards:
        return _class_folders(files, root, options)
    if not imagenet and options.kind == "auto" and (photo := _loose_photo(files, root)):
        raise ValueError(
            f"{root} holds both {shards[0].removeprefix(f'{root}/')} and photos, such as {photo}: say with --kind "
            "which of them is the source (folders for the photos, webdataset or parquet)"
        )
    by_split = _of_files(files, shards, options) or {}
    if by_split and shards is tars and tables:
        next(iter(by_split.values())).left_out.add("tables beside tars of the same name", tables[0], len(tables))
    return by_split


def _class_folders(files: Files, root: str, options: SourceOptions) -> dict[str, Photos]:
    if options.caption_field is not None:
        raise ValueError(
            f"{root} is a folder of class folders, which hold no captions: say --kind pictures if the captions lie "
            "beside the pictures, or leave out --caption-field"
        )
    return folder_photos(files, root, options.val_labels)


def _shards(files: Files, folder: str, depth: int = 2) -> list[str]:
    """Tars and Parquet files in a folder or a few folders below it."""
    entries = list(files.visible(folder))
    paths = [f"{folder}/{entry.name}" for entry in entries if entry.name.endswith((".tar", ".parquet"))]
    folders = [entry.name for entry in entries if entry.is_folder]
    if depth and len(folders) <= _FEW:
        for name in folders:
            paths += _shards(files, f"{folder}/{name}", depth - 1)
    return paths


def _loose_photo(files: Files, root: str) -> str | None:
    """A photo in one of the folders beside shards, if there is any."""
    for folder in (entry.name for entry in files.visible(root) if entry.is_folder):
        for entry in files.visible(f"{root}/{folder}"):
            if not entry.is_folder and entry.name.lower().endswith(SUFFIXES):
                return f"{folder}/{entry.name}"
    return None
