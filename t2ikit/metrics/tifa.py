"""TIFA v1.0: multiple-choice questions about an image, answered freely and brought to the nearest choice.

Shape legend::

    C  choices of a question    D  width of the sentence embeddings

Source: Hu et al., "TIFA: accurate and interpretable text-to-image faithfulness evaluation", 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

Embed = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Question:
    """One question of the benchmark.

    Attributes:
        id: the caption's id; every caption has several questions.
        question: in plain language.
        choices: what may be answered.
        answer: the right choice.
        element_type: what is asked about, such as ``object``, ``color`` or ``counting``.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: str
    element_type: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Question:
        """From an entry of ``tifa_v1.0_question_answers.json``; ValueError naming what it lacks."""
        names = ("id", "question", "choices", "answer", "element_type")
        lacking = [name for name in names if name not in row]
        if lacking:
            raise ValueError(f"a TIFA question lacks {', '.join(lacking)}: {dict(row)}")
        return cls(*(tuple(row[name]) if name == "choices" else str(row[name]) for name in names))  # type: ignore[arg-type]


class TIFAScores(TypedDict):
    """Shares in [0, 1]: mean and standard deviation (n - 1) over captions, and by element type over questions."""

    tifa_average: float
    tifa_stdev: float
    accuracy_by_type: dict[str, float]


def choose(answer: str, choices: Sequence[str], embed: Embed) -> str:
    """The choice that a free answer means.

    Args:
        answer: of the question-answering model.
        choices: C choices.
        embed: sentences to embeddings [C + 1, D]; TIFA takes ``all-mpnet-base-v2``, mean pooled and normalised.

    Returns:
        The answer itself where it is a choice, else the choice with the largest cosine.

    Raises:
        ValueError: no choices.
    """
    if not choices:
        raise ValueError("a question without choices cannot be scored")
    if answer in choices:
        return answer
    vectors = torch.nn.functional.normalize(embed([answer, *choices]).detach().double(), dim=1)
    return choices[int((vectors[1:] @ vectors[0]).argmax())]


def mean_pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Sentence embeddings [B, D] of length one from token states [B, L, D] and mask [B, L] (1 = real)."""
    weights = mask[:, :, None].to(states.dtype)
    return torch.nn.functional.normalize((states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-9), dim=1)


def score(questions: Iterable[Mapping[str, Any] | Question], chosen: Sequence[str]) -> TIFAScores:
    """Scores a run: a question counts when the chosen answer is exactly the right one.

    Args:
        questions: of the benchmark, in any order.
        chosen: the choice made for each of them, in the same order (see ``choose``).

    Raises:
        ValueError: no questions, or not one choice a question.
    """
    asked = [entry if isinstance(entry, Question) else Question.from_row(entry) for entry in questions]
    if not asked or len(asked) != len(chosen):
        raise ValueError(f"TIFA needs one answer a question; got {len(asked)} questions and {len(chosen)} answers")
    captions: dict[str, list[float]] = {}
    types: dict[str, list[float]] = {}
    for question, answer in zip(asked, chosen, strict=True):
        right = float(answer == question.answer)
        captions.setdefault(question.id, []).append(right)
        types.setdefault(question.element_type, []).append(right)
    means = np.array([np.mean(values) for values in captions.values()])
    return {
        "tifa_average": float(means.mean()),
        "tifa_stdev": float(means.std(ddof=1)) if len(means) > 1 else float("nan"),
        "accuracy_by_type": {name: float(np.mean(values)) for name, values in sorted(types.items())},
    }
