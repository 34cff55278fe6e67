"""The photos of a source as lists, one a split, in the order in which they will be stored."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from t2ikit.prepare.image_options import ImageOptions, Kind, Sources
from t2ikit.prepare.sources.classes import resolve
from t2ikit.prepare.sources.forms import FORMS, SourceOptions, photos_of
from t2ikit.prepare.sources.keys import Keys
from t2ikit.prepare.sources.left_out import LeftOut
from t2ikit.prepare.sources.paths import SPLITS
from t2ikit.prepare.sources.photos import Photos, Reader
from t2ikit.prepare.steps import hash_of
from t2ikit.rng import permutation


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
    options = SourceOptions(val_labels, label_field, caption_field, Path(index) if index is not None else None, kind)
    origins = dict.fromkeys(SPLITS, str(source))
    by_split = photos_of(str(source), "--source", options)
    if val_source is not None:
        others = photos_of(str(val_source), "--val-source", options)
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
