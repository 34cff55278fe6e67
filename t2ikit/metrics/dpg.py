"""DPG-Bench: dense prompts, questions with parents, answers of a question-answering model.

Source: Hu et al., "ELLA: equip diffusion models with LLM for enhanced semantic alignment", 2024, and its scorer. Two
modes: "official" gives the scorer's numbers with all of its quirks, and is the one to report; "fixed" is what the
protocol says.

==================  ==========================================  ==================================================
\\                   official                                    fixed
==================  ==========================================  ==================================================
first csv row       skipped                                     read
rows of an item     a second run of rows replaces the first     joined wherever they stand
parents             zeroes spread in row order, so only where   a question counts when it and all its ancestors
                    the parent's row stands above               are answered yes
categories          plain answers of the last image             the counted answers of all images
broken item         dropped without a word (``failed``)         ValueError naming the item and the row
==================  ==========================================  ==================================================

An answer counts only when it is exactly ``yes``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

MODES = ("official", "fixed")
COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")

Answers = Mapping[str, Sequence[Mapping[Any, str]]]


class ItemScore(TypedDict):
    """Scores in [0, 1] of one prompt: of every image, and their mean."""

    images: list[float]
    average: float


class DPGScores(TypedDict):
    """The scores of a run.

    ``overall``, ``L1`` (broad category) and ``L2`` (category) are percentages; ``standard_error`` is that of
    ``overall`` over prompts; ``failed`` are the dropped items; ``n_vqa_calls`` the questions that were asked.
    """

    overall: float
    standard_error: float
    L1: dict[str, float]
    L2: dict[str, float]
    items: dict[str, ItemScore]
    failed: list[str]
    n_vqa_calls: int


@dataclass
class Item:
    """The questions of one prompt, by number, in row order.

    Attributes:
        tuples: such as ``attribute - color (wheel, red)``; the category stands before the parenthesis.
        parents: numbers of the questions that must be answered yes first; 0 is none.
        questions: in plain language.
    """

    tuples: dict[int, Any] = field(default_factory=dict)
    parents: dict[int, list[int]] = field(default_factory=dict)
    questions: dict[int, str] = field(default_factory=dict)


def read_questions(path: str | Path) -> list[dict[str, str]]:
    """The rows of ``dpg_bench.csv``; ValueError when a column is missing."""
    with Path(path).open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path} is no DPG-Bench table: it lacks the columns {', '.join(missing)}")
        return list(reader)


def group(rows: Iterable[Mapping[str, Any]], mode: str = "official") -> dict[str, Item]:
    """The questions by item.

    Args:
        rows: rows of the csv, in its order.
        mode: "official" or "fixed".

    Raises:
        ValueError: an unknown mode, or a dependency that is no list of numbers (the official scorer stops there, too).
    """
    _check_mode(mode)
    items: dict[str, Item] = {}
    previous = None
    for number, row in enumerate(rows):
        if mode == "official" and number == 0:
            continue
        name, question = str(row["item_id"]), int(row["proposition_id"])
        if name not in items or (mode == "official" and name != previous):
            items[name] = Item()
        previous = name
        try:
            parents = [int(part) for part in str(row["dependency"]).split(",")]
        except ValueError:
            raise ValueError(
                f"row {number + 1} ({name}, question {question}): "
                f"dependency {row['dependency']!r} is no list of numbers"
            ) from None
        items[name].tuples[question] = row["tuple"]
        items[name].parents[question] = parents
        items[name].questions[question] = str(row.get("question_natural_language", ""))
    return items


def score(rows: Iterable[Mapping[str, Any]], answers: Answers, mode: str = "official") -> DPGScores:
    """Scores a run.

    Args:
        rows: rows of the csv in its order, with item_id, proposition_id, dependency and tuple.
        answers: by item, for each of its images in order, the answers by question number (int or str).
        mode: "official" or "fixed", see the head of this file.

    Returns:
        The scores; see ``DPGScores``.

    Raises:
        ValueError: an unknown mode; no item could be scored; in "fixed", an item without questions, an answer or a
            parent that is missing, or parents in a circle.
    """
    items = group(rows, mode)
    run = _Run(mode)
    for name, images in answers.items():
        try:
            run.add(str(name), items, images)
        except (KeyError, AttributeError, ZeroDivisionError, IndexError):
            if mode == "fixed":
                raise
            # The official scorer catches everything and goes on; an item that has no score leaves no trace.
            run.failed.append(str(name))
    return run.scores()


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")


class _Run:
    """Scores item by item."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.items: dict[str, ItemScore] = {}
        self.failed: list[str] = []
        self.asked = 0
        self.pooled: dict[str, list[float]] = {}

    def add(self, name: str, items: Mapping[str, Item], images: Sequence[Mapping[Any, str]]) -> None:
        """Scores the images of one item."""
        if self.mode == "fixed":
            _check_item(name, items, images)
        item = items[name]
        scores, plain, counted = [], {}, {}
        pooled: list[tuple[int, float]] = []
        for answers in images:
            by_number = {int(key): answer for key, answer in answers.items()}
            plain = {question: float(self._ask(by_number, question) == "yes") for question in item.tuples}
            counted = _in_row_order(plain, item) if self.mode == "official" else _with_ancestors(plain, item)
            scores.append(sum(counted.values()) / len(counted))
            pooled += counted.items()
        self.items[name] = {"images": scores, "average": sum(scores) / len(scores)}
        for question, value in plain.items() if self.mode == "official" else pooled:
            self.pooled.setdefault(category(item.tuples[question]), []).append(value)

    def _ask(self, answers: Mapping[int, str], question: int) -> str:
        answer = answers[question]
        self.asked += 1
        return answer

    def scores(self) -> DPGScores:
        """The means."""
        if not self.items:
            raise ValueError("no item has a score: the answers fit none of the questions")
        averages = np.array([item["average"] for item in self.items.values()])
        broad: dict[str, list[float]] = {}
        for name, values in self.pooled.items():
            broad.setdefault(name.split("-")[0].strip(), []).extend(values)
        deviation = float(averages.std(ddof=1)) if len(averages) > 1 else float("nan")
        return {
            "overall": 100 * float(averages.mean()),
            "standard_error": 100 * deviation / len(averages) ** 0.5,
            "L1": {name: 100 * float(np.mean(values)) for name, values in sorted(broad.items())},
            "L2": {name: 100 * float(np.mean(values)) for name, values in sorted(self.pooled.items())},
            "items": self.items,
            "failed": self.failed,
            "n_vqa_calls": self.asked,
        }


