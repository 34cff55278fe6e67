"""The prompts of GenEval, DPG-Bench and PartiPrompts, read from their official files.

Every source repeats a prompt as often as it is drawn; the images go to files as the benchmark's own program reads them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from t2ikit.data.prompts import Prompt, PromptSource, check_count
from t2ikit.metrics.base import Samples
from t2ikit.metrics.dpg_grids import read_grids, write_grids
from t2ikit.metrics.geneval_files import read_images, read_metadata, write_folder
from t2ikit.metrics.geneval_rules import TASKS

if TYPE_CHECKING:
    from t2ikit.data.datamodule import DataModule

PARTI_COLUMNS = ("Prompt", "Category", "Challenge", "Note")


class GenEvalPrompts(PromptSource):
    """The 553 prompts of GenEval (Ghosh et al. 2023), original or extended; the metadata stay the original ones."""

    def __init__(
        self,
        path: str,
        extended: str | None = None,
        images_per_prompt: int = 4,
        tasks: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> None:
        """Settings.

        Args:
            path: ``evaluation_metadata.jsonl`` of github.com/djghosh13/geneval.
            extended: texts to draw instead: the list that ``t2ikit prepare extend`` makes; or one a line, in the order
                of ``path`` and as many. Scores of extended and of original prompts are never put side by side.
            images_per_prompt: images of each, 4 in the protocol.
            tasks: only these of single_object, two_object, counting, colors, position, color_attr; None takes all.
            limit: only the first ones of each task; None takes all.
        """
        check_count("GenEvalPrompts", "images_per_prompt", images_per_prompt)
        check_count("GenEvalPrompts", "limit", limit)
        unknown = [task for task in tasks or () if task not in TASKS]
        if unknown or (tasks is not None and not tasks):
            raise ValueError(f"GenEvalPrompts: tasks are some of {', '.join(TASKS)}; got {list(tasks or ())}")
        self.path = path
        self.extended = extended
        self.images_per_prompt = images_per_prompt
        self.tasks = None if tasks is None else tuple(tasks)
        self.limit = limit
        self.name = "GenEval" if extended is None else "GenEval, extended prompts"

    def prompts(self, data: DataModule) -> list[Prompt]:
        """The selected prompts in the order of the file, each ``images_per_prompt`` times in a row."""
        rows = read_metadata(self.path, "the `path` of GenEvalPrompts")
        texts = [str(row["prompt"]) for row in rows]
        if self.extended is not None:
            texts = read_extended(self.extended, texts, "the `extended` of GenEvalPrompts")
        taken = dict.fromkeys(TASKS, 0)
        found = []
        for row, text in zip(rows, texts, strict=True):
            task = row["tag"]
            if (self.tasks is None or task in self.tasks) and (self.limit is None or taken[task] < self.limit):
                taken[task] += 1
                found += [Prompt(text, row)] * self.images_per_prompt
        if not found:
            raise ValueError(f"{self.path} has no prompt of the tasks {', '.join(self.tasks or ())}: change `tasks`")
        return found

    def write_images(self, folder: Path, images: Tensor, prompts: Sequence[Prompt], facts: Mapping[str, str]) -> None:
        """Writes the official layout, ``00000/metadata.jsonl`` and ``00000/samples/00000.png``, with a grid each."""
        write_folder(folder, _samples(images, prompts), facts, grid=self.images_per_prompt > 1)

    def read_images(self, folder: Path, prompts: Sequence[Prompt]) -> Tensor:
        """Images of any model in the official layout; a prompt's folder is found by its metadata."""
        return read_images(folder, [prompt.metadata for prompt in prompts])


