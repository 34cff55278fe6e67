"""Photos in tars that are not unpacked: ImageNet as it is downloaded, folders in a tar, WebDataset shards.

The index of a tar is made in one pass over its headers and kept in a file, if there is a folder for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from t2ikit.files import write_whole
from t2ikit.prepare.sources.classes import wnid_in
from t2ikit.prepare.sources.files import Files
from t2ikit.prepare.sources.folder import SPLITS
from t2ikit.prepare.sources.keys import Keys
from t2ikit.prepare.sources.paths import split_of
from t2ikit.prepare.sources.photos import Listing, PartReader, Photos
from t2ikit.prepare.sources.tars.tar import OpenTar, first_member
from t2ikit.prepare.sources.tars.webdataset import IMAGE_ENDINGS, samples
from t2ikit.prepare.sources.truth import Truth, truth_of

_Photo = tuple[str, int, int, int, str | int]
"""Key, index of the tar, offset, size, label."""

_VERSION = 2
"""Of the kept index; another one is made anew."""


def tar_photos(
    files: Files, paths: Sequence[str], labels: str | None, field: str | None, index: Path | None
) -> dict[str, Photos]:
    """The photos of tars, by split; those of tars that name none are "train".

    Args:
        files: how they are read.
        paths: the tars, all of one kind.
        labels: the option ``--val-labels``.
        field: the option ``--label-field``.
        index: folder that keeps the index.

    Raises:
        FileNotFoundError, ValueError: what is wrong with which file.
    """
    for path in paths:
        if not files.is_file(path):
            raise FileNotFoundError(f"there is no file {path}: --source names it")
    groups: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        kind = _kind(files, path, groups)
        split = {"validation": "val", "tar of tars": "train"}.get(kind, split_of(path))
        groups.setdefault((kind, split), []).append(path)
    by_split: dict[str, Photos] = {}
    for (kind, split), members in groups.items():
        truth = truth_of(labels, members[0]) if kind == "validation" else None
        for name, photos in _indexed(files, kind, split, tuple(members), truth, field, index).items():
            if name in by_split:
                raise ValueError(
                    f"{members[0]} and other tars of --source hold photos of {name}, and are not of one kind: give "
                    "tars of one kind with --source, and those of val with --val-source"
                )
            by_split[name] = photos
    return {split: photos for split, photos in by_split.items() if split in SPLITS}


def _kind(files: Files, path: str, groups: dict[tuple[str, str], list[str]]) -> str:
    if re.fullmatch(r"n\d{8}\.tar", path.rpartition("/")[2]):
        return "class"
    if any(kind == "webdataset" for kind, _ in groups):
        return "webdataset"  # of a thousand shards only the first is opened to see what it is
    member = first_member(files, path).name
    if member.endswith(".tar"):
        return "tar of tars"
    if member.rpartition("/")[2].startswith("ILSVRC2012_val_"):
        return "validation"
    if member.rpartition("/")[2].startswith("ILSVRC2012_test_"):
        raise ValueError(f"{path} holds the test photos of ImageNet, whose classes are not public: leave it out")
    if "/" in member and member.lower().endswith(IMAGE_ENDINGS) and _class_folder(member)[1]:
        with OpenTar(files, path) as tar:
            names = [member.name for member, _ in zip(tar.members(), range(8), strict=False)]
        if all(name.lower().endswith(IMAGE_ENDINGS) for name in names):
            return "folder"
    return "webdataset"


def _indexed(
    files: Files,
    kind: str,
    split: str,
    paths: tuple[str, ...],
    truth: Truth | None,
    field: str | None,
    index: Path | None,
) -> dict[str, Photos]:
    """The photos by split, from the kept index if the tars are the same as then."""
    stamps = [[path, *files.stamp(path)] for path in paths]
    inputs = [_VERSION, kind, split, stamps, field, truth and [truth.by_number, truth.by_name]]
    name = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]
    kept = index / f"{name}.npz" if index else None
    if kept is not None and kept.is_file():
        return _load(kept, files, paths)
    listings: dict[str, tuple[Listing, array[int], array[int]]] = {}
    for key, tar_index, offset, size, label in _walk(files, kind, split, paths, truth, field):
        in_split = kind == "folder" and key.startswith(("train/", "val/"))
        photo_split = key.partition("/")[0] if in_split else split or "train"
        listing, tar_indices, offsets = listings.setdefault(photo_split, (Listing(), array("i"), array("q")))
        listing.add(key, size, label)
        tar_indices.append(tar_index)
        offsets.append(offset)
    by_split = {}
    for photo_split, (listing, tar_indices, offsets) in listings.items():
        sizes = listing.sizes
        reader = PartReader(files, paths, np.array(tar_indices, np.int32), np.array(offsets, np.int64), sizes)
        by_split[photo_split] = Photos(listing.keys, sizes, listing.labels, reader, listing.texts)
    if kept is not None:
        _save(kept, by_split)
    return by_split


def _walk(
    files: Files, kind: str, split: str, paths: tuple[str, ...], truth: Truth | None, field: str | None
) -> Iterator[_Photo]:
    """The photos in the order of class folders, so that a tar and its unpacked folder give the same list."""
    tar_sizes = [files.stamp(path)[0] for path in paths]
    total = sum(tar_sizes)
    prefix = f"{split}/" if split else ""
    with tqdm(total=total, desc=f"index {split or 'tar'}", unit="B", unit_scale=True, mininterval=0.5) as bar:
        for tar_index, path in enumerate(paths):
            with OpenTar(files, path, tar_sizes[tar_index], bar.update) as tar:
                if kind == "tar of tars":
                    inner = sorted(member for member in tar.members() if member.name.endswith(".tar"))
                    bar.reset(total)
                    for member in inner:
                        tar.require_file(member)
                        name, start, size = member
                        yield from _class_tar(tar, tar_index, prefix, name, start, start + size)
                elif kind == "class":
                    yield from _class_tar(tar, tar_index, prefix, path, 0, None)
                elif kind == "validation" and truth is not None:
                    photos = ((truth.wnid_of(member.name), member) for member in tar.members())
                    for wnid, member in sorted(photos):
                        name = member.name.rpartition("/")[2]
                        yield f"{prefix}{wnid}/{name}", tar_index, member.offset, member.size, wnid
                elif kind == "folder":
                    yield from sorted(_folder_members(tar, tar_index, prefix), key=lambda photo: photo[0])
                else:
                    shard = path.rpartition("/")[2].removesuffix(".tar")
                    for name, member, label in samples(tar, field):
                        yield f"{prefix}{shard}/{name}", tar_index, member.offset, member.size, label
        bar.update(total - bar.n)


def _class_tar(tar: OpenTar, tar_index: int, prefix: str, name: str, start: int, end: int | None) -> Iterator[_Photo]:
    wnid = name.rpartition("/")[2].removesuffix(".tar")
    for member in sorted(member for member in tar.members(start, end) if not member.name.startswith(".")):
        yield f"{prefix}{wnid}/{member.name}", tar_index, member.offset, member.size, wnid


def _folder_members(tar: OpenTar, tar_index: int, prefix: str) -> Iterator[_Photo]:
    for member in tar.members():
        if member.name.rpartition("/")[2].startswith("."):
            continue
        key, folder = _class_folder(member.name)
        if not folder:
            continue  # a readme
        if not key.startswith(prefix):
            key = f"{prefix}{key}"
        yield key, tar_index, member.offset, member.size, folder


def _class_folder(name: str) -> tuple[str, str]:
    """The key of ``imagenet/train/n01440764/x.JPEG``, from its split on, and its class folder."""
    names = name.split("/")
    for split in SPLITS:
        if split in names[:-2]:
            names = names[names.index(split) :]
            return "/".join(names), names[1]
    wnid = next((name for name in names[:-1] if wnid_in(name) == name), None)
    if wnid is not None:
        return "/".join(names[names.index(wnid) :]), wnid
    return name, names[-2] if len(names) > 1 else ""


def _save(path: Path, by_split: dict[str, Photos]) -> None:
    arrays: dict[str, Any] = {}
    texts: dict[str, list[str] | None] = {}
    for split, photos in by_split.items():
        reader = photos.reader
        assert isinstance(reader, PartReader)
        texts[split] = None if photos.texts is None else list(photos.texts)
        arrays |= {
            f"{split}.text": photos.keys.text,
            f"{split}.starts": photos.keys.starts,
            f"{split}.sizes": photos.sizes,
            f"{split}.labels": photos.labels,
            f"{split}.numbers": reader.file_of,
            f"{split}.offsets": reader.offsets,
        }
    content = io.BytesIO()
    arrays["texts"] = np.frombuffer(json.dumps(texts).encode(), np.uint8)
    np.savez(content, **arrays)
    write_whole(path, content.getvalue())


def _load(path: Path, files: Files, paths: tuple[str, ...]) -> dict[str, Photos]:
    by_split = {}
    with np.load(path) as stored:
        for split, texts in json.loads(stored["texts"].tobytes()).items():
            values = {
                name: stored[f"{split}.{name}"] for name in ("text", "starts", "sizes", "labels", "numbers", "offsets")
            }
            reader = PartReader(files, paths, values["numbers"], values["offsets"], values["sizes"])
            keys = Keys(values["text"], values["starts"])
            by_split[split] = Photos(keys, values["sizes"], values["labels"], reader, texts and tuple(texts))
    return by_split
