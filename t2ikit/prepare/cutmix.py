"""The CutMix set of a data set: one mixed image a base image, of another class, stored without loss.

Rectangle, setting and both images go into the metadata: a captioner needs them, and ``prepare check`` verifies them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from t2ikit.augment.cutmix import MixPlan, compose
from t2ikit.data.manifest import Manifest
from t2ikit.data.records import Record, RecordSet, write_set
from t2ikit.prepare.captions import CaptionSet, aio_caption, caption_file, image_sets, write_captions
from t2ikit.prepare.engine import identity, in_order, require_disk, sha256_of_json, tracked, up_to_date, versions
from t2ikit.prepare.images import IMAGES


def prepare_cutmix(
    out: str | Path,
    setting: str = "cmall",
    *,
    seed: int = 0,
    strict_paper: bool = False,
    workers: int = 0,
    overwrite: bool = False,
) -> Manifest:
    """Writes the image set ``out/images/train_<setting>``, and its captions if those of ``train`` are AIO captions.

    Args:
        out: the folder of the data set; its ``images/train`` gives the images.
        setting: "cm2", "cm4", "cm9", "cm16" or "cmall".
        seed: with the index of the base image, decides partner, setting and rectangle.
        strict_paper: keep the inserts of cm9 off the corners.
        workers: processes that compose; 0 is this one.
        overwrite: replace a set that was made from other inputs.

    Returns:
        The manifest of the set.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: what is missing or wrong, and what to change.
    """
    root = Path(out)
    if "train" not in image_sets(root):
        raise FileNotFoundError(f"{root} has no images of train: run t2ikit prepare images --out {root} first")
    raw = RecordSet(root / IMAGES / "train")
    name = f"train_{setting}"
    folder = root / IMAGES / name
    size = raw.manifest.image_shape[-1]
    wanted = Manifest(
        kind="pixels",
        image_shape=raw.manifest.image_shape,
        setting=setting,
        source=raw.manifest.source,
        source_sha256=sha256_of_json([identity(raw.manifest), seed, strict_paper]),
        versions=versions("torch", "litdata"),
    )
    if up_to_date(folder, wanted, overwrite, "--seed and images"):
        print(f"{folder}: up to date")
        manifest = Manifest.read(folder)
    else:
        mixes = _Mixes(raw, setting, size, seed, strict_paper)
        require_disk(root, len(raw), 3 * size * size, str(folder))
        records = tracked(in_order(mixes, workers), len(raw), f"cutmix {setting}")
        manifest = write_set(folder, records, wanted, overwrite=overwrite)
        print(f"{folder}: {manifest.count:,} images")
    if caption_file(root, "train").is_file() and CaptionSet(root, "train").header.kind == "aio":
        mixed = RecordSet(folder)
        details = (mixed.view(index).details()[1] for index in range(len(mixed)))
        rows = ((metadata["key"], (aio_caption(metadata),)) for metadata in details)
        write_captions(root, name, "aio", rows, overwrite)
    return manifest


class _Mixes(Dataset[Record]):
    def __init__(self, raw: RecordSet, setting: str, size: int, seed: int, strict_paper: bool) -> None:
        class_ids = np.array([raw.view(index).details()[1]["class_id"] for index in range(len(raw))])
        self.raw = raw
        self.plan = MixPlan(class_ids, setting, size, seed, strict_paper)
        self.name = f"train_{setting}"
        self.size = size

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Record:
        mix = self.plan[index]
        base, other = self.raw[mix.base], self.raw[mix.other]
        pixels = compose(torch.from_numpy(base.image), torch.from_numpy(other.image), mix.rectangle, mix.setting)
        metadata = {
            **base.metadata,
            "key": f"{self.name}/{base.metadata['key']}",
            "base_key": base.metadata["key"],
            "other_key": other.metadata["key"],
            "other_class_id": other.metadata["class_id"],
            "other_class_name": other.metadata["class_name"],
            "rectangle": list(mix.rectangle),
            "setting": mix.setting,
            "size": self.size,
        }
        return Record(pixels.numpy(), metadata=metadata)