class DPGPrompts(PromptSource):
    """The 1,065 dense prompts of DPG-Bench (Hu et al. 2024); ``item_id`` is the name of a prompt's file."""

    name = "DPG-Bench"

    def __init__(self, path: str, images_per_prompt: int = 4, limit: int | None = None) -> None:
        """Settings.

        Args:
            path: folder of ``<item_id>.txt`` (``dpg_bench/prompts`` of github.com/TencentQQGYLab/ELLA).
            images_per_prompt: images of each, 1 to 4; 4, as a 2 x 2 grid, in the protocol.
            limit: only the first prompts, by name; None takes all.
        """
        check_count("DPGPrompts", "images_per_prompt", images_per_prompt)
        check_count("DPGPrompts", "limit", limit)
        if images_per_prompt > 4:
            raise ValueError(
                f"DPGPrompts: images_per_prompt is at most 4, a grid holds no more; got {images_per_prompt}"
            )
        self.path = path
        self.images_per_prompt = images_per_prompt
        self.limit = limit

    def prompts(self, data: DataModule) -> list[Prompt]:
        """The prompts by the names of their files, each ``images_per_prompt`` times in a row."""
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder of DPG-Bench prompts {folder}: set the `path` of DPGPrompts")
        files = sorted(path for path in folder.glob("*.txt") if not path.name.startswith("."))
        if not files:
            raise FileNotFoundError(f"no <item_id>.txt in {folder}: set the `path` of DPGPrompts")
        found = []
        for file in files[: self.limit]:
            # The official scorer takes a name up to its first dot for the item.
            if "." in file.stem:
                raise ValueError(f"{file}: an item's name holds no dot; expected <item_id>.txt")
            text = " ".join(_read_text(file).split())
            if not text:
                raise ValueError(f"{file} is empty: expected the text of one prompt")
            found += [Prompt(text, {"item_id": file.stem})] * self.images_per_prompt
        return found

    def write_images(self, folder: Path, images: Tensor, prompts: Sequence[Prompt], facts: Mapping[str, str]) -> None:
        """Writes one grid a prompt, ``<item_id>.png``; a single image as it is."""
        write_grids(_samples(images, prompts), folder)

    def read_images(self, folder: Path, prompts: Sequence[Prompt]) -> Tensor:
        """Images of any model as one grid a prompt, ``<item_id>.png``; grids of other items are left alone."""
        read = read_grids(folder, self.images_per_prompt)
        places: dict[str, list[int]] = {}
        for number, entry in enumerate(read.metadata):
            places.setdefault(entry["item_id"], []).append(number)
        wanted = [prompt.metadata["item_id"] for prompt in prompts]
        lacking = [item for item in dict.fromkeys(wanted) if item not in places]
        if lacking:
            raise ValueError(f"{folder} lacks the grids of {len(lacking)} prompts, first {lacking[0]}.png")
        taken = {item: iter(found) for item, found in places.items()}
        return read.images[[next(taken[item]) for item in wanted]]


class PartiPrompts(PromptSource):
    """The 1,632 prompts of PartiPrompts (Yu et al. 2022), one image each; the papers' rewards are means over them."""

    name = "PartiPrompts"

    def __init__(self, path: str, images_per_prompt: int = 1, limit: int | None = None) -> None:
        """Settings.

        Args:
            path: ``PartiPrompts.tsv`` of github.com/google-research/parti.
            images_per_prompt: images of each.
            limit: only the first prompts; None takes all.
        """
        check_count("PartiPrompts", "images_per_prompt", images_per_prompt)
        check_count("PartiPrompts", "limit", limit)
        self.path = path
        self.images_per_prompt = images_per_prompt
        self.limit = limit

    def prompts(self, data: DataModule) -> list[Prompt]:
        """The prompts in the order of the file; metadata are category, challenge and note."""
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"no table {file}: set the `path` of PartiPrompts to PartiPrompts.tsv")
        # A quote is a letter like any other: one prompt starts with one.
        rows = list(csv.reader(_read_text(file).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
        if not rows or tuple(rows[0]) != PARTI_COLUMNS:
            raise ValueError(f"{file}, line 1: expected the columns {', '.join(PARTI_COLUMNS)}, separated by tabs")
        found = []
        for number, row in enumerate(rows[1:], start=2):
            if len(row) != len(PARTI_COLUMNS) or not row[0].strip():
                raise ValueError(
                    f"{file}, line {number}: expected a prompt and {len(PARTI_COLUMNS)} columns; got {row}"
                )
            metadata = {column.lower(): value for column, value in zip(PARTI_COLUMNS[1:], row[1:], strict=True)}
            found += [Prompt(row[0].strip(), metadata)] * self.images_per_prompt
        if not found:
            raise ValueError(f"{file} holds no prompt")
        return found[: None if self.limit is None else self.limit * self.images_per_prompt]


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
    lines = [line.strip() for line in _read_text(file).rstrip("\n").split("\n")]
    empty = [number for number, line in enumerate(lines, start=1) if not line]
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
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: expected a JSON object ({error})") from error
        if number == 1 and isinstance(row, dict) and "kind" in row:
            continue
        texts = [row.get(key) for key in ("prompt", "extended")] if isinstance(row, dict) else [None]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"{file}, line {number}: expected the texts 'prompt' and 'extended'")
        yield str(texts[0]), str(texts[1]).strip()


def _samples(images: Tensor, prompts: Sequence[Prompt]) -> Samples:
    return Samples(images, [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts])


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text ({error})") from error
