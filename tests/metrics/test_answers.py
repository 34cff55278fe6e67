"""Questions and answers: how they are read, kept, resumed after an interrupt, and refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ikit.metrics.questions.answers import (
    READINGS,
    Asked,
    Choices,
    QuestionAnswerer,
    ask_all,
    first_word,
    plain,
    yes_or_no,
)

IMAGES = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 4, 4).contiguous() * 50


class Loud(QuestionAnswerer):
    """Says which image and question it was shown; stops after some calls."""

    def __init__(self, batch_size: int = 2, reading: str = "as_is", stop_after: int = 99, model: str = "loud") -> None:
        super().__init__(batch_size, reading)
        self.calls: list[list[str]] = []
        self.stop_after = stop_after
        self.model = model

    def free_answers(self, images: Tensor, questions: Sequence[str], choices: Choices = None) -> list[str]:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(list(questions))
        shown = [""] * len(questions) if choices is None else ["|".join(some) for some in choices]
        grey = [int(image.flatten()[0]) for image in images]
        return [f"Yes. {level} {text}{rest}" for level, text, rest in zip(grey, questions, shown, strict=True)]

    def identity(self) -> dict[str, Any]:
        return {"features": self.model, "features_sha256": "0" * 64}


def test_readings() -> None:
    assert [plain(text) for text in (" Yes.", "NO!\n", '"a dog"', "")] == ["yes", "no", "a dog", ""]
    assert [first_word(text) for text in ("Yes, there is.", "", "No")] == ["yes", "", "no"]
    assert [yes_or_no(text) for text in ("Yes, a dog.", "No", "Two dogs.")] == ["yes", "no", "two dogs"]
    assert READINGS["as_is"](" Yes.") == " Yes."


def test_answers_go_in_batches_with_their_images(tmp_path: Path) -> None:
    answerer = Loud(reading="yes_or_no")
    asked = [Asked(image, question, ("x", "y")) for image, question in enumerate("abc")]
    book = ask_all(answerer, IMAGES, asked, tmp_path)
    assert [book[question] for question in asked] == ["Yes. 0 ax|y", "Yes. 50 bx|y", "Yes. 100 cx|y"]
    assert answerer.calls == [["a", "b"], ["c"]]
    assert answerer.fingerprint() == {"features": "loud", "features_sha256": "0" * 64, "reading": "yes_or_no"}


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="reading must be one of as_is, plain, yes_or_no"):
        Loud(reading="loudly")
    with pytest.raises(ValueError, match="batch_size"):
        Loud(batch_size=0)


def test_an_interrupted_judging_goes_on(tmp_path: Path) -> None:
    asked = [Asked(image, question) for image in range(3) for question in ("a", "b")]
    first = Loud(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        ask_all(first, IMAGES, asked, tmp_path)
    second = Loud(reading="yes_or_no")
    book = ask_all(second, IMAGES, asked, tmp_path)
    assert [second.read(book[one]) for one in asked] == ["yes"] * 6
    assert (first.calls, second.calls) == ([["a", "b"], ["a", "b"]], [["a", "b"]])
    assert [book[one] for one in asked] == [f"Yes. {one.image * 50} {one.question}" for one in asked]
    third = Loud()
    assert third.read(ask_all(third, IMAGES, asked, tmp_path)[asked[0]]) == "Yes. 0 a"
    assert not third.calls
    assert [path.suffix for path in tmp_path.iterdir()] == [".jsonl"]


def test_separators_inside_an_answer_are_read_again(tmp_path: Path) -> None:
    asked = [Asked(0, text) for text in ("a\u2028b", "a\u2029b", "a\u0085b")]
    first, second = Loud(), Loud()
    written = ask_all(first, IMAGES, asked, tmp_path)
    read = ask_all(second, IMAGES, asked, tmp_path)
    assert not second.calls and [read[one] for one in asked] == [written[one] for one in asked]


def test_equal_questions_are_asked_once(tmp_path: Path) -> None:
    answerer = Loud()
    twice = torch.cat([IMAGES[:1], IMAGES[:1]])
    book = ask_all(answerer, twice, [Asked(0, "a"), Asked(1, "a"), Asked(0, "a")], tmp_path)
    assert [book[Asked(0, "a")], book[Asked(1, "a")]] == ["Yes. 0 a"] * 2
    assert answerer.calls == [["a"]]
    # With choices it is another question.
    book = ask_all(answerer, twice, [Asked(0, "a", ("x",))], tmp_path)
    assert book[Asked(0, "a", ("x",))] == "Yes. 0 ax"


def test_another_model_or_other_images_have_another_book(tmp_path: Path) -> None:
    for answerer, images in ((Loud(), IMAGES), (Loud(model="other"), IMAGES), (Loud(), IMAGES[:2])):
        ask_all(answerer, images, [Asked(0, "a")], tmp_path)
        assert answerer.calls
    assert len(list(tmp_path.iterdir())) == 3


def test_the_cache_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path))
    book = ask_all(Loud(), IMAGES, [Asked(0, "a")])
    assert book.path.parent == tmp_path / "answers"
    header, row = map(json.loads, book.path.read_text().splitlines())
    assert header["answerer"]["features"] == "loud"
    assert row == {"image": book.image_hashes[0], "question": "a", "choices": None, "answer": "Yes. 0 a"}


def test_a_damaged_book_is_named(tmp_path: Path) -> None:
    book = ask_all(Loud(), IMAGES, [Asked(0, "a")], tmp_path)
    book.path.write_text(book.path.read_text()[:-5])
    with pytest.raises(ValueError, match=f"{book.path.name} cannot be read.*remove the file"):
        ask_all(Loud(), IMAGES, [Asked(0, "a")], tmp_path)


def test_choices_for_all_or_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be asked together"):
        ask_all(Loud(), IMAGES, [Asked(0, "a"), Asked(0, "b", ("x",))], tmp_path)
