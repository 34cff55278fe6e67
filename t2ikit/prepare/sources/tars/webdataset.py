"""WebDataset: a photo is the files of a tar that share a name up to the first dot, one behind the other."""

from __future__ import annotations

import json
from collections.abc import Iterator

from t2ikit.prepare.sources.tars.tar import Member, OpenTar

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".img")
_LABEL_ENDINGS = (".cls", ".json")
_FIELDS = ("cls", "label", "class_id", "class_label", "wnid", "class_name", "class")


def samples(tar: OpenTar, field: str | None) -> Iterator[tuple[str, Member, str | int]]:
    """Name, photo and label of every sample of a shard.

    The label is ``KEY.cls`` (a number or a word), else a field of ``KEY.json``. Samples without a photo are no photos.

    Args:
        tar: the shard.
        field: name of the JSON's field, which then goes before ``KEY.cls``; without it, the usual ones are tried.

    Raises:
        ValueError: a photo without a label.
    """
    key: str | None = None
    photo: Member | None = None
    labels: dict[str, bytes] = {}
    for member in tar.members():
        folder, slash, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")
        if not stem:
            continue
        if f"{folder}{slash}{stem}" != key:
            if key is not None and photo is not None:
                yield photo.name, photo, _label(tar, key, labels, field)
            key, photo, labels = f"{folder}{slash}{stem}", None, {}
        ending = f".{ending.lower()}"
        if ending in IMAGE_ENDINGS or (photo is None and ending.endswith(IMAGE_ENDINGS)):
            photo = member
        elif ending in _LABEL_ENDINGS:
            labels[ending] = tar.content(member)
    if key is not None and photo is not None:
        yield photo.name, photo, _label(tar, key, labels, field)


def _label(tar: OpenTar, key: str, contents: dict[str, bytes], field: str | None) -> str | int:
    try:
        facts = json.loads(contents[".json"]) if ".json" in contents else {}
        words = contents[".cls"].decode().strip() if ".cls" in contents else ""
    except ValueError as error:
        raise ValueError(f"{tar.path}: the label of {key} cannot be read: {error}") from error
    if not isinstance(facts, dict):
        facts = {}
    value = facts.get(field) if field else words
    if value in ("", None) and not field:
        value = next((facts[name] for name in _FIELDS if facts.get(name) is not None), None)
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        wanted = (
            f"a field {field} in {key}.json" if field else f"{key}.cls, or one of {', '.join(_FIELDS)} in {key}.json"
        )
        raise ValueError(
            f"{tar.path}: {key} has no label: it needs {wanted}, beside the photo; name the JSON's field with "
            f"--label-field{f' (it has {sorted(facts)})' if facts else ''}"
        )
    return int(value) if isinstance(value, str) and value.isdigit() else value
