"""What a score was computed with, so that only like is compared with like.

A fingerprint names everything that moves a number without the model having changed: the reference set, the resize,
the feature weights, how many images, which seeds, the sampler and its settings, the prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from t2ikit.files import below, parse_json, write_whole
from t2ikit.pictures import Images


def images_sha256(images: Images) -> str:
    """SHA-256 of an image set [N, C, H, W] uint8: its shape and its bytes, in order, read 64 images at a time."""
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for start in range(0, len(images), 64):
        digest.update(np.ascontiguousarray(images[start : start + 64].detach().to("cpu").numpy()).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Fingerprint:
    """The conditions of a score. What does not apply stays None, and None only equals None.

    Attributes:
        reference: name of the reference set.
        reference_sha256: hash of its images, records or statistics file.
        num_reference: its size, images.
        resize: how images reach the feature network (the name of the pixel pipeline).
        features: name of the feature network or detector.
        features_sha256: hash of its weights.
        num_images: generated images.
        seeds: what the noise is keyed by.
        sampler: its name.
        steps: sampling steps.
        guidance: weight, or a description of a guidance schedule.
        prompts: name of the prompt set.
        prompts_sha256: hash of the prompts, in order.
        extra: whatever else moves this metric (k, thresholds, preset), JSON-able.
    """

    reference: str | None = None
    reference_sha256: str | None = None
    num_reference: int | None = None
    resize: str | None = None
    features: str | None = None
    features_sha256: str | None = None
    num_images: int | None = None
    seeds: str | None = None
    sampler: str | None = None
    steps: int | None = None
    guidance: float | str | None = None
    prompts: str | None = None
    prompts_sha256: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fingerprint:
        """A fingerprint from a flat mapping; keys that are no field go to ``extra``."""
        known = {item.name for item in fields(cls)} - {"extra"}
        extra = dict(values.get("extra") or {})
        extra.update({key: value for key, value in values.items() if key not in known and key != "extra"})
        return cls(**{key: value for key, value in values.items() if key in known}, extra=extra)

    def named(self) -> dict[str, Any]:
        """All fields by name, those of ``extra`` among them: what :meth:`from_dict` takes."""
        values = asdict(self)
        return {**values.pop("extra"), **values}

    def hash(self) -> str:
        """SHA-256 of the canonical JSON: the same on every machine and in every process."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, other: Fingerprint) -> dict[str, tuple[Any, Any]]:
        """Fields that differ, each with both values; entries of ``extra`` are named ``extra.<key>``."""
        mine, theirs = _flat(self), _flat(other)
        names = list(dict.fromkeys([*mine, *theirs]))
        pairs = {name: (mine.get(name), theirs.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _flat(fingerprint: Fingerprint) -> dict[str, Any]:
    values = json.loads(json.dumps(asdict(fingerprint)))
    extra = values.pop("extra")
    return {**values, **{f"extra.{key}": value for key, value in sorted(extra.items())}}


class UnlikeFingerprints(ValueError):
    """Two scores were made under unlike conditions and say nothing about each other."""


def compare(first: Fingerprint, second: Fingerprint, varied: Collection[str] = ()) -> None:
    """Passes when two scores may be compared.

    Args:
        first, second: conditions of the two.
        varied: fields that are meant to differ, such as ("guidance",) in a sweep; entries of ``extra`` by their key.

    Raises:
        UnlikeFingerprints: naming every other field that differs with both values.
    """
    differences = {
        name: pair
        for name, pair in first.differences(second).items()
        if not {name, name.removeprefix("extra.")} & set(varied)
    }
    if differences:
        listed = "; ".join(f"{name}: {mine!r} and {theirs!r}" for name, (mine, theirs) in differences.items())
        raise UnlikeFingerprints(f"these scores cannot be compared, they differ in {listed}")


@dataclass(frozen=True)
class Score:
    """One number, how it was made, and how sure it is.

    Attributes:
        name: as the metric yields it, such as ``frechet_distance``.
        value: the number.
        fingerprint: its conditions.
        step: optimizer steps of the weights, or None.
        standard_error: where the metric gives one.
    """

    name: str
    value: float
    fingerprint: Fingerprint
    step: int | None = None
    standard_error: float | None = None


def write_score(path: str | Path, score: Score) -> None:
    """Writes one score as JSON, whole or not at all."""
    content = {**asdict(score), "fingerprint_sha256": score.fingerprint.hash()}
    write_whole(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_score(path: str | Path) -> Score:
    """Reads a score file.

    Raises:
        ValueError: the file is no score, or its fingerprint was edited by hand.
    """
    try:
        content = parse_json(Path(path).read_text())
        fingerprint = Fingerprint.from_dict(content["fingerprint"])
        recorded = content["fingerprint_sha256"]
        score = Score(content["name"], content["value"], fingerprint, content["step"], content["standard_error"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a score file ({type(error).__name__}: {error})") from error
    if recorded != fingerprint.hash():
        raise ValueError(f"{path}: the fingerprint does not match its recorded hash; the file was changed by hand")
    return score


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes what scores were made of, the ``files`` of the metrics' results, each whole or not at all."""
    for name, content in files.items():
        write_whole(below(folder, name), content)


def write_scores(folder: Path, scores: Sequence[Score]) -> None:
    """One file a score, ``<folder>/<name>.json``; score files of other names are removed."""
    kept = set()
    for score in scores:
        path = below(folder, f"{score.name}.json")
        write_score(path, score)
        kept.add(path)
    for path in set(folder.rglob("*.json")) - kept:
        path.unlink()


def read_scores(folder: Path) -> dict[str, Score]:
    """The scores that :func:`write_scores` wrote, by name; none where there is no such folder.

    Raises:
        ValueError: a file that is no score.
    """
    scores = [read_score(path) for path in sorted(folder.rglob("*.json"))]
    return {score.name: score for score in scores}
