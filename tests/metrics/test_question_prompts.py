"""The prompts of DSG-1k and TIFA are those of the metrics' own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from t2ikit.metrics import DSGPrompts, TIFAPrompts
from t2ikit.metrics.questions.dpg import COLUMNS
from t2ikit.metrics.questions.dpg import read_questions as read_dsg
from t2ikit.metrics.questions.tifa import read_questions as read_tifa


def table(path: Path, rows: list[tuple[str, str]]) -> str:
    columns = ["item_id", "text", *(name for name in COLUMNS if name != "item_id")]
    cells = {"proposition_id": "1", "dependency": "0", "tuple": "entity - whole (x)"}
    lines = [",".join([item, f'"{text}"', *(cells.get(name, "Is it?") for name in columns[2:])]) for item, text in rows]
    path.write_text("\n".join([",".join(columns), *lines]) + "\n")
    return str(path)


def question(item: str, caption: str) -> dict[str, Any]:
    facts = {"question": "is it?", "choices": ["yes", "no"], "answer": "yes", "element_type": "object"}
    return {"id": item, "caption": caption, **facts}


def test_dsg_prompts_are_those_of_the_questions(tmp_path: Path) -> None:
    path = table(tmp_path / "dsg.csv", [("whoops_1", "a cat, a dog"), ("whoops_1", "a cat, a dog"), ("vrd_2", "é")])
    prompts = DSGPrompts(path).prompts()
    assert [(prompt.text, prompt.metadata) for prompt in prompts] == [
        ("a cat, a dog", {"item_id": "whoops_1"}),
        ("é", {"item_id": "vrd_2"}),
    ]
    assert {row["item_id"] for row in read_dsg(path, strict=False)} == {p.metadata["item_id"] for p in prompts}
    twice = DSGPrompts(path, images_per_prompt=2, limit=1).prompts()
    assert [prompt.text for prompt in twice] == ["a cat, a dog"] * 2


def test_tifa_prompts_are_those_of_the_questions(tmp_path: Path) -> None:
    path = tmp_path / "tifa.json"
    path.write_text(json.dumps([question("coco_1", " a surfer "), question("coco_1", "a surfer"), question("d", "b")]))
    prompts = TIFAPrompts(str(path)).prompts()
    assert [(prompt.text, prompt.metadata["item_id"]) for prompt in prompts] == [("a surfer", "coco_1"), ("b", "d")]
    assert {one.id for one in read_tifa(path)} == {"coco_1", "d"}
    path.write_text(json.dumps([{"id": "coco_1", "caption": "a surfer", "coco_val_id": "7"}]))  # the text inputs
    assert [prompt.text for prompt in TIFAPrompts(str(path)).prompts()] == ["a surfer"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("item_id,words\na,b\n", "lacks the columns text"),
        ("item_id,text\n", "holds no prompt"),
        ("item_id,text\na,\n", "line 2 lacks an id or a text"),
        ("item_id,text\na,one\na,two\n", "line 3 gives 'a' another text"),
    ],
)
def test_a_table_that_does_not_fit_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "dsg.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"dsg.csv, the `path` of DSGPrompts: .*{message}"):
        DSGPrompts(str(tmp_path / "dsg.csv")).prompts()


@pytest.mark.parametrize("content", ["{}", "[3]", '[{"id": "a"}]', "[]", "no JSON"])
def test_a_list_that_does_not_fit_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tifa.json").write_text(content)
    with pytest.raises(ValueError, match=r"tifa.json, the `path` of TIFAPrompts: "):
        TIFAPrompts(str(tmp_path / "tifa.json")).prompts()
    with pytest.raises(FileNotFoundError, match="set the `path` of TIFAPrompts"):
        TIFAPrompts(str(tmp_path / "none.json")).prompts()
    with pytest.raises(ValueError, match="TIFAPrompts: limit must be at least 1"):
        TIFAPrompts("x", limit=0)
