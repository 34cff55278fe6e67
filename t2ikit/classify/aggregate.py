"""From the scores of single trainings to the numbers of the paper: both directions, gaps, their standard errors.

*Synth->Real* trains on generated images and tests on real photos; *Real->Synth* is the reverse; *Real->Real* trains on
real photos and tests on others. The gap is Real->Real minus Synth->Real, the relative gap is its share of Real->Real.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from t2ikit.classify.results import ClassificationResults, TestScore

REAL = "real"
"""Name of the real photos, as a training source and as a test set."""

ErrorKind = Literal["seeds", "images"]


@dataclass(frozen=True)
class Estimate:
    """A mean over trainings that differ in their seed alone.

    Attributes:
        mean: of the values.
        error: its standard error: over seeds, or over test images where there is one seed.
        kind: which of the two.
        sampling: standard error by the choice of the test images alone, which all seeds share.
        values: one a seed.
    """

    mean: float
    error: float
    kind: ErrorKind
    sampling: float
    values: tuple[float, ...]

    @property
    def total(self) -> float:
        """Standard error by seeds and test images together."""
        return math.hypot(self.error, self.sampling) if self.kind == "seeds" else self.error

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class Trained:
    """One training that has ended.

    Attributes:
        source: what it was trained on: "real", or the name of a generator.
        view, network, seed: of the training.
        per_class: images of each class; None for all.
        results: its scores.
    """

    source: str
    view: str
    network: str
    seed: int
    per_class: int | None
    results: ClassificationResults


@dataclass(frozen=True)
class Group:
    """What is compared with each other: sources on one view, with one network and one number of images."""

    view: str
    network: str
    per_class: int | None


@dataclass(frozen=True)
class Row:
    """A source within a group.

    Attributes:
        source: its name.
        synth_real: accuracy on real photos after training on the source; of the source "real" Real->Real.
        real_synth: accuracy on the source after training on real photos; None where it is not measured.
        gap: Real->Real minus Synth->Real, and its standard error; None where the real training is missing.
        relative: the gap as a share of Real->Real, and its standard error.
        fingerprints: of the trainings on the source.
    """

    source: str
    synth_real: Estimate
    real_synth: Estimate | None
    gap: tuple[float, float] | None
    relative: tuple[float, float] | None
    fingerprints: tuple[Mapping[str, Any], ...]


def estimate(scores: Sequence[TestScore]) -> Estimate:
    """Mean and standard errors of the accuracy of trainings that differ in their seed.

    Raises:
        ValueError: no score.

    Example:
        >>> str(estimate([TestScore(0.5, 100, {}), TestScore(0.6, 100, {})]))
        '0.550 ± 0.050'
        >>> estimate([TestScore(0.5, 100, {})]).kind
        'images'
    """
    if not scores:
        raise ValueError("no training to take the mean of")
    values = tuple(score.accuracy for score in scores)
    mean = math.fsum(values) / len(values)
    images = min(score.images for score in scores)
    sampling = math.sqrt(max(mean * (1 - mean), 0.0) / images)
    if len(values) == 1:
        return Estimate(mean, sampling, "images", sampling, values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return Estimate(mean, deviation / math.sqrt(len(values)), "seeds", sampling, values)


def gap_of(real: Estimate, synthetic: Estimate) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """Gap and relative gap of a source, each with its standard error (of independent means; by the delta method).

    Args:
        real: Real->Real.
        synthetic: Synth->Real.

    Returns:
        The gap, and its share of ``real``; None where that is zero.
    """
    gap, error = real.mean - synthetic.mean, math.hypot(real.error, synthetic.error)
    if real.mean == 0:
        return (gap, error), None
    by_real = synthetic.mean / real.mean**2 * real.error
    return (gap, error), (gap / real.mean, math.hypot(synthetic.error / real.mean, by_real))


def rows_of(trained: Sequence[Trained]) -> dict[Group, list[Row]]:
    """Every group with a row for each of its sources, the real one first, the others in the order given."""
    groups: dict[Group, dict[str, list[Trained]]] = {}
    for run in sorted(trained, key=lambda run: run.seed):
        groups.setdefault(Group(run.view, run.network, run.per_class), {}).setdefault(run.source, []).append(run)
    order = list(dict.fromkeys(run.source for run in trained))
    return {
        group: [
            _row(source, by_source) for source in sorted(by_source, key=lambda name: (name != REAL, order.index(name)))
        ]
        for group, by_source in groups.items()
    }


def _row(source: str, by_source: Mapping[str, Sequence[Trained]]) -> Row:
    synth_real = estimate([run.results.tests[REAL] for run in by_source[source]])
    fingerprints = tuple(run.results.fingerprint for run in by_source[source])
    real_runs = by_source.get(REAL, ())
    if source == REAL or not real_runs:
        return Row(source, synth_real, None, None, None, fingerprints)
    tested = [run.results.tests[source] for run in real_runs if source in run.results.tests]
    gap, relative = gap_of(estimate([run.results.tests[REAL] for run in real_runs]), synth_real)
    return Row(source, synth_real, estimate(tested) if tested else None, gap, relative, fingerprints)


def most_images(groups: Iterable[Group]) -> int | None:
    """The number of images of each class that is compared with the paper: all of them, else the largest number."""
    counts = {group.per_class for group in groups}
    return None if None in counts else max((count for count in counts if count is not None), default=None)


def per_class(scores: Sequence[TestScore]) -> dict[str, float]:
    """Accuracy of every class over several trainings, by its key."""
    sums: dict[str, list[int]] = {}
    for score in scores:
        for key, (correct, count) in score.per_class.items():
            total = sums.setdefault(key, [0, 0])
            total[0] += correct
            total[1] += count
    return {key: correct / count for key, (correct, count) in sums.items() if count}
