"""Metrics that ask a question-answering model about every image: what DPG-Bench, DSG-1k and TIFA share."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2ikit.files import write_whole
from t2ikit.metrics.base import Metric, Samples
from t2ikit.metrics.question_answering import AnswerBook, Asked, QuestionAnswerer, ask_all
from t2ikit.metrics.standard_error import finite
from t2ikit.pretrained import sha256_of


class JudgedMetric(Metric):
    """A benchmark of prompts with questions; the prompts' metadata name their ``item_id``.

    Attributes:
        score_name: of its main score, and the start of the others'.
    """

    score_name: str

    def __init__(
        self, questions: str, answerer: QuestionAnswerer, answers: str | None = None, name: str | None = None
    ) -> None:
        """Settings.

        Args:
            questions: the benchmark's local file of questions.
            answerer: the model that answers; one of ``t2ikit.metrics.answerers``.
            answers: folder where answers are kept, so that an interrupted judging goes on; None takes the kit's cache.
            name: put before the scores' names, where a snapshot has two of these.
        """
        path = Path(questions).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{type(self).__name__}: no file of questions {path}; set init_args.questions")
        self.questions = path
        self.answerer = answerer
        self.answers = None if answers is None else Path(answers).expanduser()
        self.name = name
        self._errors: dict[str, float] = {}
        self._book: AnswerBook | None = None
        self._items: dict[str, Any] = {}

    def _ask(self, samples: Samples, asked: Sequence[Asked]) -> list[str]:
        """Answers to all questions, from earlier judgings where they were asked before."""
        answers, self._book = ask_all(self.answerer, samples.images, asked, self.answers, self.score_name)
        return answers

    def _keep(self, items: dict[str, Any], errors: dict[str, float]) -> None:
        """Keeps what ``publish`` and ``standard_errors`` give."""
        self._items = items
        self._errors = finite(errors)

    def standard_errors(self) -> dict[str, float]:
        """Standard errors of the scores just given, where they exist; questions and images of a prompt are alike."""
        return dict(self._errors)

    def publish(self, folder: str | Path) -> list[Path]:
        """Writes what the scores just given were made of: all answers, and the scores of every item.

        Args:
            folder: where the scores lie.

        Returns:
            The files: ``<score>_answers.jsonl`` and ``<score>_items.json``.

        Raises:
            RuntimeError: nothing has been computed yet.
        """
        if self._book is None:
            raise RuntimeError(f"{type(self).__name__} has judged nothing yet: call compute first")
        prefix = Path(folder) / (self.score_name if self.name is None else f"{self.name}_{self.score_name}")
        files = [prefix.with_name(f"{prefix.name}_{what}") for what in ("answers.jsonl", "items.json")]
        write_whole(files[0], self._book.text())
        write_whole(files[1], json.dumps(self._items, indent=1, sort_keys=True) + "\n")
        return files

    def fingerprint(self) -> dict[str, Any]:
        """The benchmark, the hash of its questions, the answering model with its weights."""
        described = {"metric": self.score_name, "questions_sha256": sha256_of(self.questions)}
        return {**self.answerer.fingerprint(), **described}


def images_of_items(samples: Samples, metric: str) -> dict[str, list[int]]:
    """The images' indices by ``item_id``, in the order in which they stand.

    Raises:
        ValueError: no images, or an image whose metadata has no ``item_id``.
    """
    if len(samples) == 0:
        raise ValueError(f"{metric} needs images")
    items: dict[str, list[int]] = {}
    metadata = samples.metadata or [{}]
    for number, entry in enumerate(metadata):
        if "item_id" not in entry:
            raise ValueError(
                f"{metric}: image {number} has no metadata with an 'item_id': take the prompts from a source that "
                "names them"
            )
        items.setdefault(str(entry["item_id"]), []).append(number)
    return items


def slug(category: str) -> str:
    """A category as part of a score's name: ``attribute - color`` becomes ``attribute-color``."""
    parts = [re.sub(r"[^a-z0-9]+", "_", part).strip("_") for part in category.lower().split("-")]
    return "-".join(parts)
