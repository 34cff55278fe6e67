"""What can be wrong with a data set as a whole: sets that are unfinished, out of date or lack what they need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from t2ikit.encoders.text import TextEncoder
from t2ikit.prepare.captions.caption_file import CAPTIONS, caption_file
from t2ikit.prepare.captions.lines import CaptionLines
from t2ikit.prepare.encode.encode import TEXT_ENCODER_FOLDER, inputs_of
from t2ikit.prepare.images import IMAGES
from t2ikit.records.manifest import MANIFEST_NAME, Manifest, set_names
from t2ikit.records.record_set import RecordSet


def unfinished(root: Path) -> Iterator[str]:
    """Work that was stopped, and sets that have lost their manifest."""
    steps = {IMAGES: "images, or cutmix", CAPTIONS: "captions"}
    for work in sorted(root.rglob(".*.work")):
        where = work.relative_to(root).parts[:-1]
        if not any(name.startswith(".") for name in where):
            step = steps.get(where[0], "encode") if where else "encode"
            yield f"{work} is unfinished: give its command again (t2ikit prepare {step}), or remove it"
    for folder in sorted({path.parent for path in root.rglob("chunk-*.bin")}):
        hidden = any(name.startswith(".") for name in folder.relative_to(root).parts)
        if not hidden and not (folder / MANIFEST_NAME).is_file():
            yield f"{folder} holds chunks but no {MANIFEST_NAME}: remove it, and make the set again"


def out_of_date(root: Path) -> Iterator[str]:
    """Encoded sets that their images and captions, where they are kept, no longer fit."""
    for name, manifest in _encoded(root):
        images, captions = root / IMAGES / name, caption_file(root, name)
        if not (images / MANIFEST_NAME).is_file() or not captions.is_file():
            continue  # may be removed once they are encoded
        encoded = [part.source_sha256 for part in manifest.parts]
        try:
            records, lines = RecordSet(images), CaptionLines(captions)
            if len(lines) != len(records):
                continue  # found where the captions are checked
            now = inputs_of(records, lines)
        except (ValueError, FileNotFoundError, OSError, IndexError):
            continue  # found where they are checked
        if encoded == now[: len(encoded)]:
            if len(encoded) < len(now):
                yield f"{root / name} lacks the images that were appended to {images}: run t2ikit prepare encode"
        else:
            yield (
                f"{root / name} was encoded from other images or captions than {images} and {captions} are now: put "
                "those back, or run t2ikit prepare encode --overwrite"
            )


def without_text_encoder(root: Path) -> Iterator[str]:
    """Sets whose text encoder should lie beside them (``--text-encoder small``): nothing can be sampled without it."""
    folder = root / TEXT_ENCODER_FOLDER
    wanted = {
        name: reference.sha256
        for name, manifest in _encoded(root)
        for reference in manifest.text_encoders
        if reference.name == TEXT_ENCODER_FOLDER
    }
    if not wanted:
        return
    try:
        digest_of_folder = TextEncoder.load(str(folder)).reference.sha256
    except (ValueError, OSError) as error:
        yield f"{folder}, whose states {', '.join(wanted)} hold, cannot be loaded: {str(error).splitlines()[0]}"
        return
    for name, digest in wanted.items():
        if digest != digest_of_folder:
            yield f"{root / name} holds states of another text encoder than {folder}"


def still_to_do(root: Path) -> Iterator[str]:
    """Steps that were not run yet, which is no error."""
    if not any(True for _ in _encoded(root)):
        return
    for name in set_names(root / IMAGES):
        if not (root / name / MANIFEST_NAME).is_file():
            missing = "" if caption_file(root, name).is_file() else ", and its images have no captions"
            yield f"{root / name}: not encoded yet{missing}"


def _encoded(root: Path) -> Iterator[tuple[str, Manifest]]:
    for name in encoded_sets(root):
        try:
            yield name, Manifest.read(root / name)
        except ValueError:
            continue  # found where the set is checked


def encoded_sets(root: Path) -> list[str]:
    """Names of the sets that were encoded: all but the image sets."""
    return [name for name in set_names(root) if not name.startswith(f"{IMAGES}/")]
