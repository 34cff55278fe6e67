"""The CutMix set of a data set: one mixed image per base image, with an insert of another class, without loss.

Rectangle, setting and both images go into the metadata: a captioner needs them, and ``prepare check`` verifies them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from t2ikit.augment.cutmix import MixPlan, compose
from t2ikit.launch import first_rank
from t2ikit.prepare.captions.caption_file import CaptionSet, caption_file
from t2ikit.prepare.captions.captions import write_known
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.engine.work import HostWork
from t2ikit.prepare.images import IMAGES, ON_THIS_CPU, image_sets
from t2ikit.prepare.photo_lists import class_ids
from t2ikit.prepare.sets import add_part, parts_done, run_part, shard_size_of, work_folder
from t2ikit.prepare.steps import identity, part_ranges, require_disk, sha256_of_json, versions
from t2ikit.records.compressed import stored_picture
from t2ikit.records.manifest import Manifest
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet

_METADATA_BYTES = 400


def prepare_cutmix(
    out: str | Path,
    setting: str = "cmall",
    *,
    seed: int = 0,
    strict_paper: bool = False,
    launch: Launch = ON_THIS_CPU,
    shard_size: int | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Writes the image set ``out/images/train_<setting>``, and its captions if those of ``train`` are AIO captions.

    Images that were appended to ``train`` get their mixed images behind the others; their partners are of all images
    that there were then.

    The arguments are the options of ``t2ikit prepare cutmix``; its ``--help`` explains them. The seed and the index of
    the base image decide partner, setting and rectangle.

    Returns:
        The manifest of the set.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: what is missing or wrong, and what to change.
    """
    root = Path(out)
    names = image_sets(root)
    if any(name.startswith("train/") for name in names):
        raise ValueError(
            f"{root} has aspect buckets, and the settings of CutMix are defined on square images of one size: prepare "
            "the images without --bucket, in another --out"
        )
    if "train" not in names:
        raise FileNotFoundError(f"{root} has no images of train: run t2ikit prepare images --out {root} first")
    raw = RecordSet(root / IMAGES / "train")
    name = f"train_{setting}"
    folder = root / IMAGES / name
    wanted = Manifest(
        kind="pixels",
        image_shape=raw.manifest.image_shape,
        image_codec=raw.manifest.image_codec,
        setting=setting,
        source=raw.manifest.source,
        versions=versions("torch"),
    )
    parts = part_ranges(raw.manifest)
    images = [identity(raw.manifest, index + 1) for index in range(len(parts))]
    hashes = [sha256_of_json([image_hash, seed, strict_paper]) for image_hash in images]

    def inputs() -> str:
        if Manifest.read(folder).parts[0].source_sha256 == sha256_of_json([images[0], seed, not strict_paper]):
            return f"--strict-paper was {'not ' if strict_paper else ''}given"
        return "--seed or the images of train differ"

    options = {
        "image_shape": "--size of prepare images",
        "image_codec": "--picture-format of prepare images",
        "setting": "--setting",
    }
    done = parts_done(folder, wanted, hashes, overwrite, options, inputs)
    if done == len(parts):
        print(f"{folder}: up to date")
    else:
        bytes_each = int(np.prod(raw.manifest.image_shape)) + _METADATA_BYTES
        left = sum(len(part) for part in parts[done:])
        require_disk(root, left, bytes_each, str(folder), work_folder(folder, done))
        shard_size = shard_size_of(bytes_each, shard_size)
    for index in range(done, len(parts)):
        work = _Mixing(raw, parts[index], setting, seed, strict_paper, hashes[index])
        results = run_part(work, folder, index, launch, shard_size or 1, f"cutmix {setting}", overwrite)
        manifest = add_part(results, folder, index, wanted, hashes[index])
        print(f"{folder}: {manifest.count:,} images")
    if caption_file(root, "train").is_file() and CaptionSet(root, "train").header.kind == "aio" and first_rank():
        write_known(root, name, overwrite)
    return Manifest.read(folder)


class _Mixing(HostWork):
    """The mixed images of one part of the raw set."""

    def __init__(self, raw: RecordSet, part: range, setting: str, seed: int, strict_paper: bool, digest: str) -> None:
        self.raw = raw
        self.part = part
        self.name = f"train_{setting}"
        self.size = raw.manifest.image_shape[-1]
        self.identity = digest
        self.plan = MixPlan(class_ids(raw, part.stop), setting, self.size, seed, strict_paper)

    def __len__(self) -> int:
        return len(self.part)

    def load(self, index: int) -> bytes:
        mix = self.plan[self.part[index]]
        base, other = self.raw[mix.base], self.raw[mix.other]
        pixels = compose(torch.from_numpy(base.image), torch.from_numpy(other.image), mix.rectangle, mix.setting)
        metadata = {
            **base.metadata,
            "key": f"{self.name}/{base.metadata['key']}",
            "base_key": base.metadata["key"],
            "other_key": other.metadata["key"],
            "other_index": mix.other,
            "other_class_id": other.metadata["class_id"],
            "other_class_name": other.metadata["class_name"],
            "rectangle": list(mix.rectangle),
            "setting": mix.setting,
            "size": self.size,
        }
        return Record(
            {"image": stored_picture(pixels.numpy(), self.raw.manifest.image_codec)}, metadata=metadata
        ).to_bytes()
