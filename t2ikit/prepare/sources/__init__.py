"""Where photos come from: folders, tars as they are downloaded, Parquet, WebDataset; on this machine or behind a URL.

Every source gives the same object, an :class:`ImageList`, whose photos are read one by one by their number, from loader
processes. ImageNet's tars and the folder that they unpack to give the same list, in the same order.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from t2ikit.photos import SUFFIXES
from t2ikit.prepare.image_options import ImageOptions, Kind, Sources
from t2ikit.prepare.sources.classes import resolve
from t2ikit.prepare.sources.files import Files, SourceLost
from t2ikit.prepare.sources.folder import folder_photos, split_folders
from t2ikit.prepare.sources.keys import Keys
from t2ikit.prepare.sources.left_out import LeftOut
from t2ikit.prepare.sources.parquet import parquet_photos
from t2ikit.prepare.sources.paths import SPLITS, expand, files_of, is_pattern
from t2ikit.prepare.sources.photos import Photos, Reader
from t2ikit.prepare.sources.pictures import picture_photos
from t2ikit.prepare.sources.tars.listing import tar_photos
from t2ikit.prepare.steps import hash_of
from t2ikit.rng import permutation

__all__ = ["ImageList", "SourceLost", "find_images"]

FORMS = (
    "a folder of class folders, or one with train/ and val/; a folder of pictures without classes (--kind pictures); a "
    "folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or one of these tars; a folder or pattern of "
    "Parquet files; a folder or pattern of "
    "WebDataset tars, such as 'shards/train-{000..146}.tar'; each also behind s3://, gs://, hf:// or https://"
)

_FEW = 20
"""A folder with more folders than this holds class folders, not folders of shards."""


@dataclass(frozen=True, eq=False)
class ImageList:
    """The photos of one split, in the order in which they will be stored; goes to loader processes.

    Attributes:
        root: the source; for class folders, the folder below which the keys are paths.
        keys: [N] name of every photo: its path below the source, with forward slashes.
        sizes: [N] int64 bytes, -1 where the source does not tell.
        class_ids: [N] int64.
        class_names: name of every class that occurs.
        sha256: of the keys, sizes and classes, whatever the order.
        reader: reads a photo by its position in the source.
        left_out: what lies in the source and is none of its photos; of val only where val has a source of its own.
        captions: of all photos of the source, if it holds them, by their position in it.
    """

    root: Path
    keys: Keys
    sizes: np.ndarray
    class_ids: np.ndarray
    class_names: dict[int, str]
    sha256: str
    reader: Reader
    left_out: LeftOut = field(default_factory=LeftOut)
    captions: Keys | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def caption(self, index: int) -> str | None:
        """The caption of photo ``index``, empty if it has none; None from a source without captions."""
        return None if self.captions is None else self.captions[self.keys.position(index)]

    def read(self, index: int) -> bytes:
        """The bytes of photo ``index``, from wherever they are.

        Raises:
            OSError: this photo cannot be read: no file, no permission, a damaged part. ``strerror`` is the reason.
            SourceLost: the source itself cannot be read (network, disk, too many open files); to continue would
                take good photos for bad ones.
        """
        return self.reader.read(self.keys.position(index))

    def where(self, index: int) -> str:
        """Where photo ``index`` lies, for messages."""
        return self.reader.where(self.keys.position(index))

    def take(self, which: np.ndarray) -> ImageList:
        """Some of the photos, by their indices, in that order; ``sha256`` stays that of the whole list."""
        class_ids, sizes = self.class_ids[which], self.sizes[which]
        names = {int(class_id): self.class_names[int(class_id)] for class_id in np.unique(class_ids)}
        return replace(self, keys=self.keys.take(which), sizes=sizes, class_ids=class_ids, class_names=names)


def find_images(
    source: str | os.PathLike[str],
    class_names: str | None = None,
    val_share: float = Sources.val_share,
    seed: int = ImageOptions.seed,
    *,
    val_source: str | os.PathLike[str] | None = None,
    val_labels: str | None = None,
    label_field: str | None = None,
    caption_field: str | None = None,
    index: str | os.PathLike[str] | None = None,
    kind: Kind = "auto",
    train_only: bool = False,
) -> dict[str, ImageList]:
    """Lists the photos of a source, shuffled: in the order of the folders every chunk would hold one class.

    Args:
        source: see ``FORMS``; its names and first bytes tell the form.
        class_names: file with one ``folder<TAB>name`` a line, for classes that are not ImageNet's; a class's number is
            its line, from 0. The word "imagenet" says that a source which numbers its classes means ImageNet's.
        val_share: which share of a source without val is held out; a photo's key and the seed decide.
        seed: decides the order.
        val_source: where val comes from, if not from ``source``.
        val_labels: ground truth of ImageNet's validation photos, if it does not lie beside them.
        label_field: column of a Parquet file, or field of a WebDataset's JSON, that holds the class.
        caption_field: column of a Parquet file, field of a WebDataset's JSON, or "txt", that holds the caption of a
            photo; the photos then need no class.
        index: folder that keeps the index of tars; without it, it is made again in every call.
        kind: what the sources are, where names and first bytes would say something else.
        train_only: take all photos of train and hold none out; photos of val are not read.

    Returns:
        The lists of "train" and "val", or of "train" alone.

    Raises:
        FileNotFoundError: no such folder or file; names the option.
        ValueError: no photos, classes without a name, or something that cannot be read.

    Example:
        >>> lists = find_images("imagenet/ILSVRC2012_img_train.tar", val_source="imagenet/ILSVRC2012_img_val.tar")
        ... # doctest: +SKIP
        >>> content = lists["train"].read(0)  # doctest: +SKIP
    """
    if not 0 < val_share < 1:
        raise ValueError(f"--val-share must lie between 0 and 1; got {val_share}")
    options = _Options(val_labels, label_field, caption_field, Path(index) if index is not None else None, kind)
    origins = dict.fromkeys(SPLITS, str(source))
    by_split = _photos_of(str(source), "--source", options)
    if val_source is not None:
        others = _photos_of(str(val_source), "--val-source", options)
        if not others:
            raise ValueError(f"{val_source} holds no photos: give --val-source {FORMS}")
        by_split["val"], origins["val"] = others["val" if "val" in others else "train"], str(val_source)
    if not by_split:
        raise ValueError(f"{source} holds no photos: give --source {FORMS}")
    if train_only and "val" in by_split:
        held_back = by_split.pop("val")
        if by_split:
            by_split["train"].left_out.add("of val, which --into does not read", held_back.keys[0], len(held_back))
    if "train" not in by_split:
        raise ValueError(f"{source} holds val only: give the source of train with --source, this one with --val-source")
    for split, photos in by_split.items():
        _refuse_doubles(photos, "--source" if split == "train" or val_source is None else "--val-source")
    resolved = {split: resolve(photos, class_names, origins[split]) for split, photos in by_split.items()}
    kept_positions = {split: np.arange(len(photos)) for split, photos in by_split.items()}
    if "val" not in by_split and not train_only:
        by_split["val"], resolved["val"] = replace(by_split["train"], left_out=LeftOut()), resolved["train"]
        held_out = _held_out(by_split["train"].keys, val_share, seed)
        kept_positions = {"train": np.flatnonzero(~held_out), "val": np.flatnonzero(held_out)}
    lists = {}
    for split in [split for split in SPLITS if split in by_split]:
        photos, (class_ids, names), positions = by_split[split], resolved[split], kept_positions[split]
        if not len(positions):
            raise ValueError(
                f"{split} has no photos: {origins[split]} needs at least a few photos per class (--source), or hold "
                f"out another share (--val-share){_not_read(by_split['train'].left_out)}"
            )
        identity = _identity(photos, class_ids, positions)
        whole = ImageList(
            Path(origins[split]),
            photos.keys,
            photos.sizes,
            class_ids,
            names,
            identity,
            photos.reader,
            photos.left_out,
            photos.captions,
        )
        lists[split] = whole.take(_order(photos, positions, split, seed))
    return lists


@dataclass(frozen=True)
class _Options:
    """The options of every source; see :func:`find_images`."""

    val_labels: str | None
    label_field: str | None
    caption_field: str | None
    index: Path | None
    kind: Kind


def _photos_of(source: str, option: str, options: _Options) -> dict[str, Photos]:
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


def _of_files(files: Files, paths: Sequence[str], options: _Options) -> dict[str, Photos] | None:
    """The photos of Parquet files or of tars; None for anything else."""
    if options.kind in ("auto", "parquet") and all(path.endswith(".parquet") for path in paths):
        return parquet_photos(files, paths, options.label_field, options.caption_field)
    if options.kind not in ("parquet", "pictures") and all(path.endswith(".tar") for path in paths):
        fields = options.label_field, options.caption_field
        return tar_photos(files, paths, options.val_labels, fields, options.index, options.kind)
    return None


def _in_folder(files: Files, root: str, option: str, options: _Options) -> dict[str, Photos]:
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


def _class_folders(files: Files, root: str, options: _Options) -> dict[str, Photos]:
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


def _refuse_doubles(photos: Photos, option: str) -> None:
    """Refuses two photos of one key, by which captions, lists of bad files and held-out parts know a photo.

    Raises:
        ValueError: names the option, and says where both lie.
    """
    double = photos.keys.repeated()
    if double is not None:
        places = " and ".join(photos.reader.where(position) for position in double)
        raise ValueError(
            f"two photos are called {photos.keys[double[0]]} ({places}): rename one of them, or give {option} without "
            "one of them"
        )


def _held_out(keys: Keys, share: float, seed: int) -> np.ndarray:
    """[N] bool: by a hash of the key, so that a photo stays on its side when others are added."""
    start = f"{seed}\0".encode()
    hashes = (hash_of(start + keys.encoded(index)) for index in range(len(keys)))
    return np.fromiter((value < share * 2**64 for value in hashes), bool, len(keys))


def _not_read(left_out: LeftOut) -> str:
    """What a source holds besides, where a set is empty: its photos may lie in a folder of another name."""
    beside = "; ".join(
        f"{count:,} files {reason} (first {first})" for reason, (count, first) in left_out.reasons.items()
    )
    return f"; not read: {beside}" if beside else ""


def _order(photos: Photos, positions: np.ndarray, split: str, seed: int) -> np.ndarray:
    """The positions in the order of the set: shuffled, but what is read at once stays together."""
    shuffled = positions[permutation(seed, f"prepare-{split}", 0, len(positions))]
    if photos.runs is None:
        return shuffled
    rank = permutation(seed, f"prepare-{split}-runs", 0, len(photos.runs))
    run = np.searchsorted(photos.runs, shuffled, side="right") - 1
    return shuffled[np.argsort(rank[run], kind="stable")]


def _identity(photos: Photos, class_ids: np.ndarray, positions: np.ndarray) -> str:
    digest = hashlib.sha256(photos.stamp.encode())
    for position in positions:
        digest.update(photos.keys.encoded(position))
        digest.update(f"\t{photos.sizes[position]}\t{class_ids[position]}\n".encode())
        if photos.captions is not None:
            digest.update(photos.captions.encoded(position) + b"\n")
    return digest.hexdigest()
