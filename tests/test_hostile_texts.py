"""Texts of a megabyte and JSON nested 100,000 deep: every reader of files from outside says what is wrong, and ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2ikit.evaluation.class_prompts import ClassPrompts
from t2ikit.files import MOST_CHARACTERS, parse_json
from t2ikit.metrics.distribution.coco import read_captions
from t2ikit.metrics.fingerprint import read_score
from t2ikit.metrics.geneval.prompts import GenEvalPrompts
from t2ikit.metrics.questions.prompts import TIFAPrompts
from t2ikit.metrics.questions.tifa import read_questions
from t2ikit.prepare.captions.caption_file import CaptionSet, caption_file
from t2ikit.prepare.captions.captioner import tidy
from t2ikit.prepare.captions.lines import read_row
from t2ikit.prepare.captions.table import CaptionTable
from t2ikit.prepare.extend_prompts import read_prompt_list
from t2ikit.prompts import Prompt, PromptFile
from t2ikit.records.chunks import read_index
from t2ikit.records.manifest import Manifest

DEEP = "[" * 100_000 + "]" * 100_000
LONG = "a red ball " * 100_000


def table(path: Path) -> None:
    CaptionTable(path, path.parent / "spool").close()


def header(path: Path) -> None:
    target = caption_file(path.parent, "train")
    target.parent.mkdir()
    target.write_text(path.read_text())
    CaptionSet(path.parent, "train")


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "index": ("index.json", lambda path: read_index(path.parent)),
    "manifest": ("manifest.json", lambda path: Manifest.from_json(path.read_text())),
    "captions of a set": ("train.jsonl", header),
    "a line of captions": ("train.jsonl", lambda path: read_row(path.read_text(), path, 2)),
    "own captions": ("captions.jsonl", table),
    "captions of classes": ("c.jsonl", lambda path: ClassPrompts("captions", captions=str(path)).prompts()),
    "COCO": ("coco.json", lambda path: read_captions(path, "captions")),
    "a score": ("score.json", read_score),
    "GenEval": ("geneval.jsonl", lambda path: GenEvalPrompts(str(path)).prompts()),
    "TIFA": ("tifa.json", lambda path: TIFAPrompts(str(path)).prompts()),
    "questions": ("tifa.json", read_questions),
    "prompts to extend": ("prompts.jsonl", read_prompt_list),
}


@pytest.mark.parametrize("reader", READERS)
def test_deep_brackets_are_refused(reader: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    (tmp_path / name).write_text(DEEP)
    with pytest.raises(ValueError):
        read(tmp_path / name)


def test_the_reason_is_said() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP.encode())
    with pytest.raises(ValueError, match=r"line 2 of c.jsonl is damaged \(brackets are nested too deeply"):
        read_row(DEEP, Path("c.jsonl"), 2)


def test_a_caption_of_a_megabyte_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "captions.tsv"
    file.write_text(f"a.jpg\ta red ball\nb.jpg\t{LONG}\n")
    with pytest.raises(ValueError, match=r"line 2 of .*captions.tsv has 1,099,999 characters, and 65,536 are the most"):
        table(file)
    with pytest.raises(ValueError, match="line 3 of .* is damaged .*1,100,000 characters"):  # before it is encoded
        read_row(json.dumps({"key": "b.jpg", "captions": ["short", LONG]}), file, 3)


@pytest.mark.parametrize("read", [lambda file: PromptFile(str(file)).prompts(), read_prompt_list])
def test_a_prompt_of_a_megabyte_is_refused_with_its_file(read: Callable[[Path], Any], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(f"a red ball\n{LONG}\n")
    with pytest.raises(ValueError, match=r"prompts.txt has 1,099,999 characters"):
        read(file)
    file.write_text("a" * MOST_CHARACTERS)
    assert len(read(file)) == 1


def test_a_prompt_of_any_source_has_the_limit() -> None:
    with pytest.raises(ValueError, match="a prompt has 1,100,000 characters"):
        Prompt(LONG)


@pytest.mark.parametrize("answer", [LONG, "A red \ud83d ball."])
def test_an_answer_that_cannot_be_a_caption_counts_as_empty(answer: str) -> None:
    assert tidy(answer) == ""
    assert tidy("A red ball.") == "A red ball."
