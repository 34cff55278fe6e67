"""Standard errors of means, and the paired bootstrap that compares two runs: is the second better, or was it luck?

Shape legend::

    C  clusters (prompts) of a stratum (task)    R  resamples

Values come in clusters: images of one prompt, and answers to one caption, depend on each other. Two runs see the same
prompts, so the bootstrap resamples whole prompts, with replacement, for both runs at once. It resamples every stratum
by itself, and the overall score is the mean of the strata's (Efron and Tibshirani, "An introduction to the bootstrap",
1993, chapters 8 and 13).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t2ikit import rng

OVERALL = "overall"
ENTRIES = 2**21  # random numbers held at a time


def clustered_error(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Standard error of the mean of all values when those of one cluster may depend on each other.

    The mean is the ratio of the clusters' sums to their sizes; with r_c = sum_c - size_c mean, its error is
    ``sqrt(C / (C - 1) sum_c r_c^2) / N``. For clusters of one value this is sd / sqrt(N), for clusters of one size the
    deviation of the cluster means / sqrt(C).

    Args:
        values: N numbers.
        clusters: what each value belongs to, such as its prompt; None gives every value its own.

    Returns:
        The error, or NaN for fewer than two clusters, which give none.

    Raises:
        ValueError: not one cluster a value.

    Example:
        >>> round(clustered_error([0.0, 1.0, 1.0, 0.0]), 4)
        0.2887
    """
    if clusters is not None and len(clusters) != len(values):
        raise ValueError(f"{len(values)} values but {len(clusters)} clusters")
    if not values:
        return math.nan
    mean = float(np.mean(np.asarray(values, dtype=np.float64)))
    residuals: dict[Hashable, float] = {}
    for value, cluster in zip(values, range(len(values)) if clusters is None else clusters, strict=True):
        residuals[cluster] = residuals.get(cluster, 0.0) + (float(value) - mean)
    count = len(residuals)
    if count < 2:
        return math.nan
    return math.sqrt(count / (count - 1) * sum(residual**2 for residual in residuals.values())) / len(values)


def finite(errors: dict[str, float]) -> dict[str, float]:
    """The errors that exist: without those that are NaN."""
    return {name: error for name, error in errors.items() if not math.isnan(error)}


@dataclass(frozen=True)
class Paired:
    """The values of two runs in one stratum, summed by cluster; entry i of all four is of the same prompt.

    Attributes:
        first_sums, second_sums: [C] sum of the values of each cluster.
        first_counts, second_counts: [C] how many there are.
    """

    first_sums: NDArray[np.float64]
    first_counts: NDArray[np.float64]
    second_sums: NDArray[np.float64]
    second_counts: NDArray[np.float64]

    @classmethod
    def of(cls, first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Paired:
        """From the values of each cluster in both runs."""
        sums = [np.array([float(np.sum(values)) for values in run]) for run in (first, second)]
        counts = [np.array([float(len(values)) for values in run]) for run in (first, second)]
        return cls(sums[0], counts[0], sums[1], counts[1])

    def means(self) -> tuple[float, float]:
        """Mean of all values in the first and in the second run."""
        return (
            float(self.first_sums.sum() / self.first_counts.sum()),
            float(self.second_sums.sum() / self.second_counts.sum()),
        )


@dataclass(frozen=True)
class PairedDifference:
    """The second run against the first.

    Attributes:
        first, second: their scores.
        low, high: confidence interval of the difference, by percentiles.
        standard_error: standard deviation of the resampled difference.
        p_value: share of resamples as far from the difference as that is from zero (two-sided; never 0).
    """

    first: float
    second: float
    low: float
    high: float
    standard_error: float
    p_value: float

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first

    def __str__(self) -> str:
        return (
            f"{self.first:.4f} -> {self.second:.4f}: {self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}], "
            f"p = {self.p_value:.4f}"
        )


def paired_bootstrap(
    strata: Mapping[str, Paired], resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> dict[str, PairedDifference]:
    """The differences of all strata and of their mean.

    Args:
        strata: name -> values of both runs.
        resamples: R.
        confidence: of the interval, in (0, 1).
        seed: of the resampling; the same seed gives the same result on every machine.

    Returns:
        name -> difference, and "overall".

    Raises:
        ValueError: a stratum of fewer than two clusters, values that are not finite or do not pair, or settings out of
            range.

    Example:
        >>> better = Paired.of([[0.0, 0.0], [1.0, 1.0]] * 20, [[1.0, 1.0], [1.0, 1.0]] * 20)
        >>> colors = paired_bootstrap({"colors": better}, resamples=1000)["colors"]
        >>> colors.difference, colors.low > 0
        (0.5, True)
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples is at least 1, confidence in (0, 1); got {resamples} and {confidence}")
    if not strata or OVERALL in strata:
        raise ValueError(f"a paired bootstrap needs at least one stratum, none called {OVERALL!r}; got {list(strata)}")
    results, resampled, scores = {}, [], []
    for name, paired in strata.items():
        _check(name, paired)
        resampled.append(np.concatenate(list(_differences(name, paired, resamples, seed))))
        scores.append(paired.means())
        results[name] = _summary(scores[-1], resampled[-1], confidence)
    first, second = np.mean(scores, axis=0)
    results[OVERALL] = _summary((float(first), float(second)), np.mean(resampled, axis=0), confidence)
    return results


def _check(name: str, paired: Paired) -> None:
    arrays = (paired.first_sums, paired.first_counts, paired.second_sums, paired.second_counts)
    if len({array.shape for array in arrays}) != 1 or paired.first_sums.ndim != 1:
        raise ValueError(f"{name}: the two runs do not pair, they have {[array.shape for array in arrays]} clusters")
    if len(paired.first_sums) < 2:
        raise ValueError(f"{name}: {len(paired.first_sums)} prompt; a bootstrap needs two or more: leave the task out")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"{name}: values that are not finite")
    if min(paired.first_counts.min(), paired.second_counts.min()) < 1:
        raise ValueError(f"{name}: a prompt without any value")


def _differences(name: str, paired: Paired, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Second minus first for every resample, at most ``ENTRIES`` random numbers at a time."""
    clusters = len(paired.first_sums)
    step = max(1, ENTRIES // clusters)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        uniforms = rng.uniforms(seed, f"bootstrap {name}", start, count, clusters)
        chosen = (uniforms * clusters).astype(np.int64)
        second = paired.second_sums[chosen].sum(axis=1) / paired.second_counts[chosen].sum(axis=1)
        yield second - paired.first_sums[chosen].sum(axis=1) / paired.first_counts[chosen].sum(axis=1)


def _summary(scores: tuple[float, float], resampled: NDArray[np.float64], confidence: float) -> PairedDifference:
    first, second = scores
    difference, tail = second - first, (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    # Centred on the observed difference, the resamples show how far chance alone moves a difference of zero.
    as_far = np.abs(resampled - difference) >= abs(difference) - 1e-12
    p_value = (1 + int(as_far.sum())) / (1 + len(resampled))
    return PairedDifference(first, second, float(low), float(high), float(np.std(resampled)), p_value)
