"""TIFA v1.0: multiple-choice questions about an image, answered freely; an answer counts as the nearest choice.

Shape legend::

    C  choices of a question    D  width of the sentence embeddings

Source: Hu et al., "TIFA: accurate and interpretable text-to-image faithfulness evaluation", 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from t2ikit.files import parse_json, read_utf8
from t2ikit.metrics.base import Result, Rows, Samples
from t2ikit.metrics.features.clip import TOKENIZER_FILES
from t2ikit.metrics.features.features import NetworkHolder
from t2ikit.metrics.questions.metric import Question, QuestionMetric, images_of_items, slug
from t2ikit.metrics.statistics import clustered_error
from t2ikit.pretrained import load_pretrained

Embed = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class TIFAQuestion:
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
    def from_row(cls, row: Mapping[str, Any]) -> TIFAQuestion:
        """From an entry of ``tifa_v1.0_question_answers.json``; ValueError naming what it lacks."""
        names = ("id", "question", "choices", "answer", "element_type")
        lacking = [name for name in names if name not in row]
        if lacking:
            raise ValueError(f"a TIFA question lacks {', '.join(lacking)}: {dict(row)}")
        return cls(*(tuple(row[name]) if name == "choices" else str(row[name]) for name in names))  # type: ignore[arg-type]


class TIFAScores(TypedDict):
    """Shares in [0, 1]: mean and standard deviation (n - 1) over captions, and by element type over questions.

    ``standard_error`` is that of the mean over captions; the questions of a type are pooled, with captions as clusters.
    """

    tifa_average: float
    tifa_stdev: float
    standard_error: float
    accuracy_by_type: dict[str, float]
    errors_by_type: dict[str, float]


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


def score(questions: Iterable[Mapping[str, Any] | TIFAQuestion], chosen: Sequence[str]) -> TIFAScores:
    """Scores a run: a question counts when the chosen answer is exactly the right one.

    Args:
        questions: of the benchmark, in any order.
        chosen: the choice made for each of them, in the same order (see ``choose``).

    Raises:
        ValueError: no questions, or not one choice a question.
    """
    asked = [entry if isinstance(entry, TIFAQuestion) else TIFAQuestion.from_row(entry) for entry in questions]
    if not asked or len(asked) != len(chosen):
        raise ValueError(f"TIFA needs one answer a question; got {len(asked)} questions and {len(chosen)} answers")
    captions: dict[str, list[float]] = {}
    types: dict[str, list[tuple[str, float]]] = {}
    for question, answer in zip(asked, chosen, strict=True):
        right = float(answer == question.answer)
        captions.setdefault(question.id, []).append(right)
        types.setdefault(question.element_type, []).append((question.id, right))
    means = np.array([np.mean(values) for values in captions.values()])
    return {
        "tifa_average": float(means.mean()),
        "tifa_stdev": float(means.std(ddof=1)) if len(means) > 1 else float("nan"),
        "standard_error": clustered_error(means.tolist()),
        "accuracy_by_type": {
            name: float(np.mean([right for _, right in values])) for name, values in sorted(types.items())
        },
        "errors_by_type": {
            name: clustered_error([right for _, right in values], [caption for caption, _ in values])
            for name, values in sorted(types.items())
        },
    }


def read_questions(path: str | Path) -> list[TIFAQuestion]:
    """The questions of ``tifa_v1.0_question_answers.json``; ValueError naming the file and what is wrong with it."""
    try:
        rows = parse_json(read_utf8(Path(path)))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} is no list of TIFA questions")
    questions = []
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, entry {index}: no question")
        try:
            questions.append(TIFAQuestion.from_row(row))
        except ValueError as error:
            raise ValueError(f"{path}, entry {index}: {error}") from error
        if questions[-1].answer not in questions[-1].choices:
            raise ValueError(f"{path}, entry {index}: the answer {questions[-1].answer!r} is none of the choices")
    return questions


class SentenceEncoder(NetworkHolder):
    """Sentence embeddings of an encoder of transformers, mean pooled and of length one; loaded at the first use."""

    def __init__(
        self, model: str = "sentence-transformers/all-mpnet-base-v2", revision: str | None = None, max_tokens: int = 384
    ) -> None:
        """Names the model.

        Args:
            model: repository or local folder, with its tokenizer.
            revision: commit, branch or tag of the repository.
            max_tokens: longer sentences are cut; 384 in the model's own settings.
        """
        self.model = model
        self.revision = revision
        self.max_tokens = max_tokens
        self._loaded: tuple[Any, Any, str] | None = None

    def _load(self) -> tuple[Any, Any, str]:
        if self._loaded is None:
            from transformers import AutoModel, AutoTokenizer

            option = "sentences.init_args.model"
            files = (*TOKENIZER_FILES, "vocab.txt")
            network, folder = load_pretrained(AutoModel, self.model, self.revision, option, files)
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder.folder, trust_remote_code=False)
            except (OSError, ValueError) as error:
                raise FileNotFoundError(f"no tokenizer in {folder.folder} ({error}): correct {option}") from error
            self._loaded = (network.float(), tokenizer, folder.reference.sha256)
        return self._loaded

    @torch.no_grad()
    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """Embeddings [B, D] float32 of B sentences, on the CPU."""
        network, tokenizer, _ = self._load()
        tokens = tokenizer(
            list(sentences), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        states = network(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        return mean_pooled(states.float(), tokens["attention_mask"])

    def fingerprint(self) -> dict[str, Any]:
        """Model and hash of its weights and tokenizer."""
        return {"sentences": self.model, "sentences_sha256": self._load()[2]}


@dataclass(eq=False)
class TIFA(QuestionMetric):
    """TIFA v1.0 (Hu et al. 2023): 4,081 captions with multiple-choice questions, one image each or more.

    The images' metadata carry the caption's id as ``item_id``. Officially mPLUG-large (``MPLUGAnswerer``) answers
    freely, and an answer that is no choice goes to the nearest one.

    Attributes:
        questions: local file ``tifa_v1.0_question_answers.json`` of the benchmark.
        sentences: finds the choice that is nearest to a free answer; None is all-mpnet-base-v2, as official.
        show_choices: show the choices to a chat model; officially the answer is free.
    """

    sentences: SentenceEncoder | None = None
    show_choices: bool = False
    score_name = "tifa"
    unit = "share"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.embed = self.sentences or SentenceEncoder()
        self.items: dict[str, list[TIFAQuestion]] = {}
        for question in read_questions(self.path):
            self.items.setdefault(question.id, []).append(question)

    def questions_of(self, item: str) -> list[Question]:
        """The caption's; ValueError where the file has none."""
        if item not in self.items:
            raise ValueError(f"TIFA: item {item!r} of the images has no questions in {self.path}")
        questions = self.items[item]
        return [Question(asked.question, asked.choices if self.show_choices else None) for asked in questions]

    def score(self, samples: Samples, rows: Rows) -> Result:
        """``tifa`` in [0, 1], then ``tifa/<element type>``."""
        images, read = images_of_items(samples, "TIFA"), self.read_answers(samples, rows)
        questions: list[TIFAQuestion] = []
        chosen: list[str] = []
        items: dict[str, list[dict[str, Any]]] = {}
        for item, indices in images.items():
            for image, answers in zip(indices, read[item], strict=True):
                for question, answer in zip(self.items[item], answers, strict=True):
                    choice = choose(answer, question.choices, self.embed)
                    questions.append(question)
                    chosen.append(choice)
                    entry = {"image": image, "question": question.question, "answer": answer, "chosen": choice}
                    items.setdefault(item, []).append({**entry, "right": choice == question.answer})
        scores = score(questions, chosen)
        types = {f"{self.score_name}/{slug(name)}": error for name, error in scores["errors_by_type"].items()}
        errors = {self.score_name: scores["standard_error"], **types}
        values = {self.score_name: scores["tifa_average"]}
        values |= {f"{self.score_name}/{slug(name)}": value for name, value in scores["accuracy_by_type"].items()}
        return self.result(rows, values, errors, {"items": items})

    def fingerprint(self) -> dict[str, Any]:
        """Questions, answering model, sentence encoder."""
        return {**super().fingerprint(), **self.embed.fingerprint(), "show_choices": self.show_choices}
