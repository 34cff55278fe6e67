"""What can be wrong with one record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2ikit.augment.cutmix import SINGLE_SETTINGS, compose, fits
from t2ikit.records.compressed import Compressed
from t2ikit.records.manifest import MANIFEST_NAME, Manifest, root_and_name
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet
from t2ikit.records.states import Tokens

_ROUNDING = 2
"""Grey values by which a resized insert may differ: another version of torch rounds otherwise."""


@dataclass(frozen=True)
class BaseImages:
    """The images that those of a set were made from, as far as they exist, record by record.

    Attributes:
        originals: the same images before they were encoded, for a set of pixels.
        raw: the plain images of a CutMix set, for a set of pixels.
    """

    originals: RecordSet | None = None
    raw: RecordSet | None = None

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> BaseImages:
        """Finds them beside the set; none for latents, which show no pixels."""
        if manifest.kind != "pixels":
            return cls()
        root, name = root_and_name(folder)
        plain = folder.with_name(folder.name.removesuffix(f"_{manifest.setting}"))
        return cls(
            _opened(root / "images" / name, manifest),
            _opened(plain, manifest) if manifest.setting is not None and plain != folder else None,
        )


def record_findings(record: Record, manifest: Manifest, bases: BaseImages, index: int) -> Iterator[str]:
    """What is wrong with record ``index`` of a set; nothing for a good one."""
    faults = [*manifest.faults(record)]
    if faults:
        yield from faults
        return
    image = record.image
    yield from _infinite_arrays(record)
    if manifest.kind == "latents" and (image[1] < 0).any():
        yield "the posterior has a negative standard deviation"
    for name in ("key", "class_id", "class_name"):
        if name not in record.metadata:
            yield f"the metadata lack {name}"
    if manifest.texts:
        yield from _text_findings(record, manifest)
    if bases.originals is not None and not np.array_equal(bases.originals.view(index).array("image"), image):
        yield f"the pixels are not those of {bases.originals.folder}"
    if manifest.setting is not None or "rectangle" in record.metadata:
        findings = [*_mix_findings(record.metadata, image.shape[-1], manifest.setting)]
        yield from findings
        if not findings and bases.raw is not None and bases.originals is None:
            yield from _pixel_findings(record, bases.raw, index)


def _opened(folder: Path, manifest: Manifest) -> RecordSet | None:
    if not (folder / MANIFEST_NAME).is_file():
        return None
    try:
        records = RecordSet(folder)
    except (ValueError, FileNotFoundError):  # found when that set is checked
        return None
    same = records.manifest.image_shape == manifest.image_shape and len(records) == manifest.count
    return records if same and records.manifest.kind == "pixels" else None


def _infinite_arrays(record: Record) -> Iterator[str]:
    for name, array in record.arrays.items():
        if isinstance(array, Compressed):
            array.decode()  # raises for a damaged picture
            continue
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(array.dequantise() if isinstance(array, Tokens) else array).all()
        if not finite:
            yield f"{name} is not finite"


def _text_findings(record: Record, manifest: Manifest) -> Iterator[str]:
    if not record.captions or not all(caption.strip() for caption in record.captions):
        yield "there is no caption, or an empty one"
    longest = min(manifest.max_tokens, manifest.token_limit or manifest.max_tokens)
    for encoder, captions in record.texts.items():
        for states in captions:
            if len(states.tokens) > longest:
                yield f"{len(states.tokens)} text states of {encoder}, the manifest says at most {longest}"


def _mix_findings(metadata: dict[str, Any], stored_side: int, setting: str | None) -> Iterator[str]:
    lacking = [name for name in ("other_key", "other_class_id", "rectangle", "setting") if name not in metadata]
    if lacking:
        yield f"the metadata of a CutMix image lack {', '.join(lacking)}"
        return
    stored_setting = metadata["setting"]
    if stored_setting not in SINGLE_SETTINGS or setting not in (stored_setting, "cmall"):
        yield f"CutMix setting {stored_setting}, the manifest says {setting}"
    elif not fits(stored_setting, int(metadata.get("size", stored_side)), metadata["rectangle"]):
        yield f"rectangle {metadata['rectangle']} is not possible in the CutMix setting {stored_setting}"
    if metadata["other_class_id"] == metadata.get("class_id"):
        yield "the insert is of the same class as the base image"


def _pixel_findings(record: Record, raw: RecordSet, index: int) -> Iterator[str]:
    """Outside of the rectangle the base image, inside the other one."""
    facts = record.metadata
    base = raw[index]
    if base.metadata.get("key") not in (facts.get("base_key"), facts.get("key")):
        yield f"the base image {facts.get('base_key', facts.get('key'))} is not image {index} of {raw.folder}"
        return
    x0, y0, x1, y1 = facts["rectangle"]
    outside = np.ones(record.image.shape[1:], bool)
    outside[y0:y1, x0:x1] = False
    if not np.array_equal(record.image[:, outside], base.image[:, outside]):
        yield f"the pixels outside of the rectangle are not those of {base.metadata['key']}"
    if "other_index" not in facts:
        return
    other = raw[int(facts["other_index"])]
    if other.metadata.get("key") != facts["other_key"]:
        yield f"the insert {facts['other_key']} is not image {facts['other_index']} of {raw.folder}"
        return
    mixed = compose(torch.from_numpy(base.image), torch.from_numpy(other.image), facts["rectangle"], facts["setting"])
    if (np.abs(mixed.numpy().astype(int) - record.image)[:, ~outside] > _ROUNDING).any():
        yield f"the pixels inside of the rectangle are not those of {facts['other_key']}"
