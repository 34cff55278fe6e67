"""Folders of pictures, a page of them, and exports of made-up raters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from t2ikit.report.preference.building import Built, build
from t2ikit.report.preference.key import Key
from t2ikit.report.preference.orders import Comparison, comparisons_of

PROMPTS = ["a large red circle", '</script><b>"it\'s" & <!--', "one\ntwo\u2028three", "שלום", "a blue square", "a dog"]


def picture(path: Path, seed: int, prompt: str | None, size: tuple[int, int] = (16, 16), **text: str) -> None:
    """A PNG of random blocks, width x height, with its prompt as metadata."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    info = PngInfo()
    for key, value in ({} if prompt is None else {"prompt": prompt}).items() | text.items():
        info.add_itxt(key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).resize(size, Image.Resampling.NEAREST).save(path, pnginfo=info)


def folders(root: Path, *models: str, prompts: list[str] | None = None) -> dict[str, Path]:
    """Model -> folder of one picture a prompt, as ``t2ikit sample`` writes them."""
    for number, model in enumerate(models):
        for index, prompt in enumerate(prompts or PROMPTS):
            facts = {"Software": "t2ikit 1", "checkpoint": f"{model}.ckpt"}
            picture(root / model / f"{index:05d}.png", 100 * number + index, prompt, **facts)
    return {model: root / model for model in models}


def page(root: Path, *models: str, **options: object) -> Built:
    """A page of two models or more."""
    return build(folders(root, *(models or ("alpha", "beta"))), root / "page.html", "salt", **options)  # type: ignore[arg-type]


def asked(key: Key, rater: str) -> list[Comparison]:
    """All comparisons of a rater."""
    return [
        comparison
        for question in key.questions
        for comparison in comparisons_of(key.seed, rater, question, key.names(), key.repeats)
    ]


def owners(key: Key) -> dict[str, str]:
    """Picture -> model."""
    return {name: model for shown in key.prompts for model, name in shown.pictures.items()}


def export(
    path: Path,
    key: Key,
    rater: str,
    choose: Callable[[Comparison, Mapping[str, str]], str],
    count: int | None = None,
) -> Path:
    """The answers of a rater to the first comparisons, as the page exports them."""
    models = owners(key)
    ratings = [
        {
            "question": comparison.question,
            "prompt": comparison.prompt,
            "left": comparison.left,
            "right": comparison.right,
            "choice": choose(comparison, models),
            "ms": 1000 + position,
        }
        for position, comparison in enumerate(asked(key, rater)[:count])
    ]
    path.write_text(json.dumps({"page": key.page, "rater": rater, "ratings": ratings}))
    return path


def by_model(*order: str) -> Callable[[Comparison, Mapping[str, str]], str]:
    """Answers that prefer the model that comes first in the order; models that it lacks are as good as each other."""
    rank = {model: index for index, model in enumerate(order)}

    def choose(comparison: Comparison, models: Mapping[str, str]) -> str:
        left, right = (rank.get(models[name], len(order)) for name in (comparison.left, comparison.right))
        return "same" if left == right else "left" if left < right else "right"

    return choose
