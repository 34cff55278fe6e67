"""DPG-Bench, DSG-1k and TIFA from images and a model: answers by grey levels, of which every score is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ikit.metrics import DSG, TIFA, DPGBench, Samples
from t2ikit.metrics.questions.answers import Choices, QuestionAnswerer
from t2ikit.metrics.questions.dpg import COLUMNS
from t2ikit.metrics.questions.metric import slug


class GreyAnswerer(QuestionAnswerer):
    """Says yes to "darker than L?" by the grey level of the image, and the level itself to any other question."""

    def __init__(self, reading: str = "as_is") -> None:
        super().__init__(3, reading)
        self.asked = 0

    def free_answers(self, images: Tensor, questions: Sequence[str], choices: Choices = None) -> list[str]:
        self.asked += len(questions)
        answers = []
        for image, question in zip(images, questions, strict=True):
            level = int(image.flatten()[0])
            words = question.rstrip("?").split()
            answers.append(("yes" if level < int(words[-1]) else "no") if words[0] == "darker" else f"grey {level}")
        return answers

    def identity(self) -> dict[str, Any]:
        return {"features": "grey", "features_sha256": "1" * 64}


def samples(levels: Sequence[int], items: Sequence[str]) -> Samples:
    images = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
    return Samples(images, metadata=[{"item_id": item} for item in items])


def table(path: Path, rows: Sequence[tuple[str, int, str, str, str]]) -> str:
    lines = [",".join(COLUMNS)]
    lines += [f'{item},{number},"{parents}","{of}",{question}' for item, number, parents, of, question in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def dpg(tmp_path: Path) -> str:
    return table(
        tmp_path / "dpg.csv",
        [
            ("a", 1, "0", "entity - whole (x)", "darker than 50?"),
            ("a", 2, "0", "entity - whole (x)", "darker than 100?"),
            ("a", 3, "2", "attribute - color (x, red)", "darker than 200?"),
            ("b", 1, "0", "attribute - color (x, red)", "darker than 10?"),
        ],
    )


def test_dpg_bench_official(dpg: str, tmp_path: Path) -> None:
    answerer = GreyAnswerer()
    metric = DPGBench(dpg, answerer, answers=str(tmp_path / "answers"))
    # The first row is skipped. Item a: level 20 has 2 of 2, level 150 none (its child falls with it). b: 1 of 1.
    drawn = samples([20, 150, 5], ["a", "a", "b"])
    result = metric.compute(drawn)
    scores = result.values
    assert scores["dpg_bench"] == pytest.approx(100 * (0.5 + 1) / 2)
    # Categories read the plain answers of the last image: level 150 is darker than 200.
    assert (scores["dpg_bench/entity"], scores["dpg_bench/attribute"]) == (0, 100)
    assert scores["dpg_bench/attribute-color"] == 100
    errors = result.errors
    assert errors["dpg_bench"] == pytest.approx(25)
    assert errors["dpg_bench/attribute"] == 0
    assert "dpg_bench/entity" not in errors
    assert answerer.asked == 5
    # Nothing is asked again, and the answers can be published beside the scores.
    assert DPGBench(dpg, answerer, answers=str(tmp_path / "answers")).compute(drawn).values == scores
    assert answerer.asked == 5
    assert list(result.files) == ["dpg_bench_answers.jsonl", "dpg_bench_items.json"]
    assert len(result.files["dpg_bench_answers.jsonl"].splitlines()) == 6
    assert json.loads(result.files["dpg_bench_items.json"])["items"]["a"]["images"] == [1, 0]
    described = metric.fingerprint_of(drawn)
    assert (described["metric"], described["mode"], described["features"]) == ("dpg_bench", "official", "grey")
    assert (described["reading"], described["num_images"]) == ("as_is", 3)
    assert len(described["questions_sha256"]) == 64


def test_dpg_bench_fixed_reads_all(dpg: str, tmp_path: Path) -> None:
    metric = DPGBench(dpg, GreyAnswerer(), "fixed", answers=str(tmp_path))
    scores = metric.compute(samples([20, 150, 5], ["a", "a", "b"])).values
    # a: level 20 has 3 of 3, level 150 none (question 3 falls with its parent). Categories pool what counts.
    assert scores["dpg_bench"] == pytest.approx(75)
    assert scores["dpg_bench/entity"] == 50
    assert scores["dpg_bench/attribute"] == pytest.approx(100 * 2 / 3)
    with pytest.raises(ValueError, match="item 'c' of the images has no questions"):
        metric.compute(samples([1, 1], ["a", "c"]))


def test_dpg_bench_official_drops_strange_items_with_a_warning(dpg: str, tmp_path: Path) -> None:
    metric = DPGBench(dpg, GreyAnswerer(), answers=str(tmp_path))
    with pytest.warns(UserWarning, match="drops 1 items without a score: c"):
        scores = metric.compute(samples([20, 1], ["a", "c"])).values
    assert scores["dpg_bench"] == 100
    with pytest.raises(ValueError, match="no image has questions"):
        metric.compute(samples([1], ["c"]))


def test_images_must_say_what_they_are(dpg: str, tmp_path: Path) -> None:
    metric = DPGBench(dpg, GreyAnswerer(), answers=str(tmp_path))
    with pytest.raises(ValueError, match="image 1 has no metadata with an 'item_id'"):
        metric.compute(Samples(samples([1, 1], "ab").images, metadata=[{"item_id": "a"}, {}]))
    with pytest.raises(FileNotFoundError, match=r"no file of questions .* set init_args.questions"):
        DPGBench(str(tmp_path / "none.csv"), GreyAnswerer())
    with pytest.raises(ValueError, match="mode must be one of official, fixed"):
        DPGBench(dpg, GreyAnswerer(), "right")


def test_dsg(tmp_path: Path) -> None:
    rows = [
        ("tifa_1", 1, "0", "entity (x)", "darker than 50?"),
        ("tifa_1", 2, "1", "entity (x)", "darker than 100?"),
        ("vrd_2", 1, "0", "entity (x)", "darker than 10?"),
        ("tifa_3", 1, "3, air", "entity (x)", "darker than 10?"),
    ]
    metric = DSG(table(tmp_path / "dsg.csv", rows), GreyAnswerer(), answers=str(tmp_path / "answers"))
    result = metric.compute(samples([70, 5, 90], ["tifa_1", "vrd_2", "tifa_3"]))
    assert result.values == {"dsg": pytest.approx(100 / 3), "dsg/tifa": 0, "dsg/relation": 100}
    assert result.errors["dsg"] == pytest.approx(100 / 3)
    with pytest.raises(ValueError, match="2 items .* have no image, the first one is 'vrd_2'"):
        metric.compute(samples([20], ["tifa_1"]))
    part = DSG(str(tmp_path / "dsg.csv"), GreyAnswerer(), whole=False, answers=str(tmp_path / "answers"))
    assert part.compute(samples([20], ["tifa_1"])).values["dsg"] == 100
    assert part.fingerprint()["whole"] is False
    lines = (tmp_path / "dsg.csv").read_text().splitlines()
    kinds = ["category_broad", "entity", "attribute", "global", "entity"]
    (tmp_path / "typed.csv").write_text("".join(f"{line},{kind}\n" for line, kind in zip(lines, kinds, strict=True)))
    typed = DSG(str(tmp_path / "typed.csv"), GreyAnswerer(), answers=str(tmp_path / "answers"))
    again = typed.compute(samples([70, 5, 90], ["tifa_1", "vrd_2", "tifa_3"]))
    of_types = {name: value for name, value in again.values.items() if "/type/" in name}
    assert of_types == {"dsg/type/entity": 0, "dsg/type/attribute": 0, "dsg/type/global": 100}
    assert {name: value for name, value in again.values.items() if name not in of_types} == result.values
    with pytest.raises(ValueError, match="item 'tifa_9' of the images has no questions"):
        part.compute(samples([20], ["tifa_9"]))


class NumberSentences:
    """Embeds "grey 30" as an angle, so that the nearest choice is the nearest level."""

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        angles = torch.tensor([float(sentence.split()[-1]) / 255 for sentence in sentences])
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    def fingerprint(self) -> dict[str, Any]:
        return {"sentences": "numbers"}


def tifa_file(path: Path, **changes: Any) -> str:
    first = {"id": "c1", "question": "how grey?", "choices": ["level 0", "level 200"], "answer": "level 0"}
    rows = [
        {**first, "element_type": "color", **changes},
        {
            "id": "c1",
            "question": "darker than 50?",
            "choices": ["yes", "no"],
            "answer": "yes",
            "element_type": "object",
        },
        {"id": "c2", "question": "darker than 50?", "choices": ["yes", "no"], "answer": "no", "element_type": "object"},
    ]
    path.write_text(json.dumps(rows))
    return str(path)


def test_tifa(tmp_path: Path) -> None:
    answerer = GreyAnswerer()
    path = tifa_file(tmp_path / "tifa.json")
    metric = TIFA(path, answerer, NumberSentences(), answers=str(tmp_path / "answers"))  # type: ignore[arg-type]
    # c1 at level 30: near 0 (right), darker than 50 (right). c2 at level 40: darker than 50 (wrong).
    result = metric.compute(samples([30, 40], ["c1", "c2"]))
    assert result.values == {"tifa": 0.5, "tifa/color": 1, "tifa/object": 0.5}
    assert result.errors == {"tifa": pytest.approx(0.5), "tifa/object": pytest.approx(0.5)}
    published = json.loads(result.files["tifa_items.json"])["items"]["c1"][0]
    assert published == {"image": 0, "question": "how grey?", "answer": "grey 30", "chosen": "level 0", "right": True}
    assert metric.fingerprint()["sentences"] == "numbers"
    with pytest.raises(ValueError, match="item 'c3' of the images has no questions"):
        metric.compute(samples([1], ["c3"]))


def test_tifa_file_errors(tmp_path: Path) -> None:
    path = tmp_path / "tifa.json"
    tifa_file(path, answer="level 9")
    with pytest.raises(ValueError, match="entry 0: the answer 'level 9' is none of the choices"):
        TIFA(str(path), GreyAnswerer())
    for text, message in (
        ("[", "no JSON"),
        ("{}", "no list"),
        ('[{"id": "a"}]', "entry 0: .*lacks question"),
        ("[1]", "0"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            TIFA(str(path), GreyAnswerer())


def test_names_of_categories() -> None:
    assert slug("attribute - color") == "attribute-color"
    assert slug("relation - non-spatial") == "relation-non-spatial"
    assert slug("global") == "global"
    assert slug("Other, text") == "other_text"
