"""Prompts and where they come from: the texts of a snapshot, and the layout of their images in a folder.

A benchmark's prompts are beside the metric that judges them (``t2ikit.metrics``), those of a prepared set in
``t2ikit.evaluation``, those of the embedded shapes in ``t2ikit.shapes``; here are the contract and plain text files.

Shapes: L text tokens, D width of the text states; a prompt's text is one row, [1, L, D] without padding.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2ikit.batch import Texts
from t2ikit.files import check_text, read_lines
from t2ikit.pictures import Images, PictureFiles, find_pictures, save_png

Encode = Callable[[Sequence[str]], Sequence[Texts]]
"""Prompts to their text states, each one row on the CPU; of several text encoders a tuple."""


@dataclass(frozen=True)
class Prompt:
    """The text of one image; ``metadata`` is what its metric needs (GenEval's JSON line, facts of the scene).

    Raises:
        ValueError: the text is too long, or holds half a character.
    """

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text(self.text, "a prompt")


class PromptSource(ABC):
    """A named, ordered list of prompts; one that gets several images stands in it several times.

    Attributes:
        name: in the fingerprint of every score; by default that of the class.
        remedy: what gives more prompts, where a metric needs more; by default a higher limit.
    """

    name: str | None = None
    remedy: str | None = None

    @abstractmethod
    def prompts(self) -> list[Prompt]:
        """The prompts in their fixed order; index i keys the noise of image i."""

    def with_data(self, data: Any) -> PromptSource:
        """The source for one data set. Most need none and return themselves.

        Args:
            data: the :class:`t2ikit.data.DataModule` of the run, set up.
        """
        return self

    def states(self, prompts: Sequence[Prompt], encode: Encode) -> Sequence[Texts]:
        """Text states of the prompts, each one row on the CPU: embeddings [1, L, D] float32, or a tuple of such.

        Args:
            prompts: of this source.
            encode: the text encoder of the data.
        """
        return encode([prompt.text for prompt in prompts])

    def pictures(self) -> list[Path]:
        """The photos that the prompts describe, each once: what ``reference: prompts`` of a snapshot compares with.

        Raises:
            ValueError: these prompts have none, as most.
        """
        raise ValueError(
            "reference: prompts needs prompts with photos of their own, such as CocoCaptions, which "
            f"{self.name or type(self).__name__} is not: name a split of the data (val)"
        )

    def write_images(self, folder: Path, images: Images, prompts: Sequence[Prompt], facts: Mapping[str, str]) -> None:
        """Writes images where the benchmark's own program looks for them; by default 00000.png, 00001.png, ...

        Args:
            folder: an empty one.
            images: uint8 [N, 3, H, W].
            prompts: theirs.
            facts: how they were made, for the metadata of a PNG.
        """
        for index, prompt in enumerate(prompts):
            save_png(images[index], folder / f"{index:05d}.png", {"prompt": prompt.text, "index": str(index), **facts})

    def read_images(self, folder: Path, prompts: Sequence[Prompt]) -> Images:
        """The inverse: images of any model for these prompts, uint8 [N, 3, H, W], which stay on disk.

        Raises:
            FileNotFoundError: no folder, or no picture in it.
            ValueError: another number of pictures than of prompts, a file that is no image, or one of another size.
        """
        files = find_pictures(folder)
        if len(files) != len(prompts):
            raise ValueError(
                f"{folder} holds {len(files)} pictures, {self.name or type(self).__name__} has {len(prompts)} prompts: "
                "one picture a prompt is needed, in the order of their names (or take the first ones with --limit)"
            )
        return PictureFiles(files)


@dataclass
class PromptFile(PromptSource):
    """One prompt a line from a text file; empty lines are skipped.

    Attributes:
        path: UTF-8 text file.
    """

    path: str

    def prompts(self) -> list[Prompt]:
        return [Prompt(line) for line in read_prompts(self.path, "the `path` of PromptFile")]


@dataclass
class BenchmarkPrompts(PromptSource):
    """The prompts of a benchmark, read from its own file.

    Attributes:
        path: of the file.
        images_per_prompt: images of each prompt, in a row.
        limit: only the first prompts; None takes all.
    """

    path: str
    images_per_prompt: int = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        for option, value in (("images_per_prompt", self.images_per_prompt), ("limit", self.limit)):
            check_count(type(self).__name__, option, value)

    def repeated(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """Each prompt ``images_per_prompt`` times in a row."""
        return [prompt for prompt in prompts for _ in range(self.images_per_prompt)]


def read_prompts(path: str | Path, option: str) -> list[str]:
    """The lines of a UTF-8 text file that are not empty.

    Args:
        path: of the file.
        option: what gives it, for the message.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there is no prompt in it, or it is no UTF-8 text.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no prompt file {file}: set {option}")
    try:
        prompts = [line.strip() for line in read_lines(file) if line.strip()]
    except ValueError as error:
        raise ValueError(f"the prompt file {error}: set {option}") from error
    if not prompts:
        raise ValueError(f"the prompt file {file} holds no prompt")
    for prompt in prompts:
        check_text(prompt, f"a line of the prompt file {file}")
    return prompts


def prompts_hash(prompts: Sequence[Prompt]) -> str:
    """sha256 of the prompts in their order, part of every score's fingerprint."""
    return hashlib.sha256("\n".join(prompt.text for prompt in prompts).encode()).hexdigest()


def check_count(source: str, option: str, value: int | None) -> None:
    """ValueError unless the option of a prompt source is None or at least 1."""
    if value is not None and value < 1:
        raise ValueError(f"{source}: {option} must be at least 1, got {value}")
