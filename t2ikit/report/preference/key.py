"""What the organiser of a comparison keeps: which picture comes from which model. The page does not hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from t2ikit.files import parse_json, read_utf8

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


def key_file(page: Path) -> Path:
    """Where the key of a page is: page.key.json beside page.html."""
    return page.with_suffix(".key.json")


def read_key(path: Path) -> Key:
    """The key of a page.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no key; says what is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no key {path}: --key is page.key.json, which `t2ikit prefer build` wrote")
    try:
        return _key(parse_json(read_utf8(path)))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--key {path} is no key of a page ({type(error).__name__}: {error}): give page.key.json, as "
            "`t2ikit prefer build` wrote it"
        ) from error


def _key(content: Mapping[str, Any]) -> Key:
    prompts = tuple(Shown(entry["prompt"], entry["text"], dict(entry["pictures"])) for entry in content["prompts"])
    fields = {name: content[name] for name in ("page", "seed", "salt", "repeats", "models", "left_out")}
    key = Key(**fields, questions=tuple(content["questions"]), prompts=prompts)
    if len(key.models) < 2 or not key.prompts or not key.questions:
        raise ValueError("it needs two models, a prompt and a question")
    if any(shown.pictures.keys() != key.models.keys() for shown in key.prompts):
        raise ValueError("a prompt whose pictures are not those of its models")
    return key
