"""Whether prepared sets fit each other and the experiment; a message names the field and what to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from t2ikit.pretrained import find_pretrained
from t2ikit.records.compressed import CODECS
from t2ikit.records.manifest import Manifest, StoredArray, identity
from t2ikit.records.record_set import RecordSet

OWN_TEXT_ENCODER = "text_encoder"
"""Name, in a manifest, of a text encoder that was built for the set and is kept beside it."""

_TOKENIZER_FILES = ("tokenizer.json", "spiece.model")


def check_fits(primary: RecordSet, other: RecordSet, name: str) -> None:
    """Raises ValueError, naming the field, if the records of two sets cannot share a batch."""
    mismatch = primary.manifest.mismatch(other.manifest)
    if mismatch is not None:
        raise ValueError(
            f"the set of {name} ({other.folder}) does not fit {primary.folder}: {mismatch}. "
            "Prepare both with the same options of t2ikit prepare encode"
        )


def check_buckets(first: RecordSet, other: RecordSet) -> None:
    """Raises ValueError, naming the field, if two aspect buckets differ in more than the height and width of images."""
    one, two = first.manifest, other.manifest
    if two.image_shape[:-2] == one.image_shape[:-2]:
        two = replace(two, image_shape=one.image_shape)
    mismatch = one.mismatch(two)
    if mismatch is not None:
        raise ValueError(
            f"the buckets {first.folder} and {other.folder} do not fit each other: {mismatch}. Prepare both with the "
            "same options of t2ikit prepare encode"
        )


def check_same_arrays(primary: RecordSet, other: RecordSet, arrays: Sequence[str], one_batch: bool = True) -> None:
    """Refuses a set in which further arrays of the records, such as features, are others than in the first one.

    Args:
        primary: the training set, or its first bucket.
        other: the set of an augmentation, a bucket or the validation set; it has these arrays.
        arrays: names of those that are read.
        one_batch: records of both share a batch, and so their shapes.

    Raises:
        ValueError: names the array, what it is in both, and what to change.
    """
    for name in arrays:
        one, two = (records.manifest.further.get(name) for records in (primary, other))
        if one is None or two is None:
            continue
        mine, theirs = (
            (_decoded(array), array.shape if one_batch else len(array.shape), identity(array.made_by))
            for array in (one, two)
        )
        if mine != theirs:
            raise ValueError(
                f"the array {name} of {other.folder} is {_shown(two)}, that of {primary.folder} {_shown(one)}: make "
                "both by the same network in the same form, or choose a model.init_args.objective that does not read it"
            )


def _decoded(array: StoredArray) -> str:
    return "uint8" if array.storage in CODECS else array.storage


def _shown(array: StoredArray) -> str:
    maker = "" if array.made_by is None else f" by {array.made_by.name} ({array.made_by.sha256:.8})"
    return f"{array.storage} {list(array.shape)}{maker}"


def own_encoder_fits(folder: Path, manifest: Manifest) -> bool:
    """Whether the text encoder that was built for a set, kept in ``folder``, is the one of its manifest."""
    wanted = next(one.sha256 for one in manifest.text_encoders if one.name == OWN_TEXT_ENCODER)
    try:
        return find_pretrained(str(folder), None, "--data.root", _TOKENIZER_FILES).reference.sha256 == wanted
    except (OSError, ValueError):  # no weights, or a file that cannot be read
        return False


def check_cutmix(raw: RecordSet, mixed: RecordSet, setting: str) -> None:
    """Refuses CutMix images of another setting, or of other photos than the raw ones.

    A mixed image has the index of its base image, also after images were appended; so the keys of the first and of the
    last one show whether both sets come from the same photos.

    Args:
        raw: the plain images.
        mixed: the CutMix images.
        setting: the one that the experiment names.

    Raises:
        ValueError: names what differs and what to change.
    """
    stored = mixed.manifest.setting
    if stored != setting:
        raise ValueError(
            f"{mixed.folder} holds CutMix setting {stored}, callbacks.cutmix says {setting}: set its setting to "
            f"{stored}, or its folder to a set of {setting}"
        )
    advice = "remove it and make it again from these images: t2ikit prepare cutmix, then t2ikit prepare encode"
    if len(mixed) > len(raw):
        raise ValueError(
            f"{mixed.folder} holds {len(mixed)} mixed images, but {raw.folder} only {len(raw)}: it was made from other "
            f"images; {advice}"
        )
    for index in (0, len(mixed) - 1):
        facts, key = mixed.view(index).details()[1], raw.view(index).details()[1].get("key")
        base = facts.get("base_key", facts.get("key"))
        if base != key:
            raise ValueError(
                f"image {index} of {mixed.folder} was made from {base}, but that of {raw.folder} is {key}: it was made "
                f"from other images; {advice}"
            )


def check_text_encoder(manifest: Manifest, wanted: str | None, folder: str) -> None:
    """Refuses a set whose captions went through another text encoder than the experiment is about.

    Args:
        manifest: of the set.
        wanted: ``data.text_encoder``: the name that the manifest should have, or a local folder whose weights are
            compared; None accepts any. Of several text encoders, one must be it.
        folder: of the set.

    Raises:
        ValueError: it is another one, or the set has no text states.
        FileNotFoundError: ``wanted`` is a path, and there is no such folder.
    """
    stored = manifest.text_encoders
    if wanted is None or wanted in [reference.name for reference in stored]:
        return
    if not stored:
        raise ValueError(f"{folder} holds no text states, data.text_encoder is {wanted}: run t2ikit prepare encode")
    of_wanted = ""
    if Path(wanted).expanduser().is_dir() or wanted.startswith((".", "/", "~")):
        digest = find_pretrained(wanted, None, "--data.text_encoder", _TOKENIZER_FILES).reference.sha256
        if digest in [reference.sha256 for reference in stored]:
            return
        of_wanted = f", of the wanted one {digest[:12]}"
    names = " and ".join(reference.name for reference in stored)
    hashes = ", ".join(reference.sha256[:12] for reference in stored)
    raise ValueError(
        f"text_encoder of {folder} is {names} (SHA-256 {hashes}{of_wanted}), data.text_encoder is {wanted}: prepare "
        "the captions with that one (t2ikit prepare encode --text-encoder), or, if these are the same weights, "
        f"--data.text_encoder {stored[0].name}"
    )
