"""GenEval's verdicts by the official rules, and its summary."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t2ikit.metrics.base import Samples
from t2ikit.metrics.fingerprint import write_files
from t2ikit.metrics.geneval.files import read_results
from t2ikit.metrics.geneval.metric import GenEval, summarize
from t2ikit.metrics.geneval.rules import TASKS, Rules, judge, keep, overlap, relations

DATA = os.environ.get("T2IKIT_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set T2IKIT_TEST_DATA to the folder of sample data")


def box(x: float, y: float, half: float = 10, score: float = 0.95, color: str = "red") -> dict[str, Any]:
    return {"box": [x - half, y - half, x + half, y + half], "score": score, "color": color}


def counting(count: int) -> dict[str, Any]:
    clause = {"class": "clock", "count": count}
    return {"tag": "counting", "include": [clause], "exclude": [{"class": "clock", "count": count + 1}], "prompt": "p"}


def position(relation: str) -> dict[str, Any]:
    clauses = [{"class": "bear", "count": 1}, {"class": "dog", "count": 1, "position": [relation, 0]}]
    return {"tag": "position", "include": clauses, "prompt": "p"}


@needs_data
def test_outside_cases() -> None:
    cases = json.loads((Path(str(DATA)) / "vectors" / "geneval_sample.json").read_text())["cases"]
    assert len(cases) == 12
    for case in cases:
        expected = case["expected"]
        assert judge(case["metadata"], case["detections"]) == (expected["correct"], expected["reason"]), case["name"]
        flat = [{"class": name, **one} for name, found in case["detections"].items() for one in found]
        assert judge(case["metadata"], flat) == (expected["correct"], expected["reason"]), case["name"]
        kept = keep(case["detections"], case["metadata"]["tag"])
        boxes = {name: [one.box for one in found] for name, found in kept.items()}
        assert set(boxes) == set(expected["kept"])
        for name, found in boxes.items():
            np.testing.assert_array_equal(np.stack(found), np.array(expected["kept"][name], dtype=np.float32))


@needs_data
def test_every_prompt_of_the_benchmark_is_judged() -> None:
    lines = (Path(str(DATA)) / "benchmarks" / "geneval" / "evaluation_metadata.jsonl").read_text().splitlines()
    everything = [json.loads(line) for line in lines]
    assert [sum(one["tag"] == task for one in everything) for task in TASKS] == [80, 99, 80, 94, 100, 100]
    for metadata in everything:
        correct, reason = judge(metadata, [])
        clauses = metadata["include"]
        assert not correct and len(reason.split("\n")) == len(clauses)


def test_thresholds_are_strict_and_in_float32() -> None:
    metadata = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "p"}
    for score, correct in ((0.3, False), (0.3 + 1e-9, False), (0.3001, True), (0.2, False)):
        assert judge(metadata, {"bench": [[0, 0, 9, 9, score]]})[0] is correct
    assert judge(counting(1), {"clock": [[0, 0, 9, 9, 0.9]]}) == (False, "expected clock>=1, found 0")
    assert judge(counting(1), {"clock": [[0, 0, 9, 9, 0.91], [9, 9, 20, 20, 0.89]]}) == (True, "")


def test_duplicates_count_unless_suppressed() -> None:
    twice = {"clock": [[0, 0, 9, 9, 0.99], [0, 0, 9, 9, 0.95]]}
    assert judge(counting(1), twice) == (False, "expected clock<2, found 2")
    assert judge(counting(1), twice, Rules(max_overlap=0.5)) == (True, "")


def test_at_most_sixteen_are_kept() -> None:
    many = {"clock": [[i, 0, i + 5, 5, 0.95] for i in range(30)]}
    assert judge(counting(2), many) == (False, "expected clock<3, found 16")
    kept = keep({"clock": [[i, 0, i + 5, 5, 0.5 + i / 100] for i in range(30)]}, "colors")["clock"]
    assert [int(one.box[0]) for one in kept] == list(range(29, 13, -1))


def test_only_the_best_boxes_are_examined() -> None:
    metadata = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}], "prompt": "p"}
    worse_is_red = {"car": [box(0, 0, score=0.5, color="red"), box(50, 50, score=0.9, color="blue")]}
    assert judge(metadata, worse_is_red) == (False, "expected red car>=1, found 0 red; and 1 blue")
    assert judge(metadata, {"car": [box(0, 0, score=0.9), box(50, 50, score=0.5, color="blue")]}) == (True, "")
    two = {"tag": "colors", "include": [{"class": "car", "count": 3, "color": "red"}], "prompt": "p"}
    mixed = {"car": [box(0, 0, color=color) for color in ("white", "red", "green")]}
    assert judge(two, mixed)[1] == "expected red car>=3, found 1 red; and 1 red, 1 green, 1 white"


@pytest.mark.parametrize(
    ("x", "y", "found"),
    [
        (40, 100, ["left of"]),
        (160, 100, ["right of"]),
        (100, 40, ["above"]),
        (100, 160, ["below"]),
        (160, 160, ["right of", "below"]),
        (103, 100, []),
        (100, 100, []),
    ],
)
def test_relations(x: float, y: float, found: list[str]) -> None:
    target = np.array([90, 90, 110, 110, 0.9], dtype=np.float32)
    other = np.array([x - 10, y - 10, x + 10, y + 10, 0.9], dtype=np.float32)
    assert relations(other, target) == found


def test_position_reasons() -> None:
    bear = [box(200, 200)]
    assert judge(position("left of"), {"bear": bear, "dog": [box(100, 200)]}) == (True, "")
    wrong = judge(position("left of"), {"bear": bear, "dog": [box(300, 200)]})
    assert wrong == (False, "expected dog left of target, found right of target")
    inside = judge(position("left of"), {"bear": bear, "dog": [box(201, 200)]})
    assert inside == (False, "expected dog left of target, found  target")
    alone = judge(position("above"), {"dog": [box(1, 1)]})
    assert alone == (False, "expected bear>=1, found 0\nno target for dog to be above")


def test_the_offset_is_divided_by_its_unreduced_length() -> None:
    # Offset (30, 10), sizes 100 and 100: reduced (10, 0), over the length of (30, 10) = 0.316: no relation.
    a, b = np.array([130, 110, 230, 210], np.float32), np.array([100, 100, 200, 200], np.float32)
    assert relations(a, b) == []
    assert relations(a, b, position_threshold=0.0) == ["right of"]


def test_overlap_counts_the_far_side() -> None:
    assert overlap(np.array([0, 0, 9, 9]), np.array([0, 0, 9, 9])) == 1.0
    assert overlap(np.array([0, 0, 9, 9]), np.array([9, 9, 18, 18])) == pytest.approx(1 / 199)


def test_malformed_input_is_named() -> None:
    colors = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}], "prompt": "p"}
    with pytest.raises(ValueError, match="no 'color'"):
        judge(colors, {"car": [[0, 0, 9, 9, 0.9]]})
    with pytest.raises(ValueError, match="needs a 'class'"):
        judge(colors, [{"box": [0, 0, 1, 1], "score": 1.0}])
    with pytest.raises(ValueError, match="lacks \\['score'\\]"):
        judge(colors, [{"class": "car", "box": [0, 0, 1, 1]}])
    with pytest.raises(ValueError, match="not before it"):
        clause = {"class": "dog", "count": 1, "position": ["left of", 0]}
        judge({"tag": "position", "include": [clause], "prompt": "p"}, {"dog": [box(0, 0)]})
    with pytest.raises(ValueError, match="row 1 lacks"):
        summarize([{"tag": "colors"}])
    with pytest.raises(ValueError, match="no row"):
        summarize([])
    nan = {"class": "dog", "box": [0, 0, 9, math.nan], "score": 0.9}
    with pytest.raises(ValueError, match="a box of 'dog' is not finite"):
        judge(position("left of"), [nan])


def test_summary() -> None:
    def rows(tag: str, prompt: str, answers: str) -> list[dict[str, Any]]:
        return [{"tag": tag, "correct": a == "1", "metadata": json.dumps({"prompt": prompt})} for a in answers]

    scores = summarize(rows("a", "p", "11") + rows("b", "q", "1000") + rows("a", "r", "00") + rows("b", "s", "0000"))
    assert list(scores.tasks) == ["a", "b"]
    assert scores.tasks == {"a": 0.5, "b": 0.125}
    assert scores.overall == scores["overall"] == pytest.approx(0.3125)
    assert (scores["images"], scores["prompts"]) == (pytest.approx(3 / 12), pytest.approx(2 / 4))
    assert scores["a_se"] == pytest.approx(math.sqrt(0.5) / math.sqrt(2))
    assert scores["b_se"] == pytest.approx(math.sqrt(2 * 0.125**2) / math.sqrt(2))
    assert scores["overall_se"] == pytest.approx(math.hypot(scores["a_se"], scores["b_se"]) / 2)
    assert (scores["num_images"], scores["num_prompts"]) == (12, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "shape"}, "unknown task 'shape'; 'tag' is one of single_object, two_object"),
        ({"include": []}, "at least one clause"),
        ({"include": [{"class": "dog"}]}, "clause 0 needs a 'class' and a 'count'"),
        ({"include": [{"class": "dog", "count": 0}]}, "'count' is a whole number from 1; got 0"),
        ({"include": [{"class": "dog", "count": 1, "color": "beige"}]}, "unknown color 'beige'; red, orange"),
        ({"include": [{"class": "dog", "count": 1, "position": ["left of", 0]}]}, "number of an earlier clause"),
    ],
)
def test_metadata_of_no_benchmark_is_named(change: dict[str, Any], message: str) -> None:
    metric = GenEval(lambda image: [])
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"GenEval, image 1: .*{message}"):
        metric.check(Samples(images, metadata=[counting(1), {**counting(1), **change}]))
    with pytest.raises(ValueError, match="take the prompts from GenEvalPrompts"):
        metric.check(Samples(images))


def test_metric_scores_a_snapshot_with_any_detector(tmp_path: Path) -> None:
    metadata = [counting(1), counting(2), {"tag": "colors", "include": [{"class": "clock", "count": 1}], "prompt": "q"}]
    samples = Samples(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), ["p"] * 3, metadata)
    metric = GenEval(lambda image: [{"class": "clock", "color": "red", "box": [1, 1, 9, 9], "score": 0.99}])
    result = metric.compute(samples)
    values = result.values
    assert values["counting"] == 0.5 and values["colors"] == 1.0 and values["overall"] == 0.75
    assert list(values) == ["counting", "colors", "overall", "correct_images", "correct_prompts"]
    # A single prompt of a task gives no error.
    assert result.errors == {"counting": pytest.approx(0.5)}
    assert list(result.files) == ["geneval_results.jsonl"]
    write_files(tmp_path, result.files)
    rows = read_results(tmp_path / "geneval_results.jsonl")
    assert [row["correct"] for row in rows] == [True, False, True]
    assert json.loads(rows[0]["details"]) == {"clock": [[1, 1, 9, 9, pytest.approx(0.99)]]}
    assert rows[1]["filename"] == "00001/samples/00000.png"
    # Nothing is kept between two calls.
    again = vars(metric).copy()
    assert metric.compute(Samples(samples.images[:1], ["p"], metadata[:1])).errors == {} and vars(metric) == again
    assert metric.compute(samples) == result
    assert metric.fingerprint()["rules"]["counting_threshold"] == 0.9
    with pytest.raises(ValueError, match="image 0: no GenEval metadata, it lacks 'include'"):
        metric.check(Samples(samples.images[:1], ["p"], [{"key": "a"}]))
