"""Run cards: the comment at the head of every shipped experiment, what it needs, and a copy of one to edit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from t2ikit.config.compose import part_of
from t2ikit.config.files import shipped_experiments

_OWN_ROW = "Not a paper's row: "
_FIELD = re.compile(r"(Paper|Ours|Data|Run): ")
_EXTENDS = re.compile(r"^extends:.*(?:\n[ \t]*-.*)*", re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """What an experiment says of itself.

    Attributes:
        title: paper and table of its row, or what it is instead.
        text: all of it.
        needs: data and GPU, in words.
    """

    title: str
    text: str
    needs: str


def card_of(path: Path) -> Card:
    """The card of an experiment file; one without a comment at its head has an empty title.

    Raises:
        ConfigError: a file that is no experiment.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines)]
    title = ""
    for line in comments:  # to the end of a sentence that is also the end of a line
        if title.endswith(".") or (title and _FIELD.match(line)):
            break
        title = f"{title} {line.removeprefix(_OWN_ROW)}".strip()
    return Card(title, "\n".join(comments), _needs(path))


def _needs(path: Path) -> str:
    """Data, trained runs and device that an experiment and its stages ask for, as their options say them."""
    parts = {key: _node(part_of(path, key)) for key in ("data", "trainer", "model", "stages")}
    nodes = [parts, *parts["stages"].values()]
    roots = dict.fromkeys(root for node in nodes if (root := _options(node, "data").get("root")) is not None)
    starts = [str(start["checkpoint"]) for node in nodes if (start := _options(node, "model").get("start"))]
    runs = dict.fromkeys(start for start in starts if not start.startswith("stages."))
    data, trainer = parts["data"], parts["trainer"]
    if data.get("class_path") == "t2ikit.shapes.ShapesData":
        source = "no data (shapes are rendered)"
    elif not roots:
        source = "class folders (--data.train DIR)"
    elif len(roots) == 1:
        source = f"prepared data (--data.root {next(iter(roots))})"
    else:
        source = f"prepared data ({', '.join(roots)})"
    source += "".join(f", the trained run {run}" for run in runs)
    # Of runs that no CPU would end: 16-bit precision, and classifiers of ImageNet's photos.
    large = "16" in str(trainer.get("precision", "32")) or source.startswith("class folders")
    return f"{source}; {'a GPU' if large else 'runs on a CPU'}"


def _options(node: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """``init_args`` of a class node of an experiment or of one of its overlays."""
    return _node((node or {}).get(key)).get("init_args") or {}


def _node(value: Any) -> Mapping[str, Any]:
    """A mapping of an experiment; a class may be named by its path alone."""
    return {"class_path": value} if isinstance(value, str) else value or {}


def copied(source: Path, target: Path) -> str:
    """The text of a shipped experiment for another place, where what it extends is still found.

    Parents that lie beside it get their names below the folder of the shipped experiments, which every file can extend;
    the command of its card names the copy.

    Args:
        source: the shipped experiment.
        target: the copy.
    """
    text = source.read_text(encoding="utf-8")
    shipped = shipped_experiments()
    if source.parent != shipped and source.is_relative_to(shipped):

        def renamed(match: re.Match[str]) -> str:
            beside = source.parent / match[0]
            return str(beside.relative_to(shipped).as_posix()) if beside.is_file() else match[0]

        text = _EXTENDS.sub(lambda match: re.sub(r"[\w./-]+\.ya?ml", renamed, match[0]), text, count=1)
    return re.sub(r"experiments/\S+\.ya?ml", target.as_posix(), text)
