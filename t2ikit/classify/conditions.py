"""Under which conditions a classifier was trained: whether its accuracy may stand beside another, or the paper's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, cast

from t2ikit.classify.classes import TINY200_WNIDS
from t2ikit.classify.views import View, ViewName
from t2ikit.config.merging import flatten
from t2ikit.optim import AdamW, EpochCosine

Facts = Mapping[str, Any]
"""A fingerprint of a training, or a part of it."""

_OWN = ("seed", "data_seed", "train", "val", "tests", "depth")
"""What may differ between two trainings that are compared, or is compared in part."""


def has_paper_classes(keys: Iterable[str]) -> bool:
    """Whether these classes are the 200 of the paper, whose numbers are of no others."""
    return set(keys) == set(TINY200_WNIDS)


def unlike_paper(view: str, trainings: Iterable[Facts]) -> list[str]:
    """Fields of fingerprints that are not as the shipped experiments have them, which follow the paper.

    Args:
        view: one of those that the paper has.
        trainings: fingerprints.
    """
    shipped = dict(flatten(_shipped(view)))
    known = [dict(flatten({name: facts.get(name) for name in _shipped(view)})) for facts in trainings]
    return _differing(shipped, known)


def _shipped(view: str) -> dict[str, Any]:
    """The part of a fingerprint that experiments/synthreal decides."""
    recipe = {
        "optimizer": ["AdamW", vars(AdamW(1e-3, (0.9, 0.999), 1e-8, 0.0))],
        "learning_rate": ["EpochCosine", vars(EpochCosine(epochs=80, warmup_epochs=5))],
        "epochs": 80.0,
        "clip": 1.0,
        "precision": "32-true",
        "cutmix": True,
        "ema": None,
    }
    described = {
        "recipe": recipe,
        "select": "lowest",
        "compat": "meant",
        "view": asdict(View(cast(ViewName, view), 128 if view == "texture" else 224)),
        "held_out": 0.1,
        "batch_size": 1024,
        "data_compat": "meant",
    }
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def unlike(first: Iterable[Facts], second: Iterable[Facts], test: str) -> list[str]:
    """Fields in which trainings differ so that their accuracies are not comparable.

    Seeds may differ, and what the training images show, of which two sources or benchmarks are compared.

    Args:
        first, second: fingerprints of the trainings of both.
        test: name of the test set of the accuracies; the others do not matter.
    """
    known = [dict(flatten(_compared(facts, test))) for facts in (*first, *second)]
    return _differing(known[0], known[1:]) if known else []


def _compared(facts: Facts, test: str) -> dict[str, Any]:
    depth = facts.get("depth")
    compared: dict[str, Any] = {key: value for key, value in facts.items() if key not in _OWN}
    compared["train"] = {"images": (facts.get("train") or {}).get("images")}
    compared["tests"] = {test: ((facts.get("tests") or {}).get(test) or {}).get("sha256")}
    compared["depth"] = depth and (depth["sha256"] or depth["name"])  # the same weights lie in any folder
    if facts.get("held_out") is None:  # else they are some of the training images
        compared["val"] = (facts.get("val") or {}).get("sha256")
    return compared


def _differing(first: Facts, others: Iterable[Facts]) -> list[str]:
    names = dict.fromkeys(name for other in others for name in (*first, *other) if first.get(name) != other.get(name))
    return list(names)
