"""What a stored set holds and where it comes from: ``manifest.json`` beside the chunks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

from t2ikit.files import below, parse_json
from t2ikit.pretrained import EncoderReference
from t2ikit.records.compressed import CODECS
from t2ikit.records.layout import STORAGE
from t2ikit.records.record import Record

MANIFEST_NAME = "manifest.json"
_VERSION = 2

PREPARE_COMMANDS = """\
  t2ikit prepare images --source IMAGE_FOLDER --out DIR
  t2ikit prepare cutmix --setting cmall --out DIR
  t2ikit prepare captions --out DIR --kind llava   # the papers' long captions; without --kind "An image of <class>"
  t2ikit prepare encode --out DIR"""


@dataclass(frozen=True)
class Part:
    """What was written at one go: the set as it began, or what was appended to it.

    Attributes:
        count: number of records.
        chunks: number of chunks.
        source_sha256: hash of everything that the records were made from.
    """

    count: int
    chunks: int
    source_sha256: str


class OtherVersion(ValueError):
    """A set of an earlier version of the kit, which is encoded again."""


@dataclass(frozen=True)
class StoredArray:
    """One array of every record of a set.

    Attributes:
        storage: kind of storage (``t2ikit/records/layout.py``); that of a compressed picture is its codec.
        shape: of the array, of a compressed picture once it is decoded; None along an axis whose size differs from
            record to record.
        made_by: the network that made it, None for what no network made.
    """

    storage: str
    shape: tuple[int | None, ...]
    made_by: EncoderReference | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.storage not in STORAGE:
            raise ValueError(f'an array is stored as one of {", ".join(STORAGE)}, not "{self.storage}"')

    def holds(self, storage: str, shape: tuple[int, ...]) -> bool:
        """Whether an array of a record is as described here."""
        free = zip(self.shape, shape, strict=False)
        sizes_fit = len(shape) == len(self.shape) and all(size in (None, real) for size, real in free)
        return sizes_fit and storage == self.storage


@dataclass(frozen=True)
class TextSource:
    """The states of one text encoder, of every caption.

    Attributes:
        dim: width D of the states.
        encoder: which weights made them.
        pooled: width P of the pooled vectors, 0 for an encoder that gives none.
    """

    dim: int
    encoder: EncoderReference | None = None
    pooled: int = 0


@dataclass(frozen=True)
class Manifest:
    """Description of a stored set.

    Attributes:
        kind: "pixels" (uint8 images) or "latents" (float16 posterior mean and standard deviation).
        image_shape: shape of a stored image: [3, H, W] or [2, C, H, W].
        image_codec: "png" or "webp" for compressed pixels, empty for what is stored as it is.
        texts: by a short name, the text encoders whose states the set holds, in the order in which a denoiser takes
            them; empty for a set without states. Their arrays are ``text.<name>.<caption>``, of kind "quantised" or
            "float16" (``token_format``), and ``pooled.<name>.<caption>``, float16.
        further: every array but the image and those of the text encoders, such as ``picture``.
        max_tokens: longest caption of the set, in tokens of the text encoder that needs most.
        token_format: "int8" or "float16".
        token_limit: longer captions were cut to this many tokens; 0 for a set without states.
        text_dtype: precision in which the text encoders ran.
        autoencoder: what encoded the images, None for pixels.
        autoencoder_dtype: precision in which the autoencoder ran; empty for pixels.
        normalisation: of the stored images. "none": pixels 0 .. 255, or the posterior as the autoencoder gives it,
            which an experiment then normalises as it wants.
        captions: kind of the captions, such as "aio" or "long".
        captioners: of every kind of caption, what made it: model, hash of its weights, prompts.
        setting: CutMix setting, None for plain images.
        source: where the images come from.
        source_sha256: hash of everything that the records were made from; of several parts, that of their hashes.
        versions: versions of the programs that wrote the set.
        count: number of records; this and what follows is filled in when the set is written.
        chunk_sha256: SHA-256 of every file of the set.
        parts: what was written at one go, in order; the records of a part are never changed by later ones.
    """

    kind: str
    image_shape: tuple[int, ...]
    image_codec: str = ""
    texts: dict[str, TextSource] = field(default_factory=dict)
    further: dict[str, StoredArray] = field(default_factory=dict)
    max_tokens: int = 0
    token_format: str = "int8"
    token_limit: int = 0
    text_dtype: str = ""
    autoencoder: EncoderReference | None = None
    autoencoder_dtype: str = ""
    normalisation: str = "none"
    captions: str = ""
    captioners: dict[str, dict[str, str]] = field(default_factory=dict)
    setting: str | None = None
    source: str = ""
    source_sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    count: int = 0
    chunk_sha256: dict[str, str] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", tuple(int(size) for size in self.image_shape))
        if self.kind not in ("pixels", "latents"):
            raise ValueError(f'the kind of a set is "pixels" or "latents", not "{self.kind}"')
        if len(self.image_shape) != (3 if self.kind == "pixels" else 4):
            raise ValueError(f"an image of a set of {self.kind} cannot have shape {list(self.image_shape)}")
        if self.image_codec not in ("", *CODECS) or (self.image_codec and self.kind != "pixels"):
            raise ValueError(f'images of a set of {self.kind} cannot be compressed as "{self.image_codec}"')
        if self.token_format not in ("int8", "float16"):
            raise ValueError(f'token_format is "int8" or "float16", not "{self.token_format}"')

    @property
    def arrays(self) -> dict[str, StoredArray]:
        """The arrays of a record that an objective may ask for: all but the text states, which every batch has."""
        storage = self.image_codec or ("uint8" if self.kind == "pixels" else "float16")
        return {"image": StoredArray(storage, self.image_shape, self.autoencoder), **self.further}

    @property
    def text_arrays(self) -> dict[str, StoredArray]:
        """The arrays of every caption, without its number: ``text.<encoder>`` and ``pooled.<encoder>``."""
        storage = "quantised" if self.token_format == "int8" else "float16"
        arrays = {}
        for name, text in self.texts.items():
            arrays[f"text.{name}"] = StoredArray(storage, (None, text.dim), text.encoder)
            if text.pooled:
                arrays[f"pooled.{name}"] = StoredArray("float16", (text.pooled,), text.encoder)
        return arrays

    @property
    def text_dim(self) -> int | tuple[int, ...]:
        """Width of the text states: 0 for a set without, of several text encoders a tuple, in their order."""
        widths = tuple(text.dim for text in self.texts.values())
        return widths if len(widths) > 1 else sum(widths)

    @property
    def text_encoders(self) -> tuple[EncoderReference, ...]:
        """What encoded the captions, in the order of ``texts``."""
        return tuple(text.encoder for text in self.texts.values() if text.encoder is not None)

    def faults(self, record: Record) -> Iterator[str]:
        """What a record lacks, has beyond what is described here, or has in another shape or kind of storage."""
        described = dict(self.arrays)
        for name, array in self.text_arrays.items():
            described |= {f"{name}.{caption}": array for caption in range(max(1, len(record.captions)))}
        stored = {name: (column.storage, record.shape(name)) for name, column in record.layout.columns.items()}
        for name in {**described, **stored}:
            wanted, real = described.get(name), stored.get(name)
            if real is None:
                yield f"there is no array {name}"
            elif wanted is None:
                yield f"the manifest knows no array {name}"
            elif not wanted.holds(*real):
                yield f"{name} is {real[0]} {real[1]}, the manifest says {wanted.storage} {wanted.shape}"

    def to_json(self) -> str:
        """The content of ``manifest.json``."""
        return json.dumps({"version": _VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(content: str) -> Manifest:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: for another version, fields that are missing or unknown, or text that is no JSON.
        """
        try:
            values: dict[str, Any] = parse_json(content)
        except json.JSONDecodeError as error:
            raise ValueError(f"it is no JSON ({error})") from error
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        version = values.pop("version", None)
        if version == 1:
            values = _from_version_1(values)
        elif version != _VERSION:
            raise ValueError(f"it has version {version}, but this t2ikit reads version {_VERSION}")
        unknown = sorted(values.keys() - {item.name for item in fields(Manifest)})
        if unknown:
            raise ValueError(f"it has unknown fields: {', '.join(unknown)}")
        try:
            values["autoencoder"] = _reference(values.get("autoencoder"))
            values["texts"] = {
                name: TextSource(**{**text, "encoder": _reference(text["encoder"])})
                for name, text in values.get("texts", {}).items()
            }
            values["further"] = {
                name: StoredArray(**{**array, "made_by": _reference(array["made_by"])})
                for name, array in values.get("further", {}).items()
            }
            values["parts"] = tuple(Part(**part) for part in values.get("parts", ()))
            return Manifest(**values)
        except (TypeError, KeyError) as error:
            raise ValueError(f"it lacks fields ({error})") from error

    @staticmethod
    def read(folder: str | os.PathLike[str]) -> Manifest:
        """The manifest of the set in ``folder``.

        Raises:
            FileNotFoundError: if there is no set; names ``--data.root`` and the commands that prepare one.
            OtherVersion: the set is encoded by an earlier version; names the command that encodes it again.
            ValueError: if the manifest cannot be read, or names a file outside the folder; says why and what to do.
        """
        path = Path(folder) / MANIFEST_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no prepared set in {Path(folder)} (no {MANIFEST_NAME}).\n"
                "Point --data.root at a folder that holds train/ and val/, or prepare it (the options are in the first "
                "lines of the experiment file and in docs/data.md):\n" + PREPARE_COMMANDS
            )
        try:
            content = path.read_text(encoding="utf-8")
            manifest = Manifest.from_json(content)
            if manifest.texts and parse_json(content)["version"] != _VERSION:
                raise OtherVersion(
                    f"{path.parent} was encoded by an earlier version of t2ikit. Its images and captions can stay; "
                    f"encode them again, with the options of the first time:\n"
                    f"  t2ikit prepare encode --out {path.parent.parent} --overwrite"
                )
            for name in manifest.chunk_sha256:
                below(path.parent, name)
            return manifest
        except OtherVersion:
            raise
        except (ValueError, TypeError) as error:
            raise ValueError(f"cannot use {path}: {error}. Prepare the set again:\n{PREPARE_COMMANDS}") from error

    @property
    def encoders_shown(self) -> str:
        """The text encoders for a message: names, with the first letters of their hashes."""
        return ", ".join(f"{encoder.name} ({encoder.sha256:.8})" for encoder in self.text_encoders)

    def same_encoders(self, other: Manifest) -> bool:
        """Whether the same text encoders, in the same order, encoded the captions of both; by name without a hash."""
        known = all(reference.sha256 for reference in (*self.text_encoders, *other.text_encoders))
        if known or len(self.text_encoders) != len(other.text_encoders):
            return bool(identity(self.text_encoders) == identity(other.text_encoders))
        pairs = zip(self.text_encoders, other.text_encoders, strict=True)  # of imported weights only the name is known
        return all(mine.name == theirs.name for mine, theirs in pairs)

    def mismatch(self, other: Manifest) -> str | None:
        """Why ``other`` cannot be mixed with this set: the first unlike field and both values; None if it can."""
        names = ("kind", "image_shape", "text_dim", "token_format", "text_encoders", "autoencoder", "normalisation")
        for name in names:
            mine, theirs = getattr(self, name), getattr(other, name)
            if identity(mine) != identity(theirs):
                return f"{name} is {_show(theirs)} there and {_show(mine)} here"
        if list(self.texts) != list(other.texts):
            return f"the text encoders are called {', '.join(other.texts)} there and {', '.join(self.texts)} here"
        return None


