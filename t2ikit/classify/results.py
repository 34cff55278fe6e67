"""What a trained classifier scored: ``classification.json`` in its run folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from t2ikit.files import parse_json, read_utf8, write_whole

FILE = "classification.json"


@dataclass(frozen=True)
class TestScore:
    """The score on one test set.

    Attributes:
        accuracy: share of the images whose class was found, in [0, 1].
        images: number of images.
        per_class: wnid or class name -> images whose class was found, and all images of the class.
    """

    __test__ = False  # pytest takes classes of this name for tests

    accuracy: float
    images: int
    per_class: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class ClassificationResults:
    """The scores of one training.

    Attributes:
        fingerprint: what decides the scores: classes, names, counts, hashes of the images, view, network, recipe, seed.
        selected: which weights were tested: ``rule``, ``step`` and ``epoch``, counted in finished steps and epochs.
        tests: score by the name of its test set.
        validation: ``loss``, ``accuracy`` and ``images`` of the selected weights on the validation set.
    """

    fingerprint: dict[str, Any]
    selected: dict[str, Any]
    tests: dict[str, TestScore]
    validation: dict[str, Any]


def write_results(run_folder: str | Path, results: ClassificationResults) -> Path:
    """Writes the file, whole or not at all, and returns its path."""
    path = Path(run_folder) / FILE
    write_whole(path, json.dumps(asdict(results), indent=1) + "\n")
    return path


def read_results(run_folder: str | Path) -> ClassificationResults:
    """Reads what :func:`write_results` wrote.

    Raises:
        FileNotFoundError: the run has not ended, or trained no classifier.
        ValueError: the file holds something else; names it.
    """
    path = Path(run_folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{run_folder} has no {FILE}: its training has not ended, or it trains no classifier")
    try:
        stored = parse_json(read_utf8(path))
        tests = {
            name: TestScore(
                float(score["accuracy"]),
                int(score["images"]),
                {key: (int(correct), int(count)) for key, (correct, count) in score["per_class"].items()},
            )
            for name, score in stored["tests"].items()
        }
        return ClassificationResults(stored["fingerprint"], stored["selected"], tests, stored["validation"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} holds no scores of a classifier ({error}): train this run again") from error
