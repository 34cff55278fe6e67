"""What the organiser of a comparison keeps: which picture comes from which model. The page does not hold it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil, comb
from pathlib import Path
from typing import Any

from t2ikit.files import parse_json, read_utf8
from t2ikit.report.preference.orders import MOST_REPEATED

QUESTIONS = {
    "quality": "Which picture looks better?",
    "consistency": "Which picture fits the text better?",
}
"""Name of a question, and what the page asks: quality, whatever the text says, and consistency with the text."""


@dataclass(frozen=True)
class Shown:
    """A prompt with its pictures.

    Attributes:
        prompt: identity: the number that the pictures share.
        text: of the prompt.
        pictures: model -> name of its picture in the page.
    """

    prompt: str
    text: str
    pictures: dict[str, str]


@dataclass(frozen=True)
class Key:
    """The key of a page.

    Attributes:
        page: identity of the page, in every export.
        seed: of the orders.
        salt: of the names of the pictures.
        questions: their names, in the order in which they are asked.
        repeats: comparisons of each question that are shown again.
        models: name -> folder of its pictures.
        prompts: every one that is compared.
        left_out: number -> the models that lack a picture of it.
    """

    page: str
    seed: int
    salt: str
    questions: tuple[str, ...]
    repeats: int
    models: dict[str, str]
    prompts: tuple[Shown, ...]
    left_out: dict[str, list[str]]

    def to_json(self) -> str:
        """The content of its file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def names(self) -> list[tuple[str, list[str]]]:
        """Identity and names of the pictures, sorted, of each prompt: what the page knows."""
        return [(shown.prompt, sorted(shown.pictures.values())) for shown in self.prompts]


def name_of(salt: str, model: str, prompt: str) -> str:
    """The name of a picture in the page, which says nothing to those without the salt."""
    return hashlib.sha256("\0".join((salt, model, prompt)).encode()).hexdigest()[:24]


def key_file(page: Path) -> Path:
    """Where the key of a page is: page.key.json beside page.html."""
    return page.with_suffix(".key.json")


def read_key(path: Path) -> Key:
    """The key of a page.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no key, or one that was changed; says what is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no key {path}: --key is page.key.json, which `t2ikit prefer build` wrote")
    try:
        return _key(parse_json(read_utf8(path)))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"--key {path} is no key of a page ({type(error).__name__}: {error}): give page.key.json, as "
            "`t2ikit prefer build` wrote it"
        ) from error


def _key(content: Mapping[str, Any]) -> Key:
    _require(isinstance(content, dict), "it is no object")
    for name in ("page", "salt"):
        _require(isinstance(content[name], str) and content[name], f"{name} must be a text")
    _require(_is_whole(content["seed"]), "seed must be a whole number")
    questions, models, left_out = content["questions"], content["models"], content["left_out"]
    _require(_are_texts(questions) and len(set(questions)) == len(questions), "questions must be texts, each once")
    _require(isinstance(models, dict) and _are_texts([*models.values()]), "models must be names with their folders")
    absent = isinstance(left_out, dict) and all(_are_texts(lacking) for lacking in left_out.values())
    _require(absent, "left_out must be numbers with lists of models")
    _require(isinstance(content["prompts"], list), "prompts must be a list")
    _require(len(models) > 1 and content["prompts"] and questions, "it needs two models, a prompt and a question")
    prompts = tuple(_shown(entry, models, content["salt"]) for entry in content["prompts"])
    _require(len({shown.prompt for shown in prompts}) == len(prompts), "a prompt is there twice")
    repeats, most = content["repeats"], ceil(MOST_REPEATED * len(prompts) * comb(len(models), 2))
    _require(_is_whole(repeats) and 0 <= repeats <= most, f"repeats must be a whole number from 0 to {most}")
    fields = {name: content[name] for name in ("page", "seed", "salt", "repeats", "models", "left_out")}
    return Key(**fields, questions=tuple(questions), prompts=prompts)


def _shown(entry: Any, models: Mapping[str, str], salt: str) -> Shown:
    _require(isinstance(entry, dict), "a prompt must be an object")
    prompt, text, pictures = entry["prompt"], entry["text"], entry["pictures"]
    _require(isinstance(prompt, str) and isinstance(text, str), "a prompt and its text must be texts")
    _require(isinstance(pictures, dict) and pictures.keys() == models.keys(), f"prompt {prompt!r} needs every model")
    for model, name in pictures.items():
        # Swapped names would turn every preference around, and nothing else would show it.
        _require(name == name_of(salt, model, prompt), f"prompt {prompt!r} has another picture of {model!r}")
    return Shown(prompt, text, dict(pictures))


def _require(holds: object, reason: str) -> None:
    if not holds:
        raise ValueError(reason)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
