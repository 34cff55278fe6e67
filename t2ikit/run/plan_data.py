"""What a plan knows of an experiment's data: read where it is prepared, else by its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t2ikit.config.errors import ConfigError
from t2ikit.data.datamodule import DataModule
from t2ikit.module import TextToImage
from t2ikit.records.manifest import MANIFEST_NAME, Manifest
from t2ikit.records.record_set import RecordSet
from t2ikit.records.states import groups
from t2ikit.run.cost import widths

TOKENS = (180, 77)
"""Tokens of a caption where none are said and no data is there: a long one by T5, CLIP's limit."""

IMAGES = {"train": 1_281_167, "val": 50_000}
"""Of ImageNet, where none are said and no data is there."""

_DETAILS = 1_500
"""Bytes of a record beside its arrays: header, captions, metadata."""


def first_set(data: DataModule) -> Path:
    """The training set of a local root, or of its aspect buckets the first."""
    train = Path(data.folder) / "train"
    return train / data.bucket_names[0] if data.bucket_names else train


def stored_manifest(data: DataModule) -> Manifest | None:
    """Of the training set; None where it is not here."""
    if not isinstance(data.folder, Path) or not (first_set(data) / MANIFEST_NAME).is_file():
        return None
    return Manifest.read(first_set(data))


def longest_captions(records: RecordSet, count: int = 256) -> tuple[int, ...]:
    """The most tokens of a caption by each text encoder, among the first records; as long as a batch is padded to."""
    longest: dict[str, int] = {}
    for index in range(min(count, len(records))):
        for name, states in records[index].texts.items():
            longest[name] = max(longest.get(name, 1), *(len(entry.tokens.values) for entry in states))
    return tuple(longest.values())


def shapes_of(names: Sequence[str], stored: Manifest | None) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that the objective reads."""
    if "image" in names:
        names = [name for name in names if name != "image"]
    if names and stored is None:
        lacking = ", ".join(names)
        raise ConfigError(f"model.init_args.objective reads {lacking}, whose shapes only prepared data says")
    known = {} if stored is None else stored.further
    return {name: tuple(axis or 1 for axis in known[name].shape) for name in names}


def record_bytes(model: TextToImage, tokens: Sequence[int]) -> int:
    """Bytes of a record: the image as it is stored, and the states of one caption by every text encoder."""
    channels, height, width = model.denoiser.input_shape
    numbers = channels * height * width
    image = numbers if model.space.kind == "pixels" else 2 * 2 * numbers
    states = sum(
        count * (columns + 2 * groups(columns)) for count, columns in zip(tokens, widths(model.denoiser), strict=True)
    )
    return image + states + _DETAILS


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
