"""Photos to square images of one size, stored without loss; files that cannot be used go to a list with the reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t2ikit.augment.cutmix import SETTINGS
from t2ikit.launch import first_rank
from t2ikit.photos import SIDE_BELOW
from t2ikit.prepare.buckets import dealt
from t2ikit.prepare.decoding import Decoding, refusal
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.engine.shards import Results
from t2ikit.prepare.image_options import ImageOptions, Sources
from t2ikit.prepare.photo_lists import list_bad, list_name, photo_lines, same_photos, unlisted, write_bad
from t2ikit.prepare.sets import add_part, parts_done, run_part, shard_size_of, work_folder
from t2ikit.prepare.sources import ImageList, find_images
from t2ikit.prepare.sources.captions import NO_CAPTION
from t2ikit.prepare.sources.photos import NO_CLASS_ID
from t2ikit.prepare.steps import require_disk, sha256_of_json, versions
from t2ikit.records.buckets import bucket_shapes
from t2ikit.records.manifest import MANIFEST_NAME, Manifest, set_names
from t2ikit.records.record_set import RecordSet

IMAGES = "images"
"""Folder of the image sets below the output folder."""

ON_THIS_CPU = Launch("cpu", 1)
"""Images need loader processes, not devices."""

_METADATA_BYTES = 200


def prepare_images(
    source: str,
    out: str | Path,
    size: int,
    *,
    class_names: str | None = None,
    val_share: float = Sources.val_share,
    seed: int = ImageOptions.seed,
    strict: bool = ImageOptions.strict,
    crop: str = ImageOptions.crop,
    min_side: int = ImageOptions.min_side,
    picture_format: str = ImageOptions.picture_format,
    bucket: Sequence[str] | None = None,
    append: bool = ImageOptions.append,
    into: str | None = ImageOptions.into,
    launch: Launch = ON_THIS_CPU,
    shard_size: int | None = None,
    overwrite: bool = False,
    **source_options: Any,
) -> dict[str, Manifest]:
    """Writes the image sets ``out/images/train`` and ``out/images/val``, or those of aspect buckets below these.

    With ``into``, writes that set alone.

    The arguments are the options of ``t2ikit prepare images``; its ``--help`` explains them.

    Args:
        launch: processes that decode.
        source_options: further arguments of ``find_images``.

    Returns:
        The manifests, by split.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: what is wrong with which option.
    """
    if size < 4:
        raise ValueError(f"--size must be at least 4; got {size}")
    if min_side < 0:
        raise ValueError(f"--min-side counts pixels, at least 0; got {min_side}")
    if append and overwrite:
        raise ValueError("--append keeps what is there, --overwrite replaces it: give one of them")
    root = Path(out)
    shapes = bucket_shapes(bucket or ())
    _refuse_mixture(root, shapes)
    if Path(source).is_dir() and root.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"--out {root} lies inside --source {source}: what is written there would be taken for photos")
    index = root / IMAGES / ".index"
    lists = find_images(source, class_names, val_share, seed, index=index, train_only=bool(into), **source_options)
    if into:
        _refuse_set_name(into)
        lists = {into: lists["train"]}
    for images in lists.values() if first_rank() else ():
        for line in images.left_out.lines(str(images.root)):
            print(line)
    step = _Step(
        root,
        str(source),
        (size, size),
        seed,
        strict,
        crop == "random",
        min_side,
        append,
        "" if picture_format == "raw" else picture_format,
        shapes,
        launch,
        shard_size,
        overwrite,
    )
    if not shapes:
        return {split: step.run(split, images) for split, images in lists.items()}
    dealt_lists = {split: dealt(images, shapes, index, split, launch, min_side) for split, images in lists.items()}
    return {
        f"{split}/{name}": replace(step, size=shapes[name]).run(f"{split}/{name}", images)
        for split, of_buckets in dealt_lists.items()
        for name, images in of_buckets.items()
    }


def _refuse_set_name(name: str) -> None:
    """A further set is no split, and no CutMix set, which other steps know by their names.

    Raises:
        ValueError: it has such a name; names ``--into``.
    """
    taken = ("train", "val", *(f"train_{setting}" for setting in SETTINGS))
    if name in taken or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"--into {name}: a further set has a name of its own, of letters, digits, _ and -: train_coco")


def _refuse_mixture(root: Path, shapes: Mapping[str, tuple[int, int]]) -> None:
    """A data set has one shape, or the same buckets in every split.

    Raises:
        FileExistsError: it has others; names ``--bucket``.
    """
    before = [name.partition("/")[2] for name in set_names(root / IMAGES)]
    strange = sorted(set(before) - set(shapes or ("",)))
    if strange:
        had = f"the buckets {', '.join(strange)}" if any(strange) else "images of one size, without buckets"
        raise FileExistsError(f"{root / IMAGES} has {had}: give the same --bucket as before, or choose another --out")


@dataclass(frozen=True)
class _Step:
    """The options of one call."""

    root: Path
    source: str
    size: tuple[int, int]
    seed: int
    strict: bool
    random_crop: bool
    min_side: int
    append: bool
    codec: str
    buckets: Mapping[str, tuple[int, int]]
    launch: Launch
    shard_size: int | None
    overwrite: bool

    def run(self, split: str, images: ImageList) -> Manifest:
        """Makes the set of one split, or appends to it."""
        folder = self.root / IMAGES / split
        inputs: list[Any] = [images.sha256, images.class_names, self.seed]
        inputs += [list(self.buckets)] if self.buckets else []
        inputs += (
            [{"random_crop": self.random_crop, "min_side": self.min_side}] if self.random_crop or self.min_side else []
        )
        digest = sha256_of_json(inputs)
        wanted = Manifest(
            kind="pixels",
            image_shape=(3, *self.size),
            image_codec=self.codec,
            source=self.source,
            versions=versions("pillow"),
        )
        hashes = [digest]
        if (folder / MANIFEST_NAME).is_file():
            hashes_before = [part.source_sha256 for part in Manifest.read(folder).parts]
            if hashes_before[-1] == digest:  # nothing has changed since the last part was added
                hashes = hashes_before
            elif self.append:
                images = unlisted(images, folder, len(hashes_before))
                hashes = [*hashes_before, digest] if len(images) else hashes_before
        options = {"image_shape": "--bucket" if self.buckets else "--size", "image_codec": "--picture-format"}
        part = parts_done(
            folder,
            wanted,
            hashes,
            self.overwrite,
            options,
            lambda: _inputs_that_differ(images, folder, bool(self.buckets)),
        )
        if part == len(hashes):
            if first_rank() and (folder / list_name(0)).is_file():  # an earlier call may have been killed before it
                list_bad(folder, part)
            print(f"{folder}: up to date")
            return Manifest.read(folder)
        bytes_each = 3 * self.size[0] * self.size[1] + _METADATA_BYTES
        require_disk(self.root, len(images), bytes_each, str(folder), work_folder(folder, part))
        seed = self.seed if self.random_crop else None
        work = Decoding(images, self.size, self.strict, digest, self.codec, self.min_side, seed)
        shard_size = shard_size_of(bytes_each, self.shard_size)
        results = run_part(work, folder, part, self.launch, shard_size, f"images {split}", self.overwrite)
        self._stop_if_strict(images, results)
        if results.chief and not part:
            self._stop_if_empty(split, images, results)
        lists = {list_name(part): photo_lines(images, results.rejected())} if results.chief else {}
        manifest = add_part(results, folder, part, wanted, digest, files=lists)
        listed = list_bad(folder, part + 1) if results.chief else ""
        added = f" ({manifest.parts[-1].count:,} new)" if part else ""
        classes = "" if NO_CLASS_ID in images.class_names else f" of {len(images.class_names)} classes"
        print(f"{folder}: {manifest.count:,} images{added}{classes}{listed}")
        return manifest

    def _stop_if_strict(self, images: ImageList, results: Results) -> None:
        """For photos that an earlier call without ``strict`` found bad."""
        for index, reason in results.rejected() if self.strict else ():
            if not reason.startswith(SIDE_BELOW):
                results.ledger.release()  # the results stay, for a call without it
                raise refusal(images.where(index), reason)

    def _stop_if_empty(self, split: str, images: ImageList, results: Results) -> None:
        """For a source of which no photo can be used: its photos are listed, and its results dropped.

        Raises:
            ValueError: the commonest reason, its number and its option.
        """
        reasons = Counter(_reason_and_option(reason, self.min_side) for _, reason in results.rejected())
        if len(results) or not reasons:
            return
        rows = ((images.keys[index], reason) for index, reason in results.rejected())
        path = write_bad(self.root / IMAGES / split, rows)
        results.ledger.discard()  # a call with another option is not to be refused for them
        (reason, option), count = reasons.most_common(1)[0]
        raise ValueError(
            f"no photo of {split} can be used: {count:,} of {reasons.total():,} because {reason} (all are listed in "
            f"{path}): {option}"
        )


def _reason_and_option(reason: str, min_side: int) -> tuple[str, str]:
    """Why a photo has no record, without its numbers, and what to change if it is so with all."""
    if reason.startswith(SIDE_BELOW):
        return f"{SIDE_BELOW} {min_side}", "give a lower --min-side"
    if reason == NO_CAPTION:
        return reason, "give another --caption-field"
    return reason, "give another --source"


def _inputs_that_differ(images: ImageList, folder: Path, buckets: bool) -> str:
    """Which options give other photos, or the same ones in another order."""
    if same_photos(images, folder, len(Manifest.read(folder).parts)):
        order = "--seed or the order of --bucket differs" if buckets else "--seed differs"
        captions = "" if images.captions is None else ", --caption-field, the captions of the source"
        return f"{order} (or --crop, --min-side{captions})"
    return (
        "the photos or their classes differ (--source, --val-source, --val-labels, --val-share, --class-names, "
        "--label-field, or --seed if it holds val out; --append if photos were added to the source)"
    )


def image_sets(root: Path) -> list[str]:
    """Names of the image sets of a data set: train, val, then the CutMix sets; of aspect buckets, ``train/1.00``.

    Raises:
        FileNotFoundError: there are none; says how to make them.
    """
    names = set_names(root / IMAGES)
    if not names:
        raise FileNotFoundError(
            f"{root} has no images: run t2ikit prepare images --source FOLDER --out {root} --size S first"
        )
    splits = {name: name.partition("/")[0] for name in names}
    return sorted(names, key=lambda name: (splits[name] != "train", splits[name] != "val", name))


def wanted_sets(root: Path, sets: Sequence[str] | None) -> list[str]:
    """The image sets that ``--sets`` names, or all.

    Raises:
        ValueError: it names a set that does not exist.
    """
    present = image_sets(root)
    for name in sets or ():
        if name not in present:
            raise ValueError(f"there is no image set {name} in {root / IMAGES}; --sets can name {', '.join(present)}")
    return list(sets or present)


def metadata_of(root: Path, name: str, start: int = 0) -> Iterator[dict[str, Any]]:
    """The metadata of the images of a set from ``start`` on, in order; pixels are not read."""
    records = RecordSet(root / IMAGES / name)
    for index in range(start, len(records)):
        yield records.view(index).details()[1]
