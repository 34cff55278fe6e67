"""The prompts of PartiPrompts, read from the official table."""

from __future__ import annotations

import csv
from pathlib import Path

from t2ikit.files import read_utf8
from t2ikit.prompts import Prompt, PromptSource, check_count

PARTI_COLUMNS = ("Prompt", "Category", "Challenge", "Note")


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

    def prompts(self) -> list[Prompt]:
        """The prompts in the order of the file; metadata are category, challenge and note."""
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"no table {file}: set the `path` of PartiPrompts to PartiPrompts.tsv")
        # A quote is a letter like any other: one prompt starts with one.
        rows = list(csv.reader(read_utf8(file).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
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
