"""The answers of raters: files that the page exports, compared with the key of the page."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ikit.files import check_text, parse_json, read_utf8
from t2ikit.report.preference.key import Key
from t2ikit.report.preference.orders import Comparison, comparisons_of

CHOICES = ("left", "same", "right")
MOST_MS = 1e12
"""Milliseconds of an answer that are believed: thirty years."""


@dataclass(frozen=True)
class Rating:
    """One answer.

    Attributes:
        question: its name.
        prompt: identity of the prompt.
        models: the two, in the order of the key.
        value: 1 where the first model is better, -1 where the second is, 0 for unsure.
        choice: "left", "same" or "right".
        ms: milliseconds until the answer.
    """

    question: str
    prompt: str
    models: tuple[str, str]
    value: int
    choice: str
    ms: float


@dataclass(frozen=True)
class Rater:
    """The answers of one rater.

    Attributes:
        name: as the page keeps it.
        file: the export.
        ratings: the first answer to every comparison.
        repeats: value of the first answer and of the second one, where a comparison was shown again.
        asked: comparisons that the page has for a rater, repeats included.
        follows: whether the answers are those to the first comparisons of the page, in its order.
    """

    name: str
    file: Path
    ratings: tuple[Rating, ...]
    repeats: tuple[tuple[int, int], ...]
    asked: int
    follows: bool


def read_exports(paths: Sequence[Path], key: Key) -> list[Rater]:
    """The answers of several raters, in the order of the files.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no export of this page, a rater twice, or no answer at all; names the file.
    """
    raters: dict[str, Rater] = {}
    for path in paths:
        rater = read_export(path, key)
        known = " ".join(unicodedata.normalize("NFKC", rater.name).casefold().split())  # "anna " is Anna
        if known in raters:
            raise ValueError(
                f"{raters[known].file} and {path} are both of the rater {rater.name!r}: give one export of each rater, "
                "the last one"
            )
        raters[known] = rater
    if not any(rater.ratings for rater in raters.values()):
        raise ValueError("the exports hold no answer")
    return list(raters.values())


def read_export(path: Path, key: Key) -> Rater:
    """The answers of one rater; see :func:`read_exports`."""
    if not path.is_file():
        raise FileNotFoundError(f"no export {path}")
    try:
        content = parse_json(read_utf8(path))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error}): give what the page exported") from error
    if not isinstance(content, dict) or not {"page", "rater", "ratings"} <= content.keys():
        raise ValueError(f"{path} is no export of a page: it needs page, rater and ratings")
    if content["page"] != key.page:
        raise ValueError(
            f"{path} is of page {content['page']!r}, the key of page {key.page!r}: give the key of its page"
        )
    name, entries = content["rater"], content["ratings"]
    if not isinstance(name, str) or not name.strip() or not isinstance(entries, list):
        raise ValueError(f"{path}: the rater must be a name, the ratings a list")
    check_text(name, f"the rater of {path}")
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
        raise ValueError(f"{path}: the rater {ascii(name)} has a control character, of which the page keeps none")
    asked = [
        comparison
        for question in key.questions
        for comparison in comparisons_of(key.seed, name, question, key.names(), key.repeats)
    ]
    shown = frozenset(asked)
    owners = {entry.prompt: {picture: model for model, picture in entry.pictures.items()} for entry in key.prompts}
    ratings: dict[Comparison, Rating] = {}
    repeats: dict[frozenset[Comparison], tuple[int, int]] = {}
    order = []
    for position, entry in enumerate(entries):
        where = f"{path}, rating {position}"
        comparison, rating = _rating(entry, where, key, owners)
        order.append(comparison)
        pair = frozenset((comparison, comparison.swapped()))
        if comparison in ratings or pair in repeats:
            raise ValueError(f"{where}: a comparison is answered again that the page does not show again")
        if comparison not in shown:
            raise ValueError(
                f"{where}: the page does not show prompt {comparison.prompt} to the rater {name!r} with these sides: "
                "give the file as the page exported it"
            )
        if comparison.swapped() in ratings:
            repeats[pair] = (ratings[comparison.swapped()].value, rating.value)
        else:
            ratings[comparison] = rating
    follows = order == asked[: len(order)]
    return Rater(name, path, tuple(ratings.values()), tuple(repeats.values()), len(asked), follows)


def _rating(entry: Any, where: str, key: Key, owners: Mapping[str, Mapping[str, str]]) -> tuple[Comparison, Rating]:
    """What was shown, and the answer.

    Raises:
        ValueError: a field that is missing or wrong; names it.
    """
    fields = ("question", "prompt", "left", "right", "choice")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(field), str) for field in fields):
        raise ValueError(f"{where}: expected the texts {', '.join(fields)}, and ms")
    question, prompt, left, right, choice = (entry[field] for field in fields)
    if question not in key.questions:
        raise ValueError(f"{where}: unknown question {question!r}; the page asks {', '.join(key.questions)}")
    if prompt not in owners:
        raise ValueError(f"{where}: the page has no prompt {prompt!r}")
    pictures = owners[prompt]
    if left not in pictures or right not in pictures or left == right:
        raise ValueError(f"{where}: left {left!r} and right {right!r} are not two pictures of prompt {prompt}")
    if choice not in CHOICES:
        raise ValueError(f"{where}: the choice {choice!r} is none of {', '.join(CHOICES)}")
    ms = entry.get("ms")
    if isinstance(ms, bool) or not isinstance(ms, int | float) or not 0 <= ms <= MOST_MS:
        raise ValueError(f"{where}: ms must be a number of milliseconds from 0 to {MOST_MS:g}, got {repr(ms)[:40]}")
    first, second = (model for model in key.models if model in (pictures[left], pictures[right]))
    value = {"left": 1, "same": 0, "right": -1}[choice] * (1 if pictures[left] == first else -1)
    rating = Rating(question, prompt, (first, second), value, choice, float(ms))
    return Comparison(question, prompt, left, right), rating
