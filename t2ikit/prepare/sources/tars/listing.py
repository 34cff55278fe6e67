"""Photos in tars that are not unpacked: ImageNet as it is downloaded, folders in a tar, WebDataset shards.

The index of a tar is made in one pass over its headers and kept in a file, if there is a folder for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from t2ikit.files import parse_json, write_whole
from t2ikit.photos import SUFFIXES
from t2ikit.prepare.image_options import Kind
from t2ikit.prepare.sources.classes import wnid_in
from t2ikit.prepare.sources.files import Files
from t2ikit.prepare.sources.folder import BESIDE, NO_CLASS
from t2ikit.prepare.sources.keys import Keys
from t2ikit.prepare.sources.left_out import OF_SYSTEM, LeftOut, is_of_system
from t2ikit.prepare.sources.paths import SPLITS, shard_names, split_of, split_of_folder
from t2ikit.prepare.sources.photos import NO_CLASS_ID, Listing, PartReader, Photos
from t2ikit.prepare.sources.tars.tar import Member, OpenTar
from t2ikit.prepare.sources.tars.webdataset import LABEL_ENDINGS, samples, split_ending
from t2ikit.prepare.sources.truth import Truth, truth_of

_Photo = tuple[str, str, int, int, int, str | int]
"""Split, key, index of the tar, offset, size, label."""

_VERSION = 3
"""Of the kept index; another one is made anew."""

_EVIDENCE = 16
"""Photos in class folders after which a tar is taken for one of class folders."""
_NO_SPLIT = "of a split that is not read"


class _Source(NamedTuple):
    """Tars of one kind and split, and the options that say how they are read."""

    files: Files
    kind: str
    split: str
    paths: tuple[str, ...]
    truth: Truth | None
    field: str | None
    caption_field: str | None


def tar_photos(
    files: Files,
    paths: Sequence[str],
    labels: str | None,
    fields: tuple[str | None, str | None],
    index: Path | None,
    kind: Kind = "auto",
) -> dict[str, Photos]:
    """The photos of tars, by split; those of tars that name none are "train".

    Args:
        files: how they are read.
        paths: the tars, all of one kind.
        labels: the option ``--val-labels``.
        fields: the options ``--label-field`` and ``--caption-field``.
        index: folder that keeps the index.
        kind: the option ``--kind``.

    Raises:
        FileNotFoundError, ValueError: what is wrong with which file.
    """
    for path in paths:
        if not files.is_file(path):
            raise FileNotFoundError(f"there is no file {path}: --source names it")
    groups: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        kind_of_tar = _kind(files, path, groups, kind)
        split = {"validation": "val", "tar of tars": "train"}.get(kind_of_tar, split_of(path))
        groups.setdefault((kind_of_tar, split), []).append(path)
    by_split: dict[str, Photos] = {}
    for (kind_of_tar, split), members in groups.items():
        truth = truth_of(labels, members[0]) if kind_of_tar == "validation" else None
        if fields[1] is not None and kind_of_tar != "webdataset":
            raise ValueError(f"{members[0]} is no WebDataset, and holds no captions: leave out --caption-field")
        source = _Source(files, kind_of_tar, split, tuple(members), truth, *fields)
        for name, photos in _indexed(source, index).items():
            if name in by_split:
                raise ValueError(
                    f"{members[0]} and other tars of --source hold photos of {name}, and are not of one kind: give "
                    "tars of one kind with --source, and those of val with --val-source"
                )
            by_split[name] = photos
    read = {split: photos for split, photos in by_split.items() if split in SPLITS}
    for split, photos in by_split.items():
        if split not in SPLITS and read:
            next(iter(read.values())).left_out.add(_NO_SPLIT, photos.keys[0], len(photos))
    return read


def _kind(files: Files, path: str, groups: dict[tuple[str, str], list[str]], asked: Kind) -> str:
    """What a tar is, by its first members that are photos, labels or tars."""
    if re.fullmatch(r"n\d{8}\.tar", path.rpartition("/")[2]):
        return "class"
    if any(kind == "webdataset" for kind, _ in groups):
        return "webdataset"  # of a thousand shards only the first is opened to see what it is
    photos, labels, count = set[str](), set[str](), 0
    with OpenTar(files, path) as tar:
        for member in tar.members():
            count += 1
            name = member.name.rpartition("/")[2]
            stem, ending = split_ending(member.name)
            if is_of_system(member.name):
                continue
            if ending == ".tar":
                return "tar of tars"
            if name.startswith("ILSVRC2012_val_"):
                return "validation"
            if name.startswith("ILSVRC2012_test_"):
                raise ValueError(
                    f"{path} holds the test photos of ImageNet, whose classes are not public: leave it out"
                )
            if asked != "auto":
                break
            if ending in LABEL_ENDINGS:
                labels.add(stem)
            elif ending in SUFFIXES:
                photos.add(stem)
                if not _class_folder(member.name)[2]:
                    return "webdataset"
            if photos & labels:
                return "webdataset"
            if len(photos) == _EVIDENCE:
                break
    if not count:
        raise ValueError(f"{path} is an empty tar: give another --source")
    return {"auto": "folder" if photos else "webdataset", "folders": "folder"}.get(asked, "webdataset")


def _indexed(source: _Source, index: Path | None) -> dict[str, Photos]:
    """The photos by split, from the kept index if the tars are the same as then."""
    files, paths, truth = source.files, source.paths, source.truth
    stamps = [[path, *files.stamp(path)] for path in paths]
    facts: list[object] = [source.kind, source.split, stamps, source.field, truth and [truth.by_number, truth.by_name]]
    facts += [source.caption_field] if source.caption_field is not None else []
    shards = shard_names(paths, ".tar")
    if source.kind == "webdataset" and any("/" in shard for shard in shards):
        facts.append(shards)  # an earlier index has the keys without these folders
    name = hashlib.sha256(json.dumps([_VERSION, *facts], sort_keys=True).encode()).hexdigest()[:32]
    kept = index / f"{name}.npz" if index else None
    if kept is not None and kept.is_file():
        return _load(kept, files, paths)
    listings: dict[str, tuple[Listing, array[int], array[int]]] = {}
    left_out, captions = LeftOut(), Listing()
    for split, key, tar_index, offset, size, label in _walk(source, left_out, captions):
        listing, tar_indices, offsets = listings.setdefault(split, (Listing(), array("i"), array("q")))
        listing.add(key, size, label)
        tar_indices.append(tar_index)
        offsets.append(offset)
    by_split: dict[str, Photos] = {}
    for split, (listing, tar_indices, offsets) in sorted(listings.items(), key=lambda item: item[0] not in SPLITS):
        sizes = listing.sizes
        reader = PartReader(files, paths, np.array(tar_indices, np.int32), np.array(offsets, np.int64), sizes)
        texts = captions.keys if source.caption_field is not None else None
        photos = _photos(listing.keys, sizes, listing.labels, reader, listing.texts, texts)
        by_split[split] = replace(photos, left_out=LeftOut() if by_split else left_out)
    if kept is not None:
        _save(kept, by_split)
    return by_split


def _photos(
    keys: Keys,
    sizes: np.ndarray,
    labels: np.ndarray,
    reader: PartReader,
    texts: tuple[str, ...] | None,
    captions: Keys | None,
) -> Photos:
    classless = captions is not None and texts is None and bool((labels == NO_CLASS_ID).all())
    return Photos(keys, sizes, labels, reader, texts, captions=captions, classless=classless)


def _walk(source: _Source, left_out: LeftOut, captions: Listing) -> Iterator[_Photo]:
    """The photos in the order of class folders, so that a tar and its unpacked folder give the same list.

    The captions of a WebDataset, all of whose photos are of one split, go to ``captions``.
    """
    tar_sizes = [source.files.stamp(path)[0] for path in source.paths]
    shards = shard_names(source.paths, ".tar")
    total = sum(tar_sizes)
    with tqdm(total=total, desc=f"index {source.split or 'tar'}", unit="B", unit_scale=True, mininterval=0.5) as bar:
        for tar_index, path in enumerate(source.paths):
            with OpenTar(source.files, path, tar_sizes[tar_index], bar.update) as tar:
                if source.kind == "tar of tars":
                    inner = sorted(_visible(tar.members(), left_out, lambda name: name.endswith(".tar"), "no tar"))
                    bar.reset(total)
                    for member in inner:
                        tar.require_file(member)
                        name, start, size = member
                        yield from _class_tar(tar, tar_index, source.split, name, left_out, (start, start + size))
                elif source.kind == "class":
                    yield from _class_tar(tar, tar_index, source.split, path, left_out)
                elif source.kind == "validation" and source.truth is not None:
                    members = _visible(tar.members(), left_out)
                    for wnid, member in sorted((source.truth.wnid_of(member.name), member) for member in members):
                        name = member.name.rpartition("/")[2]
                        yield "val", f"val/{wnid}/{name}", tar_index, member.offset, member.size, wnid
                elif source.kind == "folder":
                    photos = _folder_members(tar, tar_index, source.split, left_out)
                    yield from sorted(photos, key=lambda photo: photo[1])
                else:
                    prefix = f"{source.split}/" if source.split else ""
                    for name, member, label, caption in samples(tar, source.field, source.caption_field, left_out):
                        key = f"{prefix}{shards[tar_index]}/{name}"
                        captions.add(caption, -1, NO_CLASS_ID)
                        yield source.split or "train", key, tar_index, member.offset, member.size, label
        bar.update(total - bar.n)


def _visible(
    members: Iterable[Member], left_out: LeftOut, wanted: Callable[[str], bool] = bool, reason: str = ""
) -> Iterator[Member]:
    """The members without what systems put there, and of the rest those whose name is wanted; counts the others."""
    for member in members:
        if is_of_system(member.name):
            left_out.add(OF_SYSTEM, member.name)
        elif not wanted(member.name):
            left_out.add(reason, member.name)
        else:
            yield member


def _class_tar(
    tar: OpenTar, tar_index: int, split: str, name: str, left_out: LeftOut, span: tuple[int, int | None] = (0, None)
) -> Iterator[_Photo]:
    wnid = name.rpartition("/")[2].removesuffix(".tar")
    prefix = f"{split}/" if split else ""
    for member in sorted(_visible(tar.members(*span), left_out)):
        yield split or "train", f"{prefix}{wnid}/{member.name}", tar_index, member.offset, member.size, wnid


def _folder_members(tar: OpenTar, tar_index: int, split: str, left_out: LeftOut) -> Iterator[_Photo]:
    members = [(*_class_folder(member.name), member) for member in _visible(tar.members(), left_out)]
    _refuse_labels(tar.path, [member.name for *_, member in members])
    has_splits = any(inner in SPLITS for inner, *_ in members)
    for inner, key, folder, member in members:
        if has_splits and not inner:
            left_out.add(BESIDE, member.name)
        elif not folder:
            left_out.add(NO_CLASS, member.name)
        else:
            key = key if inner or not split else f"{split}/{key}"
            yield inner or split or "train", key, tar_index, member.offset, member.size, folder


def _refuse_labels(path: str, names: Iterable[str]) -> None:
    """Refuses a tar of class folders that holds labels beside photos, as WebDataset does.

    Raises:
        ValueError: names the option that says what the tar is.
    """
    photos, labels = set(), set()
    for name in names:
        stem, ending = split_ending(name)
        if ending in LABEL_ENDINGS:
            labels.add(stem)
        elif ending in SUFFIXES:
            photos.add(stem)
    if photos & labels:
        raise ValueError(
            f"{path} is taken for a tar of class folders, and holds labels beside photos ({min(photos & labels)}): say "
            "with --kind webdataset that those are the classes"
        )


def _class_folder(name: str) -> tuple[str, str, str]:
    """The split of ``imagenet/train/n01440764/x.JPEG``, its key, from the split on, and its class folder."""
    names = name.split("/")
    for index, folder in enumerate(names[:-2]):
        if split := split_of_folder(folder):
            return split, "/".join(names[index:]), names[index + 1]
    wnid = next((name for name in names[:-1] if wnid_in(name) == name), None)
    if wnid is not None:
        return "", "/".join(names[names.index(wnid) :]), wnid
    return "", name, names[-2] if len(names) > 1 else ""


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
        if photos.captions is not None:
            arrays |= {f"{split}.captions": photos.captions.text, f"{split}.caption_starts": photos.captions.starts}
    content = io.BytesIO()
    arrays["texts"] = np.frombuffer(json.dumps(texts).encode(), np.uint8)
    left_out = {split: photos.left_out.reasons for split, photos in by_split.items()}
    arrays["left_out"] = np.frombuffer(json.dumps(left_out).encode(), np.uint8)
    np.savez(content, **arrays)
    write_whole(path, content.getvalue())


def _load(path: Path, files: Files, paths: tuple[str, ...]) -> dict[str, Photos]:
    by_split = {}
    with np.load(path) as stored:
        reasons = parse_json(stored["left_out"].tobytes())
        for split, texts in parse_json(stored["texts"].tobytes()).items():
            values = {
                name: stored[f"{split}.{name}"] for name in ("text", "starts", "sizes", "labels", "numbers", "offsets")
            }
            reader = PartReader(files, paths, values["numbers"], values["offsets"], values["sizes"])
            keys = Keys(values["text"], values["starts"])
            left_out = LeftOut({reason: (count, first) for reason, (count, first) in reasons[split].items()})
            names = [f"{split}.captions", f"{split}.caption_starts"]
            captions = Keys(*(stored[name] for name in names)) if names[0] in stored else None
            photos = _photos(keys, values["sizes"], values["labels"], reader, texts and tuple(texts), captions)
            by_split[split] = replace(photos, left_out=left_out)
    return by_split
