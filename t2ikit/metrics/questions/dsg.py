"""DSG-1k: questions in a scene graph; a question counts only when its parents hold.

Source: Cho et al., "Davidsonian scene graph", 2024. The released script, unlike the pseudo-code beside it, reads the
plain answers of the parents: a zeroed parent that was itself answered yes does not pull its children down. Both ways
are here; "official" is the script's and gives the published table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from t2ikit.metrics.base import Result, Rows, Samples
from t2ikit.metrics.questions.dpg import Item, read_questions
from t2ikit.metrics.questions.metric import Question, QuestionMetric, images_of_items, slug
from t2ikit.metrics.statistics import clustered_error

MODES = ("official", "cascading")

CATEGORIES = (
    ("tifa", "tifa"),
    ("stanford", "paragraph"),
    ("localized", "paragraph"),
    ("countbench", "countbench"),
    ("vrd", "relation"),
    ("diffusion", "real_user"),
    ("midjourney", "real_user"),
    ("posescript", "pose"),
    ("whoops", "defying"),
    ("drawtext", "text"),
)
"""What an item's id contains, tested in this order, and the name of its category."""

Answers = Mapping[str, Mapping[Any, str] | Sequence[Mapping[Any, str]]]


class DSGScores(TypedDict):
    """Percentages: over all prompts, by category and by item; errors are standard errors over prompts.

    ``types`` pools the questions of each type (entity, relation, attribute, global: the table's ``category_broad``), as
    they count for their items; empty where the table has no types. ``unfiltered`` are items whose dependencies cannot
    be read and that were scored on the plain answers.
    """

    overall: float
    standard_error: float
    categories: dict[str, float]
    category_errors: dict[str, float]
    types: dict[str, float]
    type_errors: dict[str, float]
    items: dict[str, float]
    unfiltered: list[str]


def category(item_id: str) -> str:
    """The category of a prompt by its id; ValueError when none fits."""
    for letters, name in CATEGORIES:
        if letters in item_id:
            return name
    raise ValueError(f"item_id {item_id!r} belongs to no DSG-1k category: it contains none of {CATEGORIES}")


def score(rows: Iterable[Mapping[str, Any]], answers: Answers, mode: str = "official") -> DSGScores:
    """Scores a run.

    Args:
        rows: rows of the annotation table, with item_id, proposition_id and dependency.
        answers: by item, the answers by question number (int or str) of its image, or a list of them, one an image;
            an item without answers counts 0, as in the official script. Only exactly ``yes`` counts.
        mode: "official" (parents' plain answers) or "cascading" (parents' counted answers, in row order).

    Returns:
        The scores; see ``DSGScores``.

    Raises:
        ValueError: an unknown mode, no rows, answers to no item of the table, a question that is not answered, or a
            parent that is no question of its item.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    rows = list(rows)
    items, unfiltered = _group(rows)
    if not items:
        raise ValueError("the DSG-1k table has no rows")
    strange = [name for name in answers if name not in items]
    if strange:
        raise ValueError(f"item {strange[0]!r} has answers but no questions: name images by their item_id")
    counted = {name: _counted(name, item, answers.get(name, {}), mode) for name, item in items.items()}
    scores = {name: float(np.mean([_share(image) for image in images])) for name, images in counted.items()}
    types, type_errors = _by_type(rows, counted)
    pooled: dict[str, list[float]] = {}
    for name, value in scores.items():
        pooled.setdefault(category(name), []).append(value)
    values = list(scores.values())
    return {
        "overall": float(np.mean(values)),
        "standard_error": clustered_error(values),
        "categories": {name: float(np.mean(group)) for name, group in sorted(pooled.items())},
        "category_errors": {name: clustered_error(group) for name, group in sorted(pooled.items())},
        "types": types,
        "type_errors": type_errors,
        "items": scores,
        "unfiltered": unfiltered,
    }


def _group(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Item], list[str]]:
    """The questions by item; an item with a dependency that is no list of numbers keeps no dependency at all."""
    items: dict[str, Item] = {}
    unfiltered: list[str] = []
    for row in rows:
        name, question = str(row["item_id"]), int(row["proposition_id"])
        item = items.setdefault(name, Item())
        item.tuples[question] = row.get("tuple")
        item.questions[question] = str(row.get("question_natural_language", ""))
        try:
            item.parents[question] = [int(parent) for parent in str(row["dependency"]).split(",")]
        except ValueError:
            item.parents[question] = []
            if name not in unfiltered:
                unfiltered.append(name)
    for name in unfiltered:
        items[name].parents = {question: [] for question in items[name].parents}
    return items, unfiltered


def _counted(
    name: str, item: Item, answers: Mapping[Any, str] | Sequence[Mapping[Any, str]], mode: str
) -> list[dict[int, bool]]:
    """Which questions of an item count as answered yes, of each image; none does where there are no answers."""
    images = [answers] if isinstance(answers, Mapping) else list(answers)
    if not any(images):
        return [dict.fromkeys(item.parents, False)]
    return [_counted_of_image(name, item, image, mode) for image in images]


def _share(counted: Mapping[int, bool]) -> float:
    return 100 * sum(counted.values()) / len(counted)


def _by_type(
    rows: Iterable[Mapping[str, Any]], counted: Mapping[str, Sequence[Mapping[int, bool]]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Percentage and standard error by the type of a question; its item is a cluster."""
    pooled: dict[str, list[tuple[str, float]]] = {}
    for row in rows:
        if kind := str(row.get("category_broad") or "").strip():
            name, question = str(row["item_id"]), int(row["proposition_id"])
            pooled.setdefault(kind, []).extend((name, 100.0 * image[question]) for image in counted[name])
    percentages, errors = dict[str, float](), dict[str, float]()
    for kind, pairs in sorted(pooled.items()):
        names, values = zip(*pairs, strict=True)
        percentages[kind], errors[kind] = float(np.mean(values)), clustered_error(values, names)
    return percentages, errors