def _reference(values: dict[str, Any] | None) -> EncoderReference | None:
    return None if values is None else EncoderReference(**values)


def _from_version_1(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a manifest of version 1, which knew one text encoder, always a T5."""
    width, encoder = values.pop("text_dim", 0), values.pop("text_encoder", None)
    if not values.get("parts") and values.get("count"):  # written before sets had parts
        chunks = sum(name.endswith(".bin") for name in values["chunk_sha256"])
        values["parts"] = [{"count": values["count"], "chunks": chunks, "source_sha256": values["source_sha256"]}]
    return {**values, "texts": {"t5": {"dim": width, "encoder": encoder}} if width else {}}


def identity(value: Any) -> Any:
    """An encoder is its weights: folders of other names may hold the same ones."""
    if isinstance(value, tuple):
        return tuple(identity(entry) for entry in value)
    return value.sha256 or value if isinstance(value, EncoderReference) else value


def _show(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def set_names(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the sets below a folder, sorted: ``train``, or ``train/1.00`` of an aspect bucket; hidden ones are not
    listed."""
    root = Path(folder)
    manifests = chain(root.glob(f"[!.]*/{MANIFEST_NAME}"), root.glob(f"[!.]*/[!.]*/{MANIFEST_NAME}"))
    return sorted(path.parent.relative_to(root).as_posix() for path in manifests)


def root_and_name(folder: Path) -> tuple[Path, str]:
    """The folder that holds the splits, and the name of a set below it: ``train``, or ``train/1.00`` of a bucket."""
    if re.fullmatch(r"[0-9]+\.[0-9]{2}", folder.name):
        return folder.parents[1], f"{folder.parent.name}/{folder.name}"
    return folder.parent, folder.name