def category(of: str) -> str:
    """``attribute - color`` of ``attribute - color (wheel, red)``."""
    return of.split("(")[0].strip()


def _in_row_order(plain: Mapping[int, float], item: Item) -> dict[int, float]:
    """Zeroes children in the order of the rows, reading what earlier rows have already zeroed."""
    counted = dict(plain)
    for question, parents in item.parents.items():
        if any(counted[parent] == 0 for parent in parents if parent != 0):
            counted[question] = 0.0
    return counted


def _with_ancestors(plain: Mapping[int, float], item: Item) -> dict[int, float]:
    """Zeroes every question with an ancestor that is not answered yes, whatever the order of the rows."""
    counted: dict[int, float] = {}

    def settle(question: int) -> float:
        if question not in counted:
            upper = [settle(parent) for parent in item.parents[question] if parent != 0]
            counted[question] = min([plain[question], *upper])
        return counted[question]

    return {question: settle(question) for question in plain}


def _check_item(name: str, items: Mapping[str, Item], images: Sequence[Mapping[Any, str]]) -> None:
    """What "official" drops without a word, as ValueErrors."""
    if name not in items:
        raise ValueError(f"item {name!r} has images but no questions: its file name must be an item_id of the table")
    if not images:
        raise ValueError(f"item {name!r} has no images")
    item = items[name]
    for question, parents in item.parents.items():
        missing = [parent for parent in parents if parent != 0 and parent not in item.parents]
        if missing:
            raise ValueError(f"item {name!r}, question {question}: its parent {missing[0]} is no question of the item")
        if not isinstance(item.tuples[question], str):
            raise ValueError(f"item {name!r}, question {question}: the tuple is missing")
    done: set[int] = {0}
    waiting = set(item.parents)
    while ready := {question for question in waiting if done.issuperset(item.parents[question])}:
        done, waiting = done | ready, waiting - ready
    if waiting:
        raise ValueError(f"item {name!r}: questions {sorted(waiting)} depend on each other in a circle")
    for number, answers in enumerate(images):
        missing = sorted(set(item.parents) - {int(key) for key in answers})
        if missing:
            raise ValueError(f"item {name!r}, image {number}: no answer to question {missing[0]}")


def split_grid(grid: Tensor, count: int = 4) -> Tensor:
    """The images of a 2 x 2 grid: top left, top right, bottom left, bottom right.

    Args:
        grid: [3, 2 R, 2 R] uint8, or [3, R, R] when ``count`` is 1.
        count: how many of the four, 1 to 4, are taken.

    Returns:
        [count, 3, R, R].

    Raises:
        ValueError: the grid is not square with an even side, or ``count`` is out of range.
    """
    if not 1 <= count <= 4:
        raise ValueError(f"a DPG-Bench grid holds 1 to 4 images; got count={count}")
    height, width = grid.shape[1:]
    if height != width or (count > 1 and height % 2):
        raise ValueError(f"a DPG-Bench grid is square with an even side; got {height} x {width}")
    if count == 1:
        return grid[None]
    side = height // 2
    return grid.unflatten(1, (2, side)).unflatten(3, (2, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)[:count]


def join_grid(images: Tensor) -> Tensor:
    """Up to four images [K, 3, R, R] as one [3, 2 R, 2 R] grid (black where missing); a single one as it is."""
    count, channels, height, width = images.shape
    if not 1 <= count <= 4 or height != width:
        raise ValueError(f"a DPG-Bench grid takes 1 to 4 square images; got {tuple(images.shape)}")
    if count == 1:
        return images[0]
    filled = torch.zeros(4, channels, height, width, dtype=images.dtype, device=images.device)
    filled[:count] = images
    return filled.unflatten(0, (2, 2)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
