"""GenEval's rules: does an image hold the objects, counts, colours and positions that its prompt asks for?

Source: Ghosh et al., "GenEval: an object-focused framework for evaluating text-to-image alignment", 2023, and the rules
of the official scorer. This file knows no detector: it judges boxes. Boxes are (x0, y0, x1, y1) in pixels.

The rules, in the order in which they act:

* kept are boxes with a score strictly above 0.3 (0.9 when the tag is "counting"), compared in float32, best first, at
  most 16 a class, without non-maximum suppression unless ``max_overlap`` is below 1;
* include clauses must all hold; a clause looks at the ``count`` best boxes of its class and no further;
* a position is checked against the boxes that satisfied the clause it points to;
* an exclude clause fails when ``count`` boxes or more of its class are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")

RELATIONS = ("left of", "right of", "above", "below")

Detections = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Rules:
    """The numbers of the protocol; the defaults are the official ones.

    Attributes:
        threshold: scores at or below it are dropped.
        counting_threshold: the same for the task "counting".
        max_objects: most boxes kept of one class.
        max_overlap: boxes whose IoU with a better one of their class reaches it are dropped; 1 switches this off.
        position_threshold: share of the two sizes by which an offset is reduced before it counts as a relation.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1


@dataclass(frozen=True)
class Kept:
    """One box that passed: ``box`` float32 [5] = x0, y0, x1, y1, score; ``color`` is None when nobody looked."""

    box: np.ndarray
    color: str | None


def keep(detections: Detections, tag: str, rules: Rules | None = None) -> dict[str, list[Kept]]:
    """The boxes that count, best first, by class; a class without any is absent.

    Args:
        detections: a list of {"class", "box" [4], "score", "color"}, or {class: list of {"box", "score", "color"} or of
            [x0, y0, x1, y1, score]}; "color" may be missing where no clause asks for it.
        tag: the task, which sets the threshold.
        rules: the numbers of the protocol.

    Raises:
        ValueError: a detection lacks its class, box or score.
    """
    rules = rules or Rules()
    threshold = np.float32(rules.counting_threshold if tag == "counting" else rules.threshold)
    kept: dict[str, list[Kept]] = {}
    for name, boxes in _by_class(detections).items():
        scores = np.array([box.box[4] for box in boxes], dtype=np.float32)
        order = [int(i) for i in np.argsort(scores, kind="stable")[::-1] if scores[i] > threshold][: rules.max_objects]
        best: list[Kept] = []
        while order:
            first, order = boxes[order[0]], order[1:]
            best.append(first)
            if rules.max_overlap != 1:
                order = [i for i in order if overlap(first.box, boxes[i].box) < rules.max_overlap]
        if best:
            kept[name] = best
    return kept


def check_metadata(metadata: Any, where: str) -> None:
    """ValueError unless ``metadata`` is a line of the benchmark; the message starts with ``where``."""

    def refuse(what: str) -> None:
        raise ValueError(f"{where}: {what}")

    if not isinstance(metadata, Mapping):
        refuse(f"expected one JSON object with 'tag', 'include' and 'prompt'; got {type(metadata).__name__}")
    missing = sorted({"tag", "include", "prompt"} - set(metadata))
    if missing:
        refuse(f"no GenEval metadata, it lacks {', '.join(map(repr, missing))}")
    if metadata["tag"] not in TASKS:
        refuse(f"unknown task {metadata['tag']!r}; 'tag' is one of {', '.join(TASKS)}")
    clauses = [metadata["include"], metadata.get("exclude", [])]
    if not all(isinstance(listed, list) for listed in clauses) or not clauses[0]:
        refuse("'include' is a list of at least one clause, 'exclude' a list")
    for index, clause in enumerate([*clauses[0], *clauses[1]]):
        if not isinstance(clause, Mapping) or not {"class", "count"} <= set(clause):
            refuse(f"clause {index} needs a 'class' and a 'count'")
        count = clause["count"]
        if not isinstance(count, int) or count < 1:
            refuse(f"clause {index} ({clause['class']}): 'count' is a whole number from 1; got {count!r}")
        if clause.get("color", COLORS[0]) not in COLORS:
            refuse(f"clause {index} ({clause['class']}): unknown color {clause['color']!r}; {', '.join(COLORS)}")
        relation, target = clause.get("position", (RELATIONS[0], 0))
        if relation not in RELATIONS or ("position" in clause and not 0 <= target < index):
            refuse(
                f"clause {index} ({clause['class']}): 'position' is [relation, number of an earlier clause] with one "
                f"of {', '.join(RELATIONS)}; got {clause['position']!r}"
            )


def judge(metadata: Mapping[str, Any], detections: Detections, rules: Rules | None = None) -> tuple[bool, str]:
    """The official verdict on one image.

    Args:
        metadata: one line of the benchmark: "tag", "include" and, where there is one, "exclude".
        detections: see `keep`.
        rules: the numbers of the protocol.

    Returns:
        (correct, reason): the reason is empty for a correct image, else one line a failed clause.

    Raises:
        ValueError: a clause asks for a colour that a detection lacks, or points to a later clause.
    """
    return verdict(metadata, keep(detections, str(metadata.get("tag", "")), rules), rules or Rules())


