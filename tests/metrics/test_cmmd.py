"""CMMD and KID against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from t2ikit.metrics import RandomConvFeatures, Samples, cmmd
from t2ikit.metrics.base import reference_of
from t2ikit.metrics.distribution.cmmd import CMMD
from t2ikit.metrics.distribution.kid import KID, kid


def test_two_points_in_closed_form() -> None:
    x, y = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert cmmd(x, y) == pytest.approx(1000 * (2 - 2 * math.exp(-2 / 200)), rel=1e-12)


def test_equals_the_definition_with_diagonals(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(30, 6)) + 5, random.normal(size=(41, 6)) + 5.5

    def mean(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.exp(-np.square(one[:, None] - other[None]).sum(axis=2) / 200).mean())

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert cmmd(torch.from_numpy(x), y) == pytest.approx(expected, rel=1e-9)
    assert cmmd(y, x) == pytest.approx(expected, rel=1e-9)
    assert cmmd(x, x) == 0


def test_kid_of_whole_sets_equals_the_unbiased_sum() -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=(12, 3)), random.normal(size=(12, 3)) + 0.3
    cube = lambda one, other: (one @ other.T / 3 + 1) ** 3  # noqa: E731
    off = ~np.eye(12, dtype=bool)
    expected = cube(x, x)[off].mean() + cube(y, y)[off].mean() - 2 * cube(x, y).mean()
    result = kid(x, y, subsets=3, subset_size=12)
    assert result.mean == pytest.approx(expected, rel=1e-12)
    assert result.std == pytest.approx(0, abs=1e-12)
    assert kid(x, y, subsets=5, subset_size=6) == kid(x, y, subsets=5, subset_size=6)


def test_errors_name_what_to_change() -> None:
    with pytest.raises(ValueError, match="image 1 of y"):
        cmmd(np.zeros((2, 2)), np.array([[0, 0], [np.nan, 0]]))
    with pytest.raises(ValueError, match="embedding width: 2 and 3"):
        cmmd(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="at least one row"):
        cmmd(np.zeros((0, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="change subset_size, or take more images .*prompts.limit"):
        kid(np.zeros((10, 2)), np.zeros((20, 2)))


def test_metrics_of_images() -> None:
    random = torch.Generator().manual_seed(0)
    real, fake = (torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=random) for count in (9, 8))
    features, samples = RandomConvFeatures(dim=8), Samples(fake, reference=reference_of(real))
    assert CMMD(features, batch_size=4).compute(samples).values["cmmd"] == pytest.approx(
        cmmd(features(real), features(fake)), rel=1e-4
    )
    metric = KID(features, subsets=4, subset_size=5, seed=2)
    result = kid(features(real), features(fake), subsets=4, subset_size=5, seed=2)
    assert metric.compute(samples).values == {"kid": pytest.approx(result.mean), "kid_std": pytest.approx(result.std)}
    assert metric.fingerprint()["subset_size"] == 5
    with pytest.raises(ValueError, match="8 generated images, but subset_size=1000 needs at least 1000"):
        KID(features).compute(samples)
