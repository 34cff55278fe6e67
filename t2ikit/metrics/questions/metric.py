"""Metrics that ask a question-answering model about every image: what DPG-Bench, DSG-1k and TIFA share."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2ikit.metrics.base import Metric, Result, Rows, SampleBatch, Samples
from t2ikit.metrics.questions.answers import AnswerKey, Asked, QuestionAnswerer, ask_all, book_text
from t2ikit.metrics.statistics import finite
from t2ikit.pretrained import sha256_of


@dataclass(frozen=True)
class Question:
    """What is asked about an image; the choices if the model is to see them."""

    text: str
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Answered:
    """What a model said about one image.

    Attributes:
        image: SHA-256 of the image.
        answers: each question with its answer, as the model gave it.
    """

    image: str
    answers: list[tuple[Asked, str]]


@dataclass(eq=False)
class QuestionMetric(Metric):
    """A benchmark of prompts with questions; the prompts' metadata name their ``item_id``.

    Attributes:
        questions: the benchmark's local file of questions.
        answerer: the model that answers; one of ``t2ikit.metrics.questions.models``.
        answers: folder where answers are kept, so that an interrupted judging goes on; None takes the kit's cache.
        name: put before the scores' names, where a snapshot has two of these.
        path: of the file of questions.
        score_name: of its main score, and the start of the others'.
    """

    questions: str
    answerer: QuestionAnswerer
    answers: str | None = field(default=None, kw_only=True)
    name: str | None = field(default=None, kw_only=True)
    score_name = ""

    def __post_init__(self) -> None:
        self.path = Path(self.questions).expanduser()
        if not self.path.is_file():
            raise FileNotFoundError(f"{type(self).__name__}: no file of questions {self.path}; set init_args.questions")

    @abstractmethod
    def questions_of(self, item: str) -> Sequence[Question]:
        """What is asked about each image of an item; ValueError or nothing for an item that is not in the table."""

    def check(self, samples: Samples) -> None:
        """Refuses images without an ``item_id``, or none at all, or none with questions."""
        items = images_of_items(samples, type(self).__name__)
        if not [question for item in items for question in self.questions_of(item)]:
            raise ValueError(f"{type(self).__name__}: no image has questions in {self.path}")

    def observe(self, batch: SampleBatch) -> Rows:
        """``Answered``: from earlier judgings where the same model was asked about the same images before."""
        asked = [
            Asked(image, wanted.text, wanted.choices)
            for image, metadata in enumerate(batch.metadata)
            for wanted in self.questions_of(str(metadata["item_id"]))
        ]
        folder = None if self.answers is None else Path(self.answers).expanduser()
        book = ask_all(self.answerer, batch.images, asked, folder)
        answered = [Answered(image_hash, []) for image_hash in book.image_hashes]
        for question in asked:
            answered[question.image].answers.append((question, book[question]))
        return answered

    def read_answers(self, samples: Samples, rows: Rows) -> dict[str, list[list[str]]]:
        """By item, in the order of ``images_of_items``: of each of its images the answers to ``questions_of``, read."""
        answered: list[Answered] = list(rows)
        return {
            item: [[self.answerer.read(answer) for _, answer in answered[index].answers] for index in indices]
            for item, indices in images_of_items(samples, type(self).__name__).items()
        }

    def result(self, rows: Rows, values: dict[str, float], errors: dict[str, float], items: dict[str, Any]) -> Result:
        """The result with its files: ``<score>_answers.jsonl``, all answers; ``<score>_items.json``, ``items``.

        Args:
            rows: what ``observe`` gave.
            values: score name -> value.
            errors: standard errors, NaN where there is none; questions and images of a prompt are clusters.
            items: the scores of every item, JSON-able.
        """
        book: dict[AnswerKey, str] = {}
        for answered in rows:
            book.update({(answered.image, asked.question, asked.choices): answer for asked, answer in answered.answers})
        files = {
            f"{self.score_name}_answers.jsonl": book_text(self.answerer.identity(), book),
            f"{self.score_name}_items.json": json.dumps(items, indent=1, sort_keys=True) + "\n",
        }
        return Result(values, finite(errors), {name: text.encode() for name, text in files.items()})

    def fingerprint(self) -> dict[str, Any]:
        """The benchmark, the hash of its questions, the answering model with its weights."""
        described = {"metric": self.score_name, "questions_sha256": sha256_of(self.path)}
        return {**self.answerer.fingerprint(), **described}


def images_of_items(samples: Samples, metric: str) -> dict[str, list[int]]:
    """The images' indices by ``item_id``, in the order of their first image.

    Raises:
        ValueError: no images, or an image whose metadata has no ``item_id``.
    """
    if len(samples) == 0:
        raise ValueError(f"{metric} needs images")
    items: dict[str, list[int]] = {}
    metadata = samples.metadata or [{}]
    for index, entry in enumerate(metadata):
        if "item_id" not in entry:
            raise ValueError(
                f"{metric}: image {index} has no metadata with an 'item_id': take the prompts from a source that "
                "names them"
            )
        items.setdefault(str(entry["item_id"]), []).append(index)
    return items


def slug(category: str) -> str:
    """A category as part of a score's name: ``attribute - color`` becomes ``attribute-color``."""
    words = [re.sub(r"[^a-z0-9]+", "_", word).strip("_") for word in category.lower().split("-")]
    return "-".join(words)
