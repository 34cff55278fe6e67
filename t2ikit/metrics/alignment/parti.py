"""The prompts of PartiPrompts, read from the official table."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from t2ikit.files import read_lines
from t2ikit.prompts import BenchmarkPrompts, Prompt

PARTI_COLUMNS = ("Prompt", "Category", "Challenge", "Note")


@dataclass
class PartiPrompts(BenchmarkPrompts):
    """The 1,632 prompts of PartiPrompts (Yu et al. 2022), one image each; the papers' rewards are means over them.

    Attributes:
        path: ``PartiPrompts.tsv`` of github.com/google-research/parti.
    """

    name = "PartiPrompts"

    def prompts(self) -> list[Prompt]:
        """The prompts in the order of the file; metadata are category, challenge and note."""
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"no table {file}: set the `path` of PartiPrompts to PartiPrompts.tsv")
        # A quote is a letter like any other: one prompt starts with one.
        rows = list(csv.reader(read_lines(file), delimiter="\t", quoting=csv.QUOTE_NONE))
        if not rows or tuple(rows[0]) != PARTI_COLUMNS:
            raise ValueError(f"{file}, line 1: expected the columns {', '.join(PARTI_COLUMNS)}, separated by tabs")
        prompts = []
        for line, row in enumerate(rows[1:], start=2):
            if len(row) != len(PARTI_COLUMNS) or not row[0].strip():
                raise ValueError(f"{file}, line {line}: expected a prompt and {len(PARTI_COLUMNS)} columns; got {row}")
            metadata = {column.lower(): value for column, value in zip(PARTI_COLUMNS[1:], row[1:], strict=True)}
            prompts.append(Prompt(row[0].strip(), metadata))
        if not prompts:
            raise ValueError(f"{file} holds no prompt")
        return self.repeated(prompts[: self.limit])
