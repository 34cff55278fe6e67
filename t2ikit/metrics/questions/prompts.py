"""The prompts of DSG-1k and TIFA, read from the official files that hold their questions."""

from __future__ import annotations

import csv
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

from t2ikit.files import check_text, parse_json, read_utf8
from t2ikit.prompts import BenchmarkPrompts, Prompt


@dataclass
class _ItemPrompts(BenchmarkPrompts):
    """Texts with an ``item_id``; images are files in their order."""

    def prompts(self) -> list[Prompt]:
        """The prompts in the order of the file; the metadata are their ``item_id``."""
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}: set the `path` of {type(self).__name__}")
        try:
            texts = self._texts(file)
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{file}, the `path` of {type(self).__name__}: {error}") from error
        return self.repeated(Prompt(text, {"item_id": item}) for item, text in list(texts.items())[: self.limit])

    @abstractmethod
    def _texts(self, file: Path) -> dict[str, str]:
        """item_id -> text; ValueError saying what is wrong with the file."""


@dataclass
class DSGPrompts(_ItemPrompts):
    """The 1,060 prompts of DSG-1k (Cho et al. 2024), one image each.

    Attributes:
        path: ``dsg-1k-anns.csv`` of github.com/j-min/DSG, the file of questions of ``t2ikit.metrics.DSG``.
        limit: only the first prompts; None takes all, which ``DSG`` needs unless ``whole`` is false.
    """

    name = "DSG-1k"

    def _texts(self, file: Path) -> dict[str, str]:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            lacking = [name for name in ("item_id", "text") if name not in (reader.fieldnames or ())]
            if lacking:
                raise ValueError(f"no table of DSG-1k, it lacks the columns {', '.join(lacking)}")
            texts: dict[str, str] = {}
            for row in reader:
                _add(texts, row["item_id"], row["text"], f"line {reader.line_num}")
        return _some(texts)


@dataclass
class TIFAPrompts(_ItemPrompts):
    """The 4,081 captions of TIFA v1.0 (Hu et al. 2023), one image each.

    Attributes:
        path: ``tifa_v1.0_question_answers.json`` of github.com/Yushi-Hu/tifa, the file of questions of
            ``t2ikit.metrics.TIFA``; or ``tifa_v1.0_text_inputs.json``.
    """

    name = "TIFA v1.0"

    def _texts(self, file: Path) -> dict[str, str]:
        rows = parse_json(read_utf8(file))
        if not isinstance(rows, list):
            raise ValueError("no list of TIFA captions")
        texts: dict[str, str] = {}
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise ValueError(f"entry {index} is no caption")
            _add(texts, row.get("id"), row.get("caption"), f"entry {index}")
        return _some(texts)


def _add(texts: dict[str, str], item: object, text: object, where: str) -> None:
    """Adds an item; the file has it once for each of its questions."""
    if not isinstance(item, str) or not isinstance(text, str) or not item.strip() or not text.strip():
        raise ValueError(f"{where} lacks an id or a text")
    check_text(text, where)
    if texts.setdefault(item, text.strip()) != text.strip():
        raise ValueError(f"{where} gives {item!r} another text than before")


def _some(texts: dict[str, str]) -> dict[str, str]:
    if not texts:
        raise ValueError("it holds no prompt")
    return texts
