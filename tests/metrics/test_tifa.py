"""TIFA: choices, means over captions, pooled types."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from t2ikit.metrics.tifa import Question, choose, mean_pooled, score


def question(caption: str, answer: str, kind: str = "object") -> Question:
    return Question(caption, "What is it?", ("a", "b", "c"), answer, kind)


def test_scores() -> None:
    questions = [
        question("1", "a"),
        question("1", "b", "color"),
        question("2", "c"),
        question("2", "c"),
        question("3", "a"),
    ]
    result = score(questions, ["a", "c", "c", "c", "b"])
    assert result["tifa_average"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert result["tifa_stdev"] == pytest.approx(0.5)
    assert result["accuracy_by_type"] == {"color": 0, "object": 0.75}


def test_a_free_answer_goes_to_the_nearest_choice() -> None:
    asked: list[Sequence[str]] = []

    def embed(sentences: Sequence[str]) -> torch.Tensor:
        asked.append(sentences)
        return torch.tensor([[1.0, 0.1], [0.0, 5.0], [0.5, 0.0], [-9.0, 0.0]])

    assert choose("dog", ["cat", "dog", "cow"], embed) == "dog"
    assert not asked
    assert choose("puppy", ["cat", "dog", "cow"], embed) == "dog"
    assert asked == [["puppy", "cat", "dog", "cow"]]
    with pytest.raises(ValueError, match="without choices"):
        choose("dog", [], embed)


def test_mean_pooling_leaves_the_padding_out() -> None:
    states = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [99.0, 99.0]]])
    torch.testing.assert_close(mean_pooled(states, torch.tensor([[1, 1, 0]])), torch.tensor([[0.6, 0.8]]))


def test_errors() -> None:
    with pytest.raises(ValueError, match="1 questions and 2 answers"):
        score([question("1", "a")], ["a", "b"])
    with pytest.raises(ValueError, match="lacks choices, answer"):
        score([{"id": "1", "question": "?", "element_type": "object"}], ["a"])
    row = {"id": "1", "question": "?", "choices": ["yes", "no"], "answer": "yes", "element_type": "object"}
    assert score([row], ["yes"])["tifa_average"] == 1
