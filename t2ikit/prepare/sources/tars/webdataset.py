"""WebDataset: a photo is the files of a tar that share a name up to the first dot, one behind the other.

Tars are also made in other ways: all photos first and their labels behind them, or numbers with dots in the names. A
sample that is not complete where its name ends is completed by members of that name further on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from t2ikit.files import parse_json
from t2ikit.photos import SUFFIXES
from t2ikit.prepare.sources.captions import caption_ending, caption_in
from t2ikit.prepare.sources.left_out import OF_SYSTEM, LeftOut, is_of_system
from t2ikit.prepare.sources.photos import NO_CLASS_ID
from t2ikit.prepare.sources.tars.tar import Member, OpenTar

LABEL_ENDINGS = (".cls", ".json")
_IMAGE_ENDINGS = (*SUFFIXES, ".img")
_FIELDS = ("cls", "label", "class_id", "class_label", "wnid", "class_name", "class")


@dataclass
class _Sample:
    """Members of one name up to the first dot.

    Attributes:
        key: the name.
        photos: each with its position among all members of the tar.
        labels: contents, by the name without its last ending, and by this ending.
    """

    key: str
    photos: list[tuple[int, Member]] = field(default_factory=list)
    labels: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def add(self, other: _Sample) -> None:
        self.photos += other.photos
        for stem, contents in other.labels.items():
            self.labels.setdefault(stem, {}).update(contents)

    def labelled(self) -> list[tuple[int, Member, dict[str, bytes]]]:
        """The photos that have labels of their whole name (22.01.jpg and 22.01.cls); else one photo with all labels."""
        stems = [split_ending(photo.name)[0] for _, photo in self.photos]
        apart = [
            (position, photo, self.labels[stem])
            for (position, photo), stem in zip(self.photos, stems, strict=True)
            if stem in self.labels
        ]
        if apart and any(stem != self.key for stem in stems):
            return apart
        # Two photos of one whole name are two forms of one: the last counts.
        plain = [entry for entry, stem in zip(self.photos, stems, strict=True) if stem == self.key]
        position, photo = plain[-1] if plain else self.photos[0]
        everything = {ending: content for contents in self.labels.values() for ending, content in contents.items()}
        return [(position, photo, self.labels.get(self.key, everything))]


def samples(
    tar: OpenTar, label_field: str | None, caption_field: str | None, left_out: LeftOut
) -> list[tuple[str, Member, str | int, str]]:
    """Name, photo, label and caption of every sample of a shard, in the order of the photos.

    The label is ``KEY.cls`` (a number or a word), else a field of ``KEY.json``.

    Args:
        tar: the shard.
        label_field: name of the JSON's field, which then goes before ``KEY.cls``; without it, the usual ones are tried.
        caption_field: name of the JSON's field, or "txt" for ``KEY.txt``, that holds the caption; without it captions
            are empty. With it, a photo needs no label and has ``NO_CLASS_ID``.
        left_out: counts the members that are neither photo nor label.

    Raises:
        ValueError: a photo without a label.
    """
    photos: list[tuple[int, Member, str | int, str]] = []
    incomplete: dict[str, _Sample] = {}
    finished: set[str] = set()

    def finish(sample: _Sample) -> None:
        labelled = sample.labelled() if sample.labels or sample.key not in finished else []
        finished.add(sample.key)
        for position, photo, contents in labelled:
            stem = split_ending(photo.name)[0]
            label = _label(tar, stem, contents, label_field, needed=caption_field is None)
            caption = caption_in(contents, caption_field, f"{stem} in {tar.path}") if caption_field else ""
            photos.append((position, photo, label, caption))
        taken = {position for position, *_ in labelled}
        for position, photo in sample.photos:
            if position not in taken:
                left_out.add("a further picture of a sample", photo.name)

    for sample in _neighbours(tar, (*LABEL_ENDINGS, caption_ending(caption_field)), left_out):
        if sample.photos and sample.labels:
            finish(sample)
        else:
            incomplete.setdefault(sample.key, _Sample(sample.key)).add(sample)
    for sample in incomplete.values():
        if sample.photos:
            finish(sample)
        for stem, contents in sample.labels.items():
            if not sample.photos:
                left_out.add("labels without a photo", stem, len(contents))
    ordered = sorted(photos, key=lambda entry: entry[0])
    return [(photo.name, photo, label, caption) for _, photo, label, caption in ordered]


def split_ending(name: str) -> tuple[str, str]:
    """A path without its last ending, and the ending in lower case.

    Example:
        >>> split_ending("a/22.01.JPG")
        ('a/22.01', '.jpg')
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.rpartition(".")
    return (f"{folder}{slash}{stem}", f".{ending.lower()}") if dot else (name, "")


def _neighbours(tar: OpenTar, endings: Sequence[str], left_out: LeftOut) -> Iterator[_Sample]:
    """Members that follow on each other and share a name up to the first dot."""
    sample: _Sample | None = None
    for position, member in enumerate(tar.members()):
        if is_of_system(member.name):
            left_out.add(OF_SYSTEM, member.name)
            continue
        folder, slash, base = member.name.rpartition("/")
        key = f"{folder}{slash}{base.partition('.')[0]}"
        if sample is None or key != sample.key:
            if sample is not None and (sample.photos or sample.labels):
                yield sample
            sample = _Sample(key)
        stem, ending = split_ending(member.name)
        if ending in _IMAGE_ENDINGS:
            sample.photos.append((position, member))
        elif ending and ending in endings:
            sample.labels.setdefault(stem, {})[ending] = tar.content(member)
        else:
            left_out.add(f"neither photo nor label ({ending or 'no ending'})", member.name)
    if sample is not None and (sample.photos or sample.labels):
        yield sample


def _label(tar: OpenTar, key: str, contents: dict[str, bytes], label_field: str | None, needed: bool) -> str | int:
    try:
        facts = parse_json(contents[".json"]) if ".json" in contents else {}
        words = contents[".cls"].decode("utf-8-sig").strip() if ".cls" in contents else ""
    except ValueError as error:
        raise ValueError(f"{tar.path}: the label of {key} cannot be read: {error}") from error
    if not isinstance(facts, dict):
        facts = {}
    value = facts.get(label_field) if label_field else words
    if value in ("", None) and not label_field:
        value = next((facts[name] for name in _FIELDS if facts.get(name) is not None), None)
    if value in ("", None) and not needed and not label_field:
        return NO_CLASS_ID
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        usual = f"{key}.cls, or one of {', '.join(_FIELDS)} in {key}.json"
        wanted = f"a field {label_field} in {key}.json" if label_field else usual
        raise ValueError(
            f"{tar.path}: {key} has no label: it needs {wanted}, beside the photo; name the JSON's field with "
            f"--label-field{f' (it has {sorted(facts)})' if facts else ''}"
        )
    return int(value) if isinstance(value, str) and value.isdigit() else value
