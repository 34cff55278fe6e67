"""What a stored set holds and where it comes from: ``manifest.json`` beside the chunks."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from t2ikit.files import below
from t2ikit.pretrained import EncoderReference

MANIFEST_NAME = "manifest.json"
_VERSION = 1

PREPARE_COMMANDS = """\
  t2ikit prepare images --source IMAGE_FOLDER --out DIR
  t2ikit prepare cutmix --setting cmall --out DIR
  t2ikit prepare captions --out DIR
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


@dataclass(frozen=True)
class Manifest:
    """Description of a stored set.

    Attributes:
        kind: "pixels" (uint8 images) or "latents" (float16 posterior mean and standard deviation).
        image_shape: shape of a stored image: [3, H, W] or [2, C, H, W].
        text_dim: width D of the text states, 0 for a set without states.
        max_tokens: longest caption of the set, in tokens.
        token_format: "int8" or "float16".
        token_limit: longer captions were cut to this many tokens; 0 for a set without states.
        text_dtype: precision in which the text encoder ran.
        text_encoder: what encoded the captions, None for a set without states.
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
    text_dim: int = 0
    max_tokens: int = 0
    token_format: str = "int8"
    token_limit: int = 0
    text_dtype: str = ""
    text_encoder: EncoderReference | None = None
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
        if self.token_format not in ("int8", "float16"):
            raise ValueError(f'token_format is "int8" or "float16", not "{self.token_format}"')
        if not self.parts and self.count:  # written before sets had parts
            chunks = sum(name.endswith(".bin") for name in self.chunk_sha256)
            object.__setattr__(self, "parts", (Part(self.count, chunks, self.source_sha256),))

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of a record that an objective may ask for."""
        return ("image",)

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
            values: dict[str, Any] = json.loads(content)
        except json.JSONDecodeError as error:
            raise ValueError(f"it is no JSON ({error})") from error
        version = values.pop("version", None) if isinstance(values, dict) else None
        if version != _VERSION:
            raise ValueError(f"it has version {version}, but this t2ikit reads version {_VERSION}")
        unknown = sorted(values.keys() - {item.name for item in fields(Manifest)})
        if unknown:
            raise ValueError(f"it has unknown fields: {', '.join(unknown)}")
        for name in ("text_encoder", "autoencoder"):
            if values.get(name) is not None:
                values[name] = EncoderReference(**values[name])
        try:
            values["parts"] = tuple(Part(**part) for part in values.get("parts", ()))
            return Manifest(**values)
        except TypeError as error:
            raise ValueError(f"it lacks fields ({error})") from error

    @staticmethod
    def read(folder: str | os.PathLike[str]) -> Manifest:
        """The manifest of the set in ``folder``.

        Raises:
            FileNotFoundError: if there is no set; names ``--data.root`` and the commands that prepare one.
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
            manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
            for name in manifest.chunk_sha256:
                below(path.parent, name)
            return manifest
        except (ValueError, TypeError) as error:
            raise ValueError(f"cannot use {path}: {error}. Prepare the set again:\n{PREPARE_COMMANDS}") from error

    @property
    def text_encoders(self) -> tuple[EncoderReference, ...]:
        """What encoded the captions, in the order in which a denoiser takes them; empty for a set without states."""
        return () if self.text_encoder is None else (self.text_encoder,)

    def mismatch(self, other: Manifest) -> str | None:
        """Why ``other`` cannot be mixed with this set: the first unlike field and both values; None if it can."""
        for name in ("kind", "image_shape", "text_dim", "token_format", "text_encoder", "autoencoder", "normalisation"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if _identity(mine) != _identity(theirs):
                return f"{name} is {_show(theirs)} there and {_show(mine)} here"
        return None


def _identity(value: Any) -> Any:
    """An encoder is its weights: folders of other names may hold the same ones."""
    return value.sha256 or value if isinstance(value, EncoderReference) else value


def _show(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
