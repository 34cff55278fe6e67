"""The prompts of GenEval, read from the official file; images go to folders as its own program reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2ikit.files import check_text, parse_json, read_utf8
from t2ikit.metrics.base import samples_of
from t2ikit.metrics.geneval.files import read_images, read_metadata, write_folder
from t2ikit.metrics.geneval.rules import TASKS
from t2ikit.pictures import Images
from t2ikit.prompts import BenchmarkPrompts, Prompt


@dataclass
class GenEvalPrompts(BenchmarkPrompts):
    """The 553 prompts of GenEval (Ghosh et al. 2023), original or extended; the metadata stay the original ones.

    Attributes:
        path: ``evaluation_metadata.jsonl`` of github.com/djghosh13/geneval.
        images_per_prompt: images of each, 4 in the protocol.
        limit: only the first ones of each task; None takes all.
        extended: texts to sample instead: the list that ``t2ikit prepare extend`` makes; or one a line, in the order of
            ``path`` and as many. Scores of extended and of original prompts are never put side by side.
        tasks: only these of single_object, two_object, counting, colors, position, color_attr; None takes all.
    """

    images_per_prompt: int = 4
    extended: str | None = None
    tasks: Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [task for task in self.tasks or () if task not in TASKS]
        if unknown or (self.tasks is not None and not self.tasks):
            raise ValueError(f"GenEvalPrompts: tasks are some of {', '.join(TASKS)}; got {list(self.tasks or ())}")
        self.name = "GenEval" if self.extended is None else "GenEval, extended prompts"

    def prompts(self) -> list[Prompt]:
        """The selected prompts in the order of the file, each ``images_per_prompt`` times in a row."""
        rows = read_metadata(self.path, "the `path` of GenEvalPrompts")
        texts = [str(row["prompt"]) for row in rows]
        if self.extended is not None:
            texts = read_extended(self.extended, texts, "the `extended` of GenEvalPrompts")
        counts = dict.fromkeys(TASKS, 0)
        prompts = []
        for row, text in zip(rows, texts, strict=True):
            task = row["tag"]
            if (self.tasks is None or task in self.tasks) and (self.limit is None or counts[task] < self.limit):
                counts[task] += 1
                prompts.append(Prompt(text, row))
        if not prompts:
            raise ValueError(f"{self.path} has no prompt of the tasks {', '.join(self.tasks or ())}: change `tasks`")
        return self.repeated(prompts)

    def write_images(self, folder: Path, images: Images, prompts: Sequence[Prompt], facts: Mapping[str, str]) -> None:
        """Writes the official layout, ``00000/metadata.jsonl`` and ``00000/samples/00000.png``, with a grid each."""
        write_folder(folder, samples_of(images, prompts), facts, grid=self.images_per_prompt > 1)

    def read_images(self, folder: Path, prompts: Sequence[Prompt]) -> Images:
        """Images of any model in the official layout; a prompt's folder is found by its metadata."""
        return read_images(folder, [prompt.metadata for prompt in prompts])


def read_extended(path: str | Path, originals: Sequence[str], option: str) -> list[str]:
    """The extended text of every prompt.

    Args:
        path: one text a line, in the order of the originals; or lines of JSON with "prompt" and "extended", in any
            order, after a header with "kind".
        originals: the prompts.
        option: what names the file, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty line, another number of lines, or a prompt without an extended one; names file and line.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no extended prompts {file}: set {option}")
    lines = [line.strip() for line in read_utf8(file).rstrip("\r\n").split("\n")]
    empty = [line_number for line_number, line in enumerate(lines, start=1) if not line]
    if empty:
        raise ValueError(f"{file}, line {empty[0]}: expected the extended text of a prompt; got an empty line")
    if not lines[0].startswith("{"):
        if len(lines) != len(originals):
            raise ValueError(
                f"{file} holds {len(lines)} lines for {len(originals)} prompts: expected one a prompt, in their order"
            )
        return lines
    table = dict(_pairs(file, lines))
    lacking = [prompt for prompt in originals if prompt not in table]
    if lacking:
        raise ValueError(f"{file} has no extended text of {len(lacking)} prompts, first {lacking[0]!r}")
    return [table[prompt] for prompt in originals]


def _pairs(file: Path, lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line_number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {line_number}: expected a JSON object ({error})") from error
        if line_number == 1 and isinstance(row, dict) and "kind" in row:
            continue
        texts = [row.get(key) for key in ("prompt", "extended")] if isinstance(row, dict) else [None]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"{file}, line {line_number}: expected the texts 'prompt' and 'extended'")
        check_text(str(texts[1]), f"{file}, line {line_number}")
        yield str(texts[0]), str(texts[1]).strip()