def relations(box: np.ndarray, target: np.ndarray, position_threshold: float = 0.1) -> list[str]:
    """Where ``box`` is as seen from ``target``: none, one or two of "left of", "right of", "above", "below".

    The offset of the centres is reduced on each axis by ``position_threshold`` of the two sizes (not below 0), divided
    by the length of the unreduced offset, and compared with +-0.5. Both boxes are float32 [4] or longer.
    """
    corners = np.array([box[:4], target[:4]], dtype=np.float32).reshape(2, 2, 2)
    offset = corners[0].mean(axis=0) - corners[1].mean(axis=0)
    sizes = np.abs(corners[:, 1] - corners[:, 0])
    reduced = np.maximum(np.abs(offset) - position_threshold * (sizes[0] + sizes[1]), 0) * np.sign(offset)
    if np.all(np.abs(reduced) < 1e-3):
        return []
    dx, dy = reduced / np.linalg.norm(offset)
    tests = (("left of", dx < -0.5), ("right of", dx > 0.5), ("above", dy < -0.5), ("below", dy > 0.5))
    return [name for name, holds in tests if holds]


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boxes [>= 4] whose far side belongs to them (sizes are +1)."""

    def area(x0: float, y0: float, x1: float, y1: float) -> float:
        return max(x1 - x0 + 1, 0.0) * max(y1 - y0 + 1, 0.0)

    a, b = [float(v) for v in first[:4]], [float(v) for v in second[:4]]
    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - shared
    return shared / union if union else 0.0


def _by_class(detections: Detections) -> dict[str, list[Kept]]:
    kept: dict[str, list[Kept]] = {}
    if isinstance(detections, Mapping):
        for name, boxes in detections.items():
            kept[name] = [_one(name, box) for box in boxes]
    else:
        for detection in detections:
            if "class" not in detection:
                raise ValueError(f"GenEval: a detection in a list needs a 'class'; got the keys {sorted(detection)}")
            kept.setdefault(detection["class"], []).append(_one(detection["class"], detection))
    return kept


def _one(name: str, detection: Any) -> Kept:
    color = None
    if isinstance(detection, Mapping):
        missing = {"box", "score"} - set(detection)
        if missing:
            raise ValueError(f"GenEval: a detection of {name!r} lacks {sorted(missing)}")
        values, color = [*detection["box"], detection["score"]], detection.get("color")
    else:
        values = list(detection)
    if len(values) != 5:
        raise ValueError(f"GenEval: a box of {name!r} needs x0, y0, x1, y1 and a score; got {len(values)} numbers")
    box = np.array(values, dtype=np.float32)
    if not np.isfinite(box).all():
        raise ValueError(f"GenEval: a box of {name!r} is not finite ({box.tolist()}): look at the detector's weights")
    return Kept(box, color)


def verdict(metadata: Mapping[str, Any], kept: Mapping[str, list[Kept]], rules: Rules) -> tuple[bool, str]:
    """What `judge` gives for boxes that `keep` has kept."""
    reasons: list[str] = []
    groups: list[list[Kept] | None] = []
    for clause in metadata.get("include", []):
        reason, boxes = _include(clause, kept, groups, rules)
        groups.append(None if reason else boxes)
        reasons += [reason] if reason else []
    for clause in metadata.get("exclude", []):
        count = len(kept.get(clause["class"], []))
        if count >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {count}")
    return not reasons, "\n".join(reasons)


def _include(
    clause: Mapping[str, Any], kept: Mapping[str, list[Kept]], groups: Sequence[list[Kept] | None], rules: Rules
) -> tuple[str, list[Kept]]:
    """Why an include clause fails ("" = it holds), and the boxes it looked at."""
    name, count = clause["class"], clause["count"]
    boxes = kept.get(name, [])[:count]
    if len(boxes) < count:
        return f"expected {name}>={count}, found {len(boxes)}", boxes
    if "color" in clause:
        wanted, colors = clause["color"], [box.color for box in boxes]
        if None in colors:
            raise ValueError(f"GenEval: the prompt asks for a {wanted} {name}, but a detection of it has no 'color'")
        if colors.count(wanted) < count:
            seen = ", ".join(f"{colors.count(color)} {color}" for color in COLORS if color in colors)
            return f"expected {wanted} {name}>={count}, found {colors.count(wanted)} {wanted}; and {seen}", boxes
    if "position" in clause:
        wanted, target = clause["position"]
        if not 0 <= target < len(groups):
            raise ValueError(f"GenEval: the position of {name!r} points to clause {target}, which is not before it")
        others = groups[target]
        if others is None:
            return f"no target for {name} to be {wanted}", boxes
        for box in boxes:
            for target_box in others:
                seen_relations = relations(box.box, target_box.box, rules.position_threshold)
                if wanted not in seen_relations:
                    return f"expected {name} {wanted} target, found {' and '.join(seen_relations)} target", boxes
    return "", boxes
