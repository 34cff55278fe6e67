"""Clustered standard errors against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from t2ikit.metrics.statistics import clustered_error, finite


def test_single_values_give_the_ordinary_error() -> None:
    values = [0.2, 1.0, 0.7, -3.0, 0.1]
    assert clustered_error(values) == pytest.approx(np.std(values, ddof=1) / math.sqrt(5), rel=1e-12)


def test_clusters_of_one_size_give_that_of_their_means() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    means = [0.5, 1.0, 0.0]
    expected = np.std(means, ddof=1) / math.sqrt(3)
    assert clustered_error(values, ["a", "a", "b", "b", "c", "c"]) == pytest.approx(expected, rel=1e-12)
    # The order in which clusters come does not matter.
    assert clustered_error(values[::-1], ["c", "c", "b", "b", "a", "a"]) == pytest.approx(expected, rel=1e-12)


def test_repeating_every_value_in_its_cluster_changes_nothing() -> None:
    values = [0.3, 0.9, 0.5]
    assert clustered_error(values * 4, ["a", "b", "c"] * 4) == pytest.approx(clustered_error(values), rel=1e-12)


def test_what_has_no_error() -> None:
    assert math.isnan(clustered_error([]))
    assert math.isnan(clustered_error([1.0]))
    assert math.isnan(clustered_error([1.0, 2.0], ["a", "a"]))
    assert finite({"a": 1.0, "b": math.nan}) == {"a": 1.0}
    with pytest.raises(ValueError, match="2 values but 1 clusters"):
        clustered_error([1.0, 2.0], ["a"])