def _counted_of_image(name: str, item: Item, answers: Mapping[Any, str], mode: str) -> dict[int, bool]:
    by_number = {int(key): answer for key, answer in answers.items()}
    for question, parents in item.parents.items():
        if question not in by_number:
            raise ValueError(f"item {name!r}: no answer to question {question}")
        lacking = [parent for parent in parents if parent != 0 and parent not in item.parents]
        if lacking:
            raise ValueError(f"item {name!r}, question {question}: its parent {lacking[0]} is no question of the item")
    plain = {question: by_number[question] == "yes" for question in item.parents}
    counted = dict(plain)
    read = plain if mode == "official" else counted
    for question, parents in item.parents.items():
        if not all(read[parent] for parent in parents if parent != 0):
            counted[question] = False
    return counted


@dataclass(eq=False)
class DSG(QuestionMetric):
    """DSG-1k (Cho et al. 2024): 1,060 prompts with 8,182 yes-no questions, one image each or more.

    The images' metadata carry ``item_id``. The published tables ask PaLI-17B, which is not to be had, and mPLUG-large;
    the number depends on the model, which its fingerprint names.

    Attributes:
        questions: local file ``dsg-1k-anns.csv`` of the benchmark.
        mode: "official" (children follow their parents' plain answers) or "cascading"; see the head of this file.
        whole: every item of the table must have an image; False scores those that have one.
    """

    mode: str = "official"
    whole: bool = True
    score_name = "dsg"
    unit = "percent"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {self.mode!r}")
        self.rows = read_questions(self.path, strict=False)
        self.items = _group(self.rows)[0]

    def questions_of(self, item: str) -> list[Question]:
        """The questions of the item; ValueError for an item that the table lacks."""
        if item not in self.items:
            raise ValueError(f"DSG: item {item!r} of the images has no questions in {self.path}")
        return [Question(text) for text in self.items[item].questions.values()]

    def check(self, samples: Samples) -> None:
        """Refuses images without an ``item_id`` or with one that is not in the table, and items without an image."""
        super().check(samples)
        images = images_of_items(samples, "DSG")
        lacking = [item for item in self.items if item not in images]
        if lacking and self.whole:
            raise ValueError(
                f"DSG: {len(lacking)} items of {self.path} have no image, the first one is {lacking[0]!r}; "
                "sample them, or set init_args.whole to false"
            )

    def score(self, samples: Samples, rows: Rows) -> Result:
        """``dsg`` in percent, then ``dsg/<category>``, and ``dsg/type/<type>`` where the table names types."""
        answers = {
            item: [dict(zip(self.items[item].questions, given, strict=True)) for given in images]
            for item, images in self.read_answers(samples, rows).items()
        }
        scores = score([row for row in self.rows if row["item_id"] in answers], answers, self.mode)
        values, errors = {self.score_name: scores["overall"]}, {self.score_name: scores["standard_error"]}
        values |= {f"{self.score_name}/{name}": value for name, value in scores["categories"].items()}
        errors |= {f"{self.score_name}/{name}": error for name, error in scores["category_errors"].items()}
        values |= {f"{self.score_name}/type/{slug(kind)}": value for kind, value in scores["types"].items()}
        errors |= {f"{self.score_name}/type/{slug(kind)}": error for kind, error in scores["type_errors"].items()}
        return self.result(rows, values, errors, {"items": scores["items"], "unfiltered": scores["unfiltered"]})

    def fingerprint(self) -> dict[str, Any]:
        """Mode, questions, answering model."""
        return {**super().fingerprint(), "mode": self.mode, "whole": self.whole}
