"""Verifies prepared sets: hashes, every record, and every mixed image against the images that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from t2ikit.prepare.captions.caption_file import CAPTIONS, CaptionSet
from t2ikit.prepare.check.folder import encoded_sets, out_of_date, still_to_do, unfinished, without_text_encoder
from t2ikit.prepare.check.record import BaseImages, record_findings
from t2ikit.prepare.images import IMAGES
from t2ikit.prepare.steps import hash_of, identity, tracked
from t2ikit.records.manifest import MANIFEST_NAME, Manifest, set_names
from t2ikit.records.record_set import RecordSet, damaged_files
from t2ikit.records.view import RecordView

MOST_OF_A_SET = 20
"""Bad records that are listed one by one, for each set; the others are counted."""

_UNREADABLE = (ValueError, FileNotFoundError, IndexError, KeyError, TypeError, OSError)


def prepare_check(folder: str | Path) -> list[str]:
    """What is wrong with a data set: one line per finding, none if all is well.

    Args:
        folder: a data set (every set below it, its image sets and captions, and whether they fit), or a single set.

    Raises:
        FileNotFoundError: there is no set.
    """
    root = Path(folder)
    if (root / MANIFEST_NAME).is_file():
        return list(check_set(root))
    sets = [*(root / name for name in encoded_sets(root)), *(root / IMAGES / name for name in set_names(root / IMAGES))]
    problems = list(unfinished(root))
    if not sets and not problems:
        raise FileNotFoundError(f"{root} holds no prepared set: run t2ikit prepare images --out {root} first")
    for folder_of_set in sets:
        findings = list(check_set(folder_of_set))
        print(f"{folder_of_set}: {len(findings)} findings" if findings else f"{folder_of_set}: good")
        problems += findings
    for path in sorted((root / CAPTIONS).rglob("*.jsonl")):
        problems += check_captions(root, path.relative_to(root / CAPTIONS).with_suffix("").as_posix())
    problems += [*out_of_date(root), *without_text_encoder(root)]
    for line in still_to_do(root):
        print(line)
    return problems


def check_set(folder: Path) -> Iterator[str]:
    """The findings of one set; memory grows by 8 bytes per record."""
    try:
        manifest = Manifest.read(folder)
        digests = manifest.chunk_sha256.items()
        yield from damaged_files(folder, tracked(digests, len(digests), f"check files of {folder.name}", "file"))
        records = RecordSet(folder)
    except (ValueError, FileNotFoundError) as error:
        yield f"{folder}: {_first_line(error)}"
        return
    parts = manifest.parts
    if sum(part.count for part in parts) != len(records) or sum(part.chunks for part in parts) != len(
        records.chunk_sizes
    ):
        yield f"{folder}: its parts have other numbers of records or chunks than its index"
    bases = BaseImages.of(folder, manifest)
    keys = np.zeros(len(records), np.uint64)
    bad = 0
    for index in tracked(range(len(records)), len(records), f"check {folder.name}"):
        try:
            findings = [*record_findings(records[index], manifest, bases, index)]
            keys[index] = _key(records.view(index))
        except _UNREADABLE as error:
            findings = [_first_line(error)]
        bad += bool(findings)
        if findings and bad <= MOST_OF_A_SET:
            yield from (f"{folder}: record {index}: {finding}" for finding in findings)
    for index in _repeated(keys):
        bad += 1
        if bad <= MOST_OF_A_SET:
            yield f"{folder}: record {index}: a second record has the key {records[index].metadata.get('key')}"
    if bad > MOST_OF_A_SET:
        yield f"{folder}: {bad - MOST_OF_A_SET} more bad records"


def check_captions(root: Path, name: str) -> Iterator[str]:
    """The findings of the captions of one image set."""
    try:
        captions = CaptionSet(root, name)
        records = RecordSet(root / IMAGES / name)
        if captions.header.images != identity(records.manifest):
            yield f"{captions.path}: belongs to other images; run t2ikit prepare captions --overwrite"
        count = bad = 0
        for index, (key, texts) in enumerate(tracked(captions, len(records), f"check captions {name}")):
            count += 1
            finding = ""
            if index < len(records) and records.view(index).details()[1].get("key") != key:
                finding = f"{key} is not the key of that image"
            elif len(texts) != len(captions.header.columns) or not all(text.strip() for text in texts):
                finding = f"{key} lacks a caption, or has an empty one"
            bad += bool(finding)
            if finding and bad <= MOST_OF_A_SET:
                yield f"{captions.path}: line {index + 2}: {finding}"
        if bad > MOST_OF_A_SET:
            yield f"{captions.path}: {bad - MOST_OF_A_SET} more bad lines"
        if count != len(records):
            yield f"{captions.path}: captions of {count} images, of {len(records)}"
    except _UNREADABLE as error:
        yield f"{root / CAPTIONS / name}.jsonl: {_first_line(error)}"


def _key(view: RecordView) -> int:
    return hash_of(str(view.details()[1].get("key")).encode())


def _repeated(keys: np.ndarray) -> list[int]:
    """Indices of values that occur earlier in the array; 0 stands for no value."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    again = (ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)
    return sorted(order[1:][again].tolist())


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__
