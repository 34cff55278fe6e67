"""What a benchmark SynthReal has measured: typed data for its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from t2ikit.classify.aggregate import Group, Row


@dataclass(frozen=True)
class Distribution:
    """How the images of a source lie among the real training photos.

    Attributes:
        density, coverage: with the settings of the paper, k = 5, cosine distance, both sets cut to the smaller.
        copies: share of its images that are nearer to a real training photo than 99 % of those are to each other.
        images: of each set.
        features: name of the network.
        features_sha256: of its weights.
    """

    density: float
    coverage: float
    copies: float
    images: int
    features: str
    features_sha256: str = ""


@dataclass(frozen=True)
class Shown:
    """Pictures of every source in one view.

    Attributes:
        caption: what they show.
        columns: names of classes.
        rows: a source, and the bytes of a picture for each column; None for none.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[bytes | None]]]


@dataclass(frozen=True)
class Summary:
    """All of it.

    Attributes:
        rows: of every group, the real source first.
        distributions: by source.
        per_class: accuracy of every class on real photos, by source, on rgb with the first network and all images.
        names: of the classes, by key.
        pictures: of every view.
        fingerprints: of every training, by its name.
        seeds: of each training.
        compared: rows of other benchmarks, by name.
        left: number of trainings that are still to be made.
    """

    rows: Mapping[Group, Sequence[Row]]
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[Shown] = ()
    fingerprints: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: int = 1
    compared: Mapping[str, Mapping[Group, Sequence[Row]]] = field(default_factory=dict)
    left: int = 0
