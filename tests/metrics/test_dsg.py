"""DSG-1k: which answers a child looks at, unreadable dependencies, categories."""

from __future__ import annotations

import pytest

from t2ikit.metrics.questions.dsg import category, score


def row(item: str, number: int, dependency: str = "0") -> dict[str, str | int]:
    return {"item_id": item, "proposition_id": number, "dependency": dependency}


CHAIN = [row("whoops_1", 1), row("whoops_1", 2, "1"), row("whoops_1", 3, "2")]
ANSWERS = {"whoops_1": {1: "no", 2: "yes", 3: "yes"}}


def test_parents_are_read_plain_or_counted() -> None:
    assert score(CHAIN, ANSWERS)["overall"] == pytest.approx(100 / 3)
    assert score(CHAIN, ANSWERS, "cascading")["overall"] == 0
    assert score(list(reversed(CHAIN)), ANSWERS)["overall"] == pytest.approx(100 / 3)


def test_unreadable_dependencies_switch_the_filter_off() -> None:
    rows = [row("tifa_1", 1), row("tifa_1", 2, "1"), row("tifa_1", 3, "2, air")]
    result = score(rows, {"tifa_1": {"1": "no", "2": "yes", "3": "yes"}})
    assert result["overall"] == pytest.approx(200 / 3)
    assert result["unfiltered"] == ["tifa_1"]


def test_means_over_prompts_and_categories() -> None:
    rows = [*CHAIN, row("vrd_7", 1), row("vrd_8", 1)]
    result = score(rows, {**ANSWERS, "vrd_7": [{1: "yes"}, {1: "no"}]})
    # An item without answers counts zero.
    assert result["items"] == {"whoops_1": pytest.approx(100 / 3), "vrd_7": 50, "vrd_8": 0}
    assert result["categories"] == {"defying": pytest.approx(100 / 3), "relation": 25}
    assert result["overall"] == pytest.approx((100 / 3 + 50) / 3)


def test_questions_of_a_type_are_pooled_as_they_count() -> None:
    kinds = {("whoops_1", 1): "entity", ("whoops_1", 2): "attribute", ("whoops_1", 3): "relation"}
    rows = [*CHAIN, row("vrd_7", 1), row("vrd_8", 1), row("vrd_8", 2)]
    kinds |= {("vrd_7", 1): "entity", ("vrd_8", 1): "entity", ("vrd_8", 2): "global"}
    typed = [{**entry, "category_broad": kinds[str(entry["item_id"]), int(entry["proposition_id"])]} for entry in rows]
    answers = {**ANSWERS, "vrd_7": [{1: "yes"}, {1: "no"}]}
    result = score(typed, answers)
    # Question 2 has a parent that was answered no; vrd_8 has no answers.
    assert result["types"] == {"attribute": 0, "entity": 25, "global": 0, "relation": 100}
    assert result["type_errors"]["entity"] > 0
    plain = score(rows, answers)
    assert plain["types"] == {} and dict(plain) == {**result, "types": {}, "type_errors": {}}


def test_categories_are_tested_in_order() -> None:
    names = {"tifa160_1": "tifa", "stanford_1": "paragraph", "localized_2": "paragraph", "countbench_1": "countbench"}
    names |= {"midjourney_3": "real_user", "diffusiondb_1": "real_user", "posescript_5": "pose", "drawtext_1": "text"}
    for item, name in names.items():
        assert category(item) == name
    assert category("tifa_whoops") == "tifa"


def test_errors() -> None:
    with pytest.raises(ValueError, match="mode must be"):
        score(CHAIN, ANSWERS, "fixed")
    with pytest.raises(ValueError, match="'other' has answers but no questions"):
        score(CHAIN, {"other": {1: "yes"}})
    with pytest.raises(ValueError, match="no answer to question 3"):
        score(CHAIN, {"whoops_1": {1: "yes", 2: "yes"}})
    with pytest.raises(ValueError, match="parent 9"):
        score([row("vrd_1", 1, "9")], {"vrd_1": {1: "yes"}})
    with pytest.raises(ValueError, match="no DSG-1k category"):
        score([row("unknown", 1)], {"unknown": {1: "yes"}})
    with pytest.raises(ValueError, match="no rows"):
        score([], {})
