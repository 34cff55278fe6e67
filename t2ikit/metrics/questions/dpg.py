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

from t2ikit.metrics.statistics import clustered_error

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
    ``overall`` over prompts, ``L1_errors`` and ``L2_errors`` those of the categories, whose questions are pooled, with
    prompts as clusters; ``failed`` are the dropped items; ``n_vqa_calls`` the questions that were asked.
    """

    overall: float
    standard_error: float
    L1: dict[str, float]
    L1_errors: dict[str, float]
    L2: dict[str, float]
    L2_errors: dict[str, float]
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


def read_questions(path: str | Path, strict: bool = True) -> list[dict[str, str]]:
    """The rows of a table of questions: ``dpg_bench.csv``, or DSG-1k's, which has the same columns.

    Args:
        path: the csv file.
        strict: every row needs its tuple and dependencies that are numbers; DSG-1k has some that are none.

    Raises:
        ValueError: the file is no UTF-8 table, a column is missing, or a row has too few or too many cells, no item or
            question, or a ``proposition_id`` that is no number; names file and line.
    """
    rows: list[dict[str, str]] = []
    with Path(path).open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        try:
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise ValueError(f"{path} is no table of questions: it lacks the columns {', '.join(missing)}")
            for row in reader:
                fault = _fault(row, strict)
                if fault:
                    raise ValueError(f"{path}, line {reader.line_num}: {fault}")
                rows.append(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, after line {reader.line_num}: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no questions")
    return rows


def _fault(row: Mapping[Any, Any], strict: bool) -> str:
    """What is wrong with a row of the table, or nothing."""
    if None in row:
        return "more cells than columns"
    if None in row.values():
        return "fewer cells than columns"
    for name in ("item_id", "question_natural_language", *(("tuple",) if strict else ())):
        if not row[name].strip():
            return f"{name} is empty"
    if not row["proposition_id"].strip().isdecimal():
        return f"proposition_id {row['proposition_id']!r} is no number"
    if strict and not all(part.strip().isdecimal() for part in row["dependency"].split(",")):
        return f"dependency {row['dependency']!r} is no list of numbers"
    return ""


def group(rows: Iterable[Mapping[str, Any]], mode: str = "official") -> dict[str, Item]:
    """The questions by item.

    Args:
        rows: rows of the csv, in its order.
        mode: "official" or "fixed".

    Raises:
        ValueError: an unknown mode, or a dependency that is no list of numbers (the official scorer stops there, too).
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    items: dict[str, Item] = {}
    previous = None
    for index, row in enumerate(rows):
        if mode == "official" and index == 0:
            continue
        name, question = str(row["item_id"]), int(row["proposition_id"])
        if name not in items or (mode == "official" and name != previous):
            items[name] = Item()
        previous = name
        try:
            parents = [int(part) for part in str(row["dependency"]).split(",")]
        except ValueError:
            where = f"row {index + 1} ({name}, question {question})"
            raise ValueError(f"{where}: dependency {row['dependency']!r} is no list of numbers") from None
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


class _Run:
    """Scores item by item."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.items: dict[str, ItemScore] = {}
        self.failed: list[str] = []
        self.asked = 0
        self.pooled: dict[str, list[tuple[str, float]]] = {}

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
            self.pooled.setdefault(category(item.tuples[question]), []).append((name, value))

    def _ask(self, answers: Mapping[int, str], question: int) -> str:
        answer = answers[question]
        self.asked += 1  # those before a missing answer count, too
        return answer

    def scores(self) -> DPGScores:
        """The means."""
        if not self.items:
            raise ValueError("no item has a score: the answers fit none of the questions")
        averages = [item["average"] for item in self.items.values()]
        broad: dict[str, list[tuple[str, float]]] = {}
        for name, values in self.pooled.items():
            broad.setdefault(name.split("-")[0].strip(), []).extend(values)
        (of_broad, broad_errors), (of_narrow, narrow_errors) = _categories(broad), _categories(self.pooled)
        return {
            "overall": 100 * float(np.mean(averages)),
            "standard_error": 100 * clustered_error(averages),
            "L1": of_broad,
            "L1_errors": broad_errors,
            "L2": of_narrow,
            "L2_errors": narrow_errors,
            "items": self.items,
            "failed": self.failed,
            "n_vqa_calls": self.asked,
        }


def _categories(pooled: Mapping[str, Sequence[tuple[str, float]]]) -> tuple[dict[str, float], dict[str, float]]:
    """Percentage and standard error of each category; the items are clusters."""
    percentages, errors = {}, {}
    for name, pairs in sorted(pooled.items()):
        items, values = zip(*pairs, strict=True)
        percentages[name] = 100 * float(np.mean(values))
        errors[name] = 100 * clustered_error(values, items)
    return percentages, errors


def category(question: str) -> str:
    """``attribute - color`` of the tuple ``attribute - color (wheel, red)``."""
    return question.split("(")[0].strip()


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
    for index, answers in enumerate(images):
        missing = sorted(set(item.parents) - {int(key) for key in answers})
        if missing:
            raise ValueError(f"item {name!r}, image {index}: no answer to question {missing[0]}")
