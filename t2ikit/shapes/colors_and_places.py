"""GenEval's tasks of the embedded data set judged by colour, number and place alone, whatever the outlines are.

In small a model learns colours and places long before outlines; where GenEval is still near 0, this shows what there
is. Not GenEval: a score of its own, beside it.

Shapes: an image is uint8 [3, H, W].
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t2ikit.metrics.base import Metric, Result, Rows, SampleBatch, Samples
from t2ikit.metrics.geneval.metric import summarize
from t2ikit.metrics.geneval.rules import check_metadata, relations
from t2ikit.metrics.statistics import finite
from t2ikit.shapes.captions import plural
from t2ikit.shapes.detector import seen_pixels
from t2ikit.shapes.palette import COLORS
from t2ikit.shapes.segments import segments

_MOST = 8
"""Objects of an image that are looked at, the largest first."""


@dataclass(frozen=True)
class _Clause:
    """What one object must be: ``color`` None is any; ``relation`` to the object number ``target``."""

    color: str | None
    relation: str | None
    target: int


class ColorsAndPlaces(Metric):
    """Share of the images in which as many objects as asked for have the colours and relations of the prompt.

    A colour is asked for where the prompt's words put it before the class, so an extended prompt asks for one of every
    object, an original one for those that the task names. Further objects do no harm, as in GenEval, but for counting.

    Args:
        least_purity: share of an object's inner pixels that must have its colour, in [0, 1].
    """

    unit = "share"

    def __init__(self, least_purity: float = 0.5) -> None:
        if not 0 <= least_purity <= 1:
            raise ValueError(f"ColorsAndPlaces: least_purity is in [0, 1], got {least_purity}")
        self.least_purity = least_purity

    def check(self, samples: Samples) -> None:
        """Refuses samples whose metadata do not belong to GenEval."""
        if len(samples) == 0 or not samples.metadata:
            raise ValueError("ColorsAndPlaces needs images of ShapesGenEvalPrompts")
        for index, metadata in enumerate(samples.metadata):
            check_metadata(metadata, f"ColorsAndPlaces, image {index}")

    def observe(self, batch: SampleBatch) -> Rows:
        """The task, the prompt's key and the verdict of each image."""
        rows = []
        for image, prompt, metadata in zip(batch.images, batch.prompts, batch.metadata, strict=True):
            pixels, _ = seen_pixels(image)
            pure = [segment for segment in segments(pixels) if segment.purity >= self.least_purity]
            largest = sorted(pure, key=lambda segment: -segment.area)[:_MOST]
            seen = [(segment.color, np.array(segment.box)) for segment in largest]
            right = _fulfils(seen, _clauses(metadata, prompt), counted=metadata["tag"] == "counting")
            rows.append({"tag": metadata["tag"], "metadata": metadata["prompt"], "correct": right})
        return rows

    def score(self, samples: Samples, rows: Rows) -> Result:
        """``colors_and_places/<task>`` and ``colors_and_places/overall``, the mean of the tasks, with errors clustered
        by prompt."""
        scores = summarize(rows)
        names = (*scores.tasks, "overall")
        errors = finite({f"colors_and_places/{name}": scores[f"{name}_se"] for name in names})
        return Result({f"colors_and_places/{name}": scores[name] for name in names}, errors)

    def fingerprint(self) -> dict[str, Any]:
        """Detector and threshold."""
        return {"features": "shapes-detector-1", "metric": "colors_and_places", "least_purity": self.least_purity}


def _clauses(metadata: Mapping[str, Any], prompt: str) -> list[_Clause]:
    """One for each object that a prompt asks for."""
    objects: list[_Clause] = []
    firsts: list[int] = []
    for clause in metadata["include"]:
        relation, target = clause.get("position") or (None, 0)
        shape = clause["class"].split()[-1]
        pattern = rf"({'|'.join(COLORS)}) (?:\w+ )?(?:{plural(shape)}|{shape})\b"
        named = re.search(pattern, prompt.lower())
        color = clause.get("color") or (named[1] if named else None)
        firsts.append(len(objects))
        objects += [_Clause(color, relation, firsts[target])] * clause["count"]
    return objects


def _fulfils(seen: Sequence[tuple[str, np.ndarray]], objects: Sequence[_Clause], counted: bool) -> bool:
    """Whether some of the seen (colour, box [4]) can be the objects, each one another."""
    if counted and sum(color == objects[0].color or objects[0].color is None for color, _ in seen) != len(objects):
        return False
    return any(
        all(_holds(chosen, index, one) for index, one in enumerate(objects))
        for chosen in itertools.permutations(seen, len(objects))
    )


def _holds(chosen: Sequence[tuple[str, np.ndarray]], index: int, wanted: _Clause) -> bool:
    color, box = chosen[index]
    if wanted.color is not None and color != wanted.color:
        return False
    return wanted.relation is None or wanted.relation in relations(box, chosen[wanted.target][1])
