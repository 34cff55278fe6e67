"""Where the prompts of a snapshot come from, their text states, and how their images lie in a folder.

Shapes: L text tokens, D width of the text states; a prompt's states are [L, D] without padding.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from t2ikit.encoders.text import TextEncoder
from t2ikit.pictures import find_pictures, read_pictures, save_png
from t2ikit.pretrained import EncoderReference

if TYPE_CHECKING:
    from t2ikit.data.datamodule import DataModule
    from t2ikit.data.records import RecordSet


@dataclass(frozen=True)
class Prompt:
    """One text to draw; ``metadata`` is what the judging metric needs (GenEval's JSON line, facts of the scene)."""

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


class PromptSource(ABC):
    """A named, ordered list of prompts; one that is to be drawn several times is there several times.

    Attributes:
        name: in the fingerprint of every score; by default that of the class.
    """

    name: str | None = None

    @abstractmethod
    def prompts(self, data: DataModule) -> list[Prompt]:
        """The prompts in their fixed order; index i keys the noise of image i."""

    def states(
        self, data: DataModule, prompts: Sequence[Prompt], device: str | torch.device = "cpu"
    ) -> Sequence[Tensor]:
        """Text states of the prompts, each [L, D] float32 on the CPU, from the data's own text encoder.

        Args:
            data: the data module, set up.
            prompts: of this source.
            device: where the text encoder runs; it is gone from there afterwards.
        """
        reference = data.manifest.text_encoder
        if reference is None:
            raise ValueError(f"the data in {data.root} has no text states: run `t2ikit prepare encode`")
        remedy = "bring the same weights or run `t2ikit prepare encode` again"
        encoder = load_encoder(reference, Path(data.root), remedy, device=device)
        return encoder.encode_all([prompt.text for prompt in prompts])

    def pictures(self) -> list[Path]:
        """The photos that the prompts describe, each once: what ``reference: prompts`` of a snapshot compares with.

        Raises:
            ValueError: these prompts have none, as most.
        """
        raise ValueError(
            "reference: prompts needs prompts with photos of their own, such as CocoCaptions, which "
            f"{type(self).__name__} is not: name a split of the data (val)"
        )

    def write_images(self, folder: Path, images: Tensor, prompts: Sequence[Prompt], facts: Mapping[str, str]) -> None:
        """Writes images where the benchmark's own program looks for them; by default 00000.png, 00001.png, ...

        Args:
            folder: an empty one.
            images: uint8 [N, 3, H, W].
            prompts: theirs.
            facts: how they were made, for the metadata of a PNG.
        """
        for number, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            save_png(image, folder / f"{number:05d}.png", {"prompt": prompt.text, "index": str(number), **facts})

    def read_images(self, folder: Path, prompts: Sequence[Prompt]) -> Tensor:
        """The inverse: images of any model for these prompts, uint8 [N, 3, H, W].

        Raises:
            FileNotFoundError: no folder, or no picture in it.
            ValueError: another number of pictures than of prompts, a broken picture, or one of another size.
        """
        files = find_pictures(folder)
        if len(files) != len(prompts):
            raise ValueError(
                f"{folder} holds {len(files)} pictures, {type(self).__name__} has {len(prompts)} prompts: one picture "
                "a prompt is needed, in the order of their names (or take the first ones with --limit)"
            )
        return read_pictures(files)


class CaptionPrompts(PromptSource):
    """The captions of a prepared set, with their stored text states.

    Args:
        split: the set below the data root.
        limit: take only the first ones; None takes all.
    """

    def __init__(self, split: str = "val", limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"CaptionPrompts: limit must be at least 1 or null, got {limit}")
        self.split = split
        self.limit = limit

    def prompts(self, data: DataModule) -> list[Prompt]:
        records = data.record_set(self.split)
        count = len(records) if self.limit is None else min(self.limit, len(records))
        return [Prompt(record.captions[0], record.metadata) for record in (records[i] for i in range(count))]

    def states(
        self, data: DataModule, prompts: Sequence[Prompt], device: str | torch.device = "cpu"
    ) -> Sequence[Tensor]:
        return _StoredStates(data.record_set(self.split), len(prompts))


class _StoredStates(Sequence[Tensor]):
    """States of the first captions of a set, read when they are asked for: those of 30,000 take gigabytes."""

    def __init__(self, records: RecordSet, length: int) -> None:
        self.records = records
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Tensor]:
        return (self[place] for place in range(self.length))

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(self.length))]
        if not 0 <= place < self.length:
            raise IndexError(place)
        return torch.as_tensor(self.records[place].tokens[0].dequantise())


class PromptFile(PromptSource):
    """One prompt a line from a text file; empty lines are skipped.

    Args:
        path: UTF-8 text file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def prompts(self, data: DataModule) -> list[Prompt]:
        return [Prompt(line) for line in read_prompts(self.path, "the `path` of PromptFile")]


def read_prompts(path: str | Path, option: str) -> list[str]:
    """The lines of a UTF-8 text file that are not empty.

    Args:
        path: of the file.
        option: what gives it, for the message.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there is no prompt in it, or it is no UTF-8 text.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no prompt file {file}: set {option}")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file {file} is no UTF-8 text ({error}): set {option}") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"the prompt file {file} holds no prompt")
    return prompts


def load_encoder(
    reference: EncoderReference,
    root: Path | None,
    remedy: str,
    name: str | None = None,
    device: str | torch.device = "cpu",
) -> TextEncoder:
    """The very text encoder that a prepared set was encoded with.

    Args:
        reference: of the set's manifest.
        root: data root, where a text encoder that was built for the set lies.
        remedy: what to do about other weights, the end of the message.
        name: folder or repository to take it from instead of the recorded one.
        device: where the model runs.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it has other weights.
    """
    place, revision = name or reference.name, reference.revision if name in (None, reference.name) else None
    if name is None and root is not None and (root / reference.name).is_dir():
        place = str(root / reference.name)
    encoder = TextEncoder.load(place, revision, device)
    if encoder.reference.sha256 != reference.sha256:
        raise ValueError(
            f"the text encoder {place} has other weights than the one the data was prepared with "
            f"({encoder.reference.sha256[:12]}, manifest: {reference.sha256[:12]}): {remedy}"
        )
    return encoder


def prompts_hash(prompts: Sequence[Prompt]) -> str:
    """sha256 of the prompts in their order, part of every score's fingerprint."""
    return hashlib.sha256("\n".join(prompt.text for prompt in prompts).encode()).hexdigest()


def check_count(source: str, option: str, value: int | None) -> None:
    """ValueError unless the option of a prompt source is None or at least 1."""
    if value is not None and value < 1:
        raise ValueError(f"{source}: {option} must be at least 1, got {value}")
