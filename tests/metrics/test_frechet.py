"""Frechet distance: closed forms, the general matrix square root, singular covariances, streamed moments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray

from t2ikit.metrics import Moments, frechet_distance
from t2ikit.metrics.distribution.reference import ReferenceStatistics


def by_square_root(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """The distance by scipy's square root of the (unsymmetric) product."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(axis=0) - b.mean(axis=0)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root).real)


def features(count: int, width: int, seed: int, spread: float = 1.0) -> NDArray[np.floating]:
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(width, width)) * np.geomspace(1, 1e-3, width)
    return random.normal(size=(count, width)) @ mixing * spread + random.normal(size=width)


def test_diagonal_closed_form() -> None:
    random = np.random.default_rng(0)
    mean_a, mean_b, var_a, var_b = random.uniform(0.1, 2, size=(4, 10))
    expected = np.square(mean_a - mean_b).sum() + np.square(np.sqrt(var_a) - np.sqrt(var_b)).sum()
    assert frechet_distance(mean_a, np.diag(var_a), mean_b, np.diag(var_b)) == pytest.approx(expected, rel=1e-12)


def test_one_feature() -> None:
    assert frechet_distance(np.array([1.0]), np.array(4.0), np.array([3.0]), np.array(9.0)) == pytest.approx(5.0)


def test_equal_gaussians_are_at_zero() -> None:
    one = Moments.of(features(50, 20, 0))
    assert one.distance(one) == pytest.approx(0, abs=1e-9 * float(one.covariance.trace()))
    assert one.distance(one) >= 0


@pytest.mark.parametrize(("count", "other"), [(500, 400), (500, 30), (30, 500), (25, 30), (3, 2)])
def test_equals_the_general_square_root(count: int, other: int) -> None:
    a, b = features(count, 48, 1), features(other, 48, 2, spread=1.3)
    assert Moments.of(a).distance(Moments.of(b)) == pytest.approx(by_square_root(a, b), rel=1e-6)


def test_thin_sets_against_their_exact_rank() -> None:
    # Two rows span a line each: the root's trace is |cos| of the angle between them times both deviations.
    a, b = np.array([[0.0, 0, 0], [2, 0, 0]]), np.array([[0.0, 0, 0], [3, 3, 0]])
    angle = 1 / np.sqrt(2)
    deviations = np.sqrt(2), 3.0
    expected = 0.25 + 2.25 + deviations[0] ** 2 + deviations[1] ** 2 - 2 * angle * deviations[0] * deviations[1]
    assert Moments.of(a).distance(Moments.of(b)) == pytest.approx(expected, rel=1e-12)


def test_constant_set() -> None:
    a, b = np.full((5, 4), 2.0), features(50, 4, 3)
    expected = np.square(2.0 - b.mean(axis=0)).sum() + np.trace(np.cov(b, rowvar=False))
    assert Moments.of(a).distance(Moments.of(b)) == pytest.approx(expected, rel=1e-12)


def test_streamed_moments_are_those_of_the_whole() -> None:
    rows = features(100, 6, 4) + 1e4
    streamed = Moments(6)
    for part in np.split(rows, [1, 30, 31]):
        streamed.update(part)
    streamed.update(rows[:0])
    assert streamed.count == 100
    np.testing.assert_allclose(streamed.mean, rows.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(streamed.covariance, np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-11)


def test_save_and_load(tmp_path: Path) -> None:
    moments = Moments.of(torch.from_numpy(features(20, 5, 5)).float(), {"reference": "val", "features": "net"})
    ReferenceStatistics(moments, None).save(tmp_path / "sub" / "val.npz")
    loaded = Moments.load(tmp_path / "sub" / "val.npz")
    assert loaded.fingerprint == {"reference": "val", "features": "net"}
    assert loaded.count == 20
    assert torch.equal(loaded.covariance, moments.covariance)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["val.npz"]
    (tmp_path / "bad.npz").write_bytes(b"no statistics")
    with pytest.raises(ValueError, match="bad.npz holds no feature moments"):
        Moments.load(tmp_path / "bad.npz")


def test_errors_name_what_to_change() -> None:
    moments = Moments(3)
    with pytest.raises(ValueError, match="image 7 are not finite"):
        moments.update(np.zeros((6, 3)))
        moments.update(np.array([[0.0, 0, 0], [0, np.nan, 0]]))
    with pytest.raises(ValueError, match="raise prompts.limit .*reference_limit"):
        Moments.of(np.zeros((1, 3))).distance(moments)
    with pytest.raises(ValueError, match="feature width: 2 and 3"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match="cov_b is not finite"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), np.full((2, 2), np.inf))
