"""Standard errors of means whose values come in clusters: images of one prompt and answers to one caption are alike."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np


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
