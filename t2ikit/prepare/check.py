"""Verifies prepared sets: hashes, and every record by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from t2ikit.augment.cutmix import SINGLE_SETTINGS, fits
from t2ikit.data.manifest import MANIFEST_NAME, Manifest
from t2ikit.data.records import Record, RecordSet, damaged_files
from t2ikit.prepare.captions import CAPTIONS, CaptionSet
from t2ikit.prepare.engine import identity, tracked
from t2ikit.prepare.images import IMAGES

MOST_OF_A_SET = 20
"""Bad records that are listed one by one, for each set; the others are counted."""


def prepare_check(folder: str | Path) -> list[str]:
    """What is wrong with a data set: one line a finding, none if all is well.

    Args:
        folder: a data set (every set below it, its image sets and captions are checked), or a single set.

    Raises:
        FileNotFoundError: there is no set.
    """
    root = Path(folder)
    if (root / MANIFEST_NAME).is_file():
        return list(check_set(root))
    found = [*sorted(root.glob(f"*/{MANIFEST_NAME}")), *sorted(root.glob(f"{IMAGES}/*/{MANIFEST_NAME}"))]
    sets = [path.parent for path in found if not path.parent.name.startswith(".")]
    if not sets:
        raise FileNotFoundError(f"{root} holds no prepared set: run t2ikit prepare images --out {root} first")
    problems = []
    for one in sets:
        findings = list(check_set(one))
        print(f"{one}: {len(findings)} findings" if findings else f"{one}: good")
        problems += findings
    for path in sorted((root / CAPTIONS).glob("*.jsonl")):
        problems += check_captions(root, path.stem)
    return problems


def check_set(folder: Path) -> Iterator[str]:
    """The findings of one set."""
    try:
        manifest = Manifest.read(folder)
        yield from damaged_files(folder)
        records = RecordSet(folder)
    except (ValueError, FileNotFoundError) as error:
        yield f"{folder}: {_first_line(error)}"
        return
    bad = 0
    keys: set[int] = set()
    for index in tracked(range(len(records)), len(records), f"check {folder.name}"):
        try:
            record = records[index]
            found = [*_findings(record, manifest)]
            key = hash(record.metadata.get("key"))
            if key in keys:
                found.append(f"a second record has the key {record.metadata.get('key')}")
            keys.add(key)
        except (ValueError, FileNotFoundError, IndexError, KeyError, TypeError) as error:
            found = [_first_line(error)]
        bad += bool(found)
        if found and bad <= MOST_OF_A_SET:
            yield from (f"{folder}: record {index}: {finding}" for finding in found)
    if bad > MOST_OF_A_SET:
        yield f"{folder}: {bad - MOST_OF_A_SET} more bad records"


def check_captions(root: Path, name: str) -> Iterator[str]:
    """The findings of the captions of one image set."""
    try:
        captions = CaptionSet(root, name)
        manifest = Manifest.read(root / IMAGES / name)
        if captions.header.images != identity(manifest):
            yield f"{captions.path}: belongs to other images; run t2ikit prepare captions --overwrite"
        count = sum(1 for _, texts in captions if texts)
        if count != manifest.count:
            yield f"{captions.path}: captions of {count} images, of {manifest.count}"
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        yield f"{root / CAPTIONS / name}.jsonl: {_first_line(error)}"


def _findings(record: Record, manifest: Manifest) -> Iterator[str]:
    if tuple(record.image.shape) != manifest.image_shape:
        yield f"the image is {record.image.shape}, the manifest says {manifest.image_shape}"
    if not np.isfinite(record.image).all():
        yield "the image is not finite"
    elif manifest.kind == "latents" and (record.image[1] < 0).any():
        yield "the posterior has a negative standard deviation"
    for name in ("key", "class_id", "class_name"):
        if name not in record.metadata:
            yield f"the metadata lack {name}"
    if manifest.text_dim:
        yield from _text_findings(record, manifest)
    if manifest.setting is not None or "rectangle" in record.metadata:
        yield from _mix_findings(record.metadata, record.image.shape[-1], manifest.setting)


def _text_findings(record: Record, manifest: Manifest) -> Iterator[str]:
    if not record.captions or not all(caption.strip() for caption in record.captions):
        yield "there is no caption, or an empty one"
    if len(record.tokens) != len(record.captions):
        yield f"{len(record.captions)} captions, but states of {len(record.tokens)}"
    longest, width = manifest.max_tokens, manifest.text_dim
    for tokens in record.tokens:
        if tokens.values.shape[1] != width or not 1 <= len(tokens) <= longest:
            yield f"text states {tokens.values.shape}, the manifest says at most {longest} tokens of {width}"
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(tokens.dequantise()).all()
        if not finite:
            yield "the text states are not finite"


def _mix_findings(metadata: dict[str, Any], stored_side: int, setting: str | None) -> Iterator[str]:
    lacking = [name for name in ("other_key", "other_class_id", "rectangle", "setting") if name not in metadata]
    if lacking:
        yield f"the metadata of a CutMix image lack {', '.join(lacking)}"
        return
    own = metadata["setting"]
    if own not in SINGLE_SETTINGS or setting not in (own, "cmall"):
        yield f"CutMix setting {own}, the manifest says {setting}"
    elif not fits(own, int(metadata.get("size", stored_side)), metadata["rectangle"]):
        yield f"rectangle {metadata['rectangle']} is none of setting {own}"
    if metadata["other_class_id"] == metadata.get("class_id"):
        yield "the insert is of the same class as the base image"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
