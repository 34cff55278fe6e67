"""A file of captions: a header that says how they were made, then one line of JSON an image, in the images' order::

    {"key": "train/n02012849/n02012849_0000.JPEG", "captions": ["An image of crane", "A grey crane stands in ..."]}

An image may have several captions, one of each *column*: caption i of every image was made in the same way. Streams
draw from the columns by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2ikit.prepare.captioners import Decoding
from t2ikit.pretrained import EncoderReference

CAPTIONS = "captions"
"""Folder of the captions below the output folder."""

Row = tuple[str, tuple[str, ...]]
"""Key of an image and its captions."""


@dataclass(frozen=True)
class CaptionColumn:
    """How caption i of every image was made.

    Attributes:
        name: of the column, unlike the others'; streams mix columns by it.
        kind: "aio", "llava", "http" or "file".
        identity: hash of what decides the captions: weights, prompts and decoding, or the captions themselves.
        source: file, or address of the server.
        model: name of the captioner.
        captioner: its weights; None where they are not known.
        prompt, cutmix_prompt: what it was asked about plain and about CutMix images.
        decoding: how its answers were drawn.
        empty: images about which it had nothing to say, and which have their AIO caption instead.
        versions: of the programs that made the captions.
    """

    name: str
    kind: str
    identity: str
    source: str = ""
    model: str = ""
    captioner: EncoderReference | None = None
    prompt: str = ""
    cutmix_prompt: str = ""
    decoding: Decoding | None = None
    empty: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CaptionColumn:
        """From ``asdict``."""
        captioner, decoding = values.get("captioner"), values.get("decoding")
        return cls(
            **{
                **values,
                "captioner": EncoderReference.from_dict(captioner) if captioner else None,
                "decoding": Decoding(**decoding) if decoding else None,
            }
        )

    def made_as(self, other: CaptionColumn) -> bool:
        """Whether both hold the same captions of an image, and are called the same."""
        return (self.name, self.kind, self.identity) == (other.name, other.kind, other.identity)


@dataclass(frozen=True)
class CaptionHeader:
    """First line of a file of captions.

    Attributes:
        columns: how the captions of an image were made, in their order.
        images: identity of the image set that they belong to.
        count: number of images.
    """

    columns: tuple[CaptionColumn, ...]
    images: str
    count: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def kind(self) -> str:
        """The names as one word, as the manifest of an encoded set holds them: "aio", "aio+long"."""
        return "+".join(self.kinds)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CaptionHeader:
        """From ``asdict``."""
        return cls(tuple(CaptionColumn.from_dict(one) for one in values["columns"]), values["images"], values["count"])


class CaptionSet:
    """The captions of one image set, read line by line.

    Raises:
        FileNotFoundError: there are none; says how to make them.
        ValueError: the file is none of captions, or of another version.
    """

    def __init__(self, out: Path, name: str) -> None:
        self.path = caption_file(out, name)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"the images of {name} have no captions: run t2ikit prepare captions --out {out} first (--kind llava "
                "for a captioner, --captions FILE for your own)"
            )
        with self.path.open(encoding="utf-8") as stream:
            try:
                self.header = CaptionHeader.from_dict(json.loads(stream.readline()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{self.path} has no header of captions, or that of another version ({error!r}): make it again "
                    f"with t2ikit prepare captions --out {out} --overwrite"
                ) from error

    def __iter__(self) -> Iterator[Row]:
        with self.path.open(encoding="utf-8") as stream:
            stream.readline()
            for line in stream:
                row = json.loads(line)
                yield row["key"], tuple(row["captions"])


def caption_file(root: Path, name: str) -> Path:
    """Where the captions of an image set are."""
    return root / CAPTIONS / f"{name}.jsonl"
