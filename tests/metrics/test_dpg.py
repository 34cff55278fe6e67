"""DPG-Bench scores: the official program's answers, its quirks one by one, the fixed mode, the table of questions."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from t2ikit.metrics.questions.dpg import COLUMNS, group, read_questions, score


def row(item: str, number: int, dependency: str = "0", of: str = "entity - whole (x)") -> dict[str, str | int]:
    return {"item_id": item, "proposition_id": number, "dependency": dependency, "tuple": of}


SKIPPED = row("skipped", 1)


def test_sample_scenario(sample_data: Path) -> None:
    scenarios = json.loads((sample_data / "vectors" / "dpg_sample.json").read_text())["scenarios"]
    for scenario in scenarios.values():
        found, expected = score(scenario["csv_rows"], scenario["answers"], "official"), scenario["expected"]
        assert found["overall"] == pytest.approx(expected["overall"])
        for level in ("L1", "L2"):
            assert found[level] == pytest.approx(expected[level])  # type: ignore[literal-required]
        assert set(found["items"]) == set(expected["items"])
        for name, item in expected["items"].items():
            assert found["items"][name]["images"] == pytest.approx(item["images"])
        assert (found["failed"], found["n_vqa_calls"]) == (expected["failed"], expected["n_vqa_calls"])


def test_the_first_row_is_skipped_or_read() -> None:
    rows = [row("a", 1), row("a", 2)]
    answers = {"a": [{1: "no", 2: "yes"}]}
    assert score(rows, answers, "official")["overall"] == 100
    assert score(rows, answers, "fixed")["overall"] == 50


def test_zeroes_spread_in_row_order_only() -> None:
    down = [SKIPPED, row("a", 1), row("a", 2, "1"), row("a", 3, "2"), row("a", 4, "0,3")]
    up = [SKIPPED, *reversed(down[1:])]
    answers = {"a": [{1: "no", 2: "yes", 3: "yes", 4: "yes"}]}
    assert score(down, answers, "official")["overall"] == 0
    assert score(up, answers, "official")["overall"] == 50  # 1 is no, 2 falls, 3 and 4 were settled before
    assert score(up, answers, "fixed")["overall"] == 0


def test_a_second_run_of_rows_replaces_the_first() -> None:
    rows = [SKIPPED, row("a", 1), row("b", 1), row("a", 2)]
    assert list(group(rows, "official")["a"].tuples) == [2]
    assert list(group(rows, "fixed")["a"].tuples) == [1, 2]


def test_categories_read_plain_answers_of_the_last_image() -> None:
    rows = [
        SKIPPED,
        row("a", 1),
        row("a", 2, "1", "attribute - color (x, red)"),
        row("a", 3, "0", "attribute - size (x)"),
    ]
    answers = {"a": [{1: "yes", 2: "yes", 3: "no"}, {1: "no", 2: "yes", 3: "yes"}]}
    official, fixed = score(rows, answers, "official"), score(rows, answers, "fixed")
    assert official["L2"] == {"attribute - color": 100, "attribute - size": 100, "entity - whole": 0}
    assert official["L1"] == {"attribute": 100, "entity": 0}
    assert fixed["L2"] == {"attribute - color": 50, "attribute - size": 50, "entity - whole": 50}
    assert official["overall"] == fixed["overall"] == pytest.approx(100 * (2 / 3 + 1 / 3) / 2)


def test_only_yes_counts_and_errors_are_over_prompts() -> None:
    rows = [SKIPPED, *(row(name, 1) for name in "abc")]
    answers = {"a": [{1: "yes"}], "b": [{1: "Yes"}], "c": [{1: "yes."}]}
    result = score(rows, answers)
    assert result["overall"] == pytest.approx(100 / 3)
    assert result["standard_error"] == pytest.approx(100 / 3)


def test_broken_items_are_dropped_or_named() -> None:
    rows = [SKIPPED, row("a", 1), row("b", 1, "7"), row("c", 1), row("c", 2), row("d", 1, "2"), row("d", 2, "1")]
    good = {"a": [{1: "yes"}]}
    broken = {"b": [{1: "yes"}], "c": [{1: "yes"}], "unknown": [{1: "yes"}], "e": []}
    result = score(rows, {**good, **broken}, "official")
    assert (result["overall"], result["failed"]) == (100, ["b", "c", "unknown", "e"])
    messages = {"b": "parent 7", "c": "no answer to question 2", "unknown": "no questions", "e": "no questions"}
    for name, message in messages.items():
        with pytest.raises(ValueError, match=f"'{name}'.*{message}"):
            score(rows, {name: broken[name]}, "fixed")
    with pytest.raises(ValueError, match="circle"):
        score(rows, {"d": [{1: "yes", 2: "yes"}]}, "fixed")
    with pytest.raises(ValueError, match="row 2 .a, question 1.: dependency '1;2'"):
        group([SKIPPED, row("a", 1, "1;2")])
    with pytest.raises(ValueError, match="mode must be"):
        score(rows, good, "right")
    with pytest.raises(ValueError, match="no item has a score"):
        score(rows, broken, "official")


def test_categories_have_errors_clustered_by_prompt() -> None:
    rows = [SKIPPED, row("a", 1), row("a", 2), row("b", 1), row("c", 1, "0", "attribute - size (x)")]
    result = score(rows, {"a": [{1: "yes", 2: "yes"}], "b": [{1: "no"}], "c": [{1: "yes"}]})
    # Entity: mean 2/3 of three questions in two prompts; residuals 2/3 and -2/3.
    assert result["L1"]["entity"] == pytest.approx(200 / 3)
    assert result["L1_errors"]["entity"] == pytest.approx(100 * math.sqrt(2 * 2 * (2 / 3) ** 2) / 3)
    assert result["L2_errors"]["entity - whole"] == result["L1_errors"]["entity"]
    assert math.isnan(result["L1_errors"]["attribute"])


HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)


def test_questions_file(tmp_path: Path) -> None:
    path = tmp_path / "dpg.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        questions = ["Is it there?", 'Is it a "car",\na red one?']
        for cells, question in zip([SKIPPED, row("a", 1)], questions, strict=True):
            writer.writerow({**cells, "question_natural_language": question})
    rows = read_questions(path)
    assert group(rows)["a"].questions == {1: 'Is it a "car",\na red one?'}
    path.write_text("item_id,text\na,b\n")
    with pytest.raises(ValueError, match="lacks the columns proposition_id"):
        read_questions(path)
    path.write_text(HEADER + "\n")
    with pytest.raises(ValueError, match="has no questions"):
        read_questions(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,t,k,1,0,e,w,entity (x)", "line 3: fewer cells"),
        ("a,t,k,1,0,e,w,entity (x),Is it?,more", "line 3: more cells"),
        ("a,t,k,one,0,e,w,entity (x),Is it?", "line 3: proposition_id 'one' is no number"),
        ('a,t,k,1,"1,air",e,w,entity (x),Is it?', "line 3: dependency '1,air' is no list of numbers"),
        (",t,k,1,0,e,w,entity (x),Is it?", "line 3: item_id is empty"),
        ("a,t,k,1,0,e,w,,Is it?", "line 3: tuple is empty"),
        ("a,t,k,1,0,e,w,entity (x),", "line 3: question_natural_language is empty"),
        ("a,t,k,1,0,e,w,entity (x),Is \udcff it?", "after line"),
    ],
)
def test_a_malformed_table_is_refused_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "dpg.csv"
    text = f"{HEADER}\na,t,k,1,0,e,w,entity (x),Is it?\n{line}\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_questions(path)


def test_a_table_may_have_dependencies_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "dsg.csv"
    path.write_text(f'{HEADER}\ntifa_1,t,k,1,"3, air",e,w,,Is it?\n')
    assert read_questions(path, strict=False)[0]["dependency"] == "3, air"
