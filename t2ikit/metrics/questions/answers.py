"""Questions about images, answered by any model behind one interface; what was answered is kept.

Shape legend::

    N  questions, each with its image    H, W  pixels

DPG-Bench, DSG-1k and TIFA ask thousands of questions of a large model, which takes hours. Answers are therefore kept in
a file, whole at any time, and an interrupted judging goes on where it stopped. The models are in
``t2ikit.metrics.questions.models``.
"""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from t2ikit.files import parse_json, read_lines, require_folder, write_whole
from t2ikit.metrics.features.features import NetworkHolder
from t2ikit.metrics.fingerprint import images_sha256
from t2ikit.pretrained import cache_folder

SAVE_SECONDS = 30.0
"""How much judging an interrupt may cost."""

_PUNCTUATION = " \t\n\r.,;:!?\"'`*"

Choices = Sequence[Sequence[str]] | None
AnswerKey = tuple[str, str, tuple[str, ...] | None]
"""SHA-256 of an image, question, choices."""


def plain(answer: str) -> str:
    """An answer in small letters, without white space and punctuation around it: ``" Yes."`` becomes ``"yes"``."""
    return answer.lower().strip(_PUNCTUATION)


def first_word(answer: str) -> str:
    """The first word of ``plain``: ``"Yes, there is a dog."`` becomes ``"yes"``."""
    words = plain(answer).split()
    return words[0].strip(_PUNCTUATION) if words else ""


def yes_or_no(answer: str) -> str:
    """``plain``, cut to its first word where that is yes or no: fits yes-no questions and free ones."""
    return first_word(answer) if first_word(answer) in ("yes", "no") else plain(answer)


READINGS: dict[str, Callable[[str], str]] = {"as_is": str, "plain": plain, "yes_or_no": yes_or_no}
"""How an answer is read before it is compared. The benchmarks compare exactly and with "as_is": their models answer in
single small words. A chat model writes sentences, which "yes_or_no" reads."""


class QuestionAnswerer(NetworkHolder, ABC):
    """A model that answers questions about images.

    Attributes:
        batch_size: questions that go through the model at once.
        reading: a key of ``READINGS``.
    """

    def __init__(self, batch_size: int = 16, reading: str = "as_is") -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if reading not in READINGS:
            raise ValueError(f"reading must be one of {', '.join(READINGS)}; got {reading!r}")
        self.batch_size = batch_size
        self.reading = reading

    @abstractmethod
    def free_answers(self, images: Tensor, questions: Sequence[str], choices: Choices = None) -> list[str]:
        """What the model says, as it says it, for one batch.

        Args:
            images: [N, 3, H, W] uint8, on the device that the model shall run on.
            questions: N questions, one an image; an image with several questions is repeated.
            choices: what may be answered to each question, or None; models that answer freely do not look at it.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides ``free_answers``: ``features`` (the model), ``features_sha256`` (of its weights), options."""

    def read(self, answer: str) -> str:
        """An answer as the model gave it, read by ``reading``."""
        return READINGS[self.reading](answer)

    def fingerprint(self) -> dict[str, Any]:
        """``identity`` and the reading."""
        return {**self.identity(), "reading": self.reading}


@dataclass(frozen=True)
class Asked:
    """One question about one image of a set.

    Attributes:
        image: index of the image in the set.
        question: in plain language.
        choices: what may be answered, if the model is to see it.
    """

    image: int
    question: str
    choices: tuple[str, ...] | None = None


class AnswerBook:
    """What a model has answered about a set of images, kept in one file of JSON lines.

    The first line names the model. Every other line is an answer as the model gave it::

        {"image": "<SHA-256 of the image>", "question": "Is there a dog?", "choices": null, "answer": "Yes."}
    """

    def __init__(self, folder: Path, answerer: QuestionAnswerer, images: Tensor) -> None:
        """Opens the book of this model and these images.

        Args:
            folder: of the books; a book's name comes from the model and the images.
            answerer: the model.
            images: [N, 3, H, W] uint8.

        Raises:
            ValueError: its file is damaged; names it.
        """
        self.identity = answerer.identity()
        self.image_hashes = [images_sha256(images[index : index + 1]) for index in range(len(images))]
        name = hashlib.sha256(json.dumps([self.identity, sorted(set(self.image_hashes))], sort_keys=True).encode())
        self.path = folder / f"{name.hexdigest()}.jsonl"
        self._answers: dict[AnswerKey, str] = {}
        if self.path.is_file():
            self._read()

    def _read(self) -> None:
        try:
            lines = read_lines(self.path)  # an answer may hold U+2028
            if parse_json(lines[0])["answerer"] != self.identity:
                raise ValueError("the first line names another model")
            for row in map(parse_json, lines[1:]):
                choices = None if row["choices"] is None else tuple(row["choices"])
                self._answers[row["image"], row["question"], choices] = row["answer"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"the answers in {self.path} cannot be read ({error}): remove the file") from error

    def key(self, asked: Asked) -> AnswerKey:
        """What an answer is filed under."""
        return self.image_hashes[asked.image], asked.question, asked.choices

    def __contains__(self, asked: Asked) -> bool:
        return self.key(asked) in self._answers

    def __getitem__(self, asked: Asked) -> str:
        return self._answers[self.key(asked)]

    def __setitem__(self, asked: Asked, answer: str) -> None:
        self._answers[self.key(asked)] = answer

    def __len__(self) -> int:
        return len(self._answers)

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        write_whole(self.path, book_text(self.identity, self._answers))


def book_text(identity: dict[str, Any], answers: dict[AnswerKey, str]) -> str:
    """A whole file of answers, as described in ``AnswerBook``."""
    rows: list[dict[str, Any]] = [{"kind": "answers", "answerer": identity}]
    for (image, question, choices), answer in answers.items():
        rows.append({"image": image, "question": question, "choices": choices, "answer": answer})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def ask_all(
    answerer: QuestionAnswerer,
    images: Tensor,
    asked: Sequence[Asked],
    folder: Path | None = None,
) -> AnswerBook:
    """Answers to all questions: from the book if it has them, else from the model.

    The book is written every half minute, at the end, and when the judging is interrupted.

    Args:
        answerer: the model.
        images: [N, 3, H, W] uint8, on the device where the model runs.
        asked: the questions; equal ones are asked once.
        folder: of the books; None takes ``answers`` in the kit's cache (``$T2IKIT_CACHE``).

    Returns:
        The book, which holds an answer to every question of ``asked``.
    """
    folder = folder or cache_folder() / "answers"
    require_folder(folder, "the folder of answers (by default below $T2IKIT_CACHE or ~/.cache/t2ikit)")
    book = AnswerBook(folder, answerer, images)
    waiting = list({book.key(question): question for question in asked if question not in book}.values())
    try:
        saved = time.monotonic()
        for start in range(0, len(waiting), answerer.batch_size):
            batch = waiting[start : start + answerer.batch_size]
            for question, answer in zip(batch, _ask(answerer, images, batch), strict=True):
                book[question] = answer
            if time.monotonic() - saved > SAVE_SECONDS:
                book.save()
                saved = time.monotonic()
    finally:
        if waiting:
            book.save()
    return book


def _ask(answerer: QuestionAnswerer, images: Tensor, asked: Sequence[Asked]) -> list[str]:
    """Free answers to one batch, whose questions all have choices or all have none."""
    choices = [list(question.choices) for question in asked if question.choices is not None]
    if choices and len(choices) != len(asked):
        raise ValueError("questions with and without choices cannot be asked together")
    shown = images[[question.image for question in asked]]
    return answerer.free_answers(shown, [question.question for question in asked], choices or None)
