"""The gate draws from the joint law of Algorithm 1."""

from collections.abc import Sequence

import numpy as np
import pytest

from t2ikit import rng
from t2ikit.data.gate import Gate, shares, source_and_quantile

BINS = 20
CASES = [
    [],
    [Gate("gate", "", 0.4, 0.5)],
    [Gate("gate", "", 0.4, 1.0)],
    [Gate("gate", "", 0.0, 0.3)],
    [Gate("gate", "", 1.0, 0.7)],
    [Gate("gate", "", 0.4, 0.25), Gate("gate", "", 0.7, 0.5)],
    [Gate("gate", "", 0.7, 0.5), Gate("gate", "", 0.4, 0.25), Gate("gate", "", 0.4, 0.25)],
    [Gate("gate", "", 0.2, 0.5), Gate("gate", "", 0.6, 0.5)],
    [Gate("gate", "", 0.0, 1.0)],
]


def algorithm_1(gates: Sequence[Gate], count: int) -> tuple[np.ndarray, np.ndarray]:
    """As the paper has it: u first, then one stream with its probability if u is beyond its threshold."""
    random = np.random.default_rng(7)
    u, choice = random.random(count), random.random(count)
    source = np.zeros(count, np.int64)
    start = 0.0
    for number, gate in enumerate(gates, start=1):
        selected = (choice >= start) & (choice < start + gate.probability)
        source[selected & (u > gate.quantile)] = number
        start += gate.probability
    return source, u


def table(source: np.ndarray, u: np.ndarray, sources: int) -> np.ndarray:
    """Share of every (source, bin of u): [sources, BINS]."""
    place = source * BINS + np.minimum((u * BINS).astype(int), BINS - 1)
    return np.bincount(place, minlength=sources * BINS).reshape(sources, BINS) / len(u)


def analytic(gates: Sequence[Gate]) -> np.ndarray:
    """Exact for thresholds at the edges of bins."""
    left = np.arange(BINS) / BINS
    rows = [gate.probability * (left >= gate.quantile - 1e-9) / BINS for gate in gates]
    return np.stack([1 / BINS - sum(rows, np.zeros(BINS)), *rows])


@pytest.mark.parametrize("gates", CASES, ids=str)
def test_joint_law(gates: list[Gate]) -> None:
    count = 1_000_000
    source, u = source_and_quantile(rng.uniforms(0, "source", 0, count, 3), gates)
    assert source.dtype == np.int64 and u.min() >= 0 and u.max() <= 1
    found = table(source, u, len(gates) + 1)
    # Five standard deviations of a share of at most 1 / BINS.
    tolerance = 5 * np.sqrt(1 / BINS / count)
    assert np.abs(found - analytic(gates)).max() < tolerance
    assert np.abs(found - table(*algorithm_1(gates, count), len(gates) + 1)).max() < 1.5 * tolerance
    assert np.allclose(found.sum(axis=1), shares(gates), atol=2.5e-3)


def test_a_gated_sample_lies_beyond_its_threshold() -> None:
    gates = [Gate("gate", "", 0.437, 0.3), Gate("gate", "", 0.811, 0.6)]
    source, u = source_and_quantile(rng.uniforms(1, "source", 0, 100_000, 2), gates)
    for number, gate in enumerate(gates, start=1):
        assert u[source == number].min() > gate.quantile - 1e-12
    exact = [1 - 0.3 * 0.563 - 0.6 * 0.189, 0.3 * 0.563, 0.6 * 0.189]
    assert np.allclose(shares(gates), exact)


def test_raw_density_in_closed_form() -> None:
    """tau 0.4, p 0.5: u | raw is below 0.4 with probability 4/7 (architectures of the paper: 0.4 / 0.7)."""
    source, u = source_and_quantile(rng.uniforms(2, "source", 0, 400_000, 2), [Gate("gate", "", 0.4, 0.5)])
    assert abs((u[source == 0] < 0.4).mean() - 4 / 7) < 0.004


def test_no_interval_without_mass_is_drawn() -> None:
    """With p = 1 no raw sample lies beyond the threshold, and none between two of them if their sum is 1."""
    source, u = source_and_quantile(rng.uniforms(3, "source", 0, 50_000, 2), [Gate("gate", "", 0.5, 1.0)])
    assert u[source == 0].max() <= 0.5
    source, u = source_and_quantile(
        rng.uniforms(3, "source", 0, 50_000, 2), [Gate("gate", "", 0.3, 0.7), Gate("gate", "", 0.6, 0.3)]
    )
    assert u[source == 0].max() <= 0.6


@pytest.mark.parametrize(
    ("quantile", "probability"), [(-0.1, 0.5), (1.1, 0.5), (0.4, -0.5), (0.4, 1.5), (float("nan"), 0)]
)
def test_values_outside_are_refused(quantile: float, probability: float) -> None:
    option = "probability p" if 0 <= quantile <= 1 else "threshold tau"
    with pytest.raises(ValueError, match=f"cmall: the {option}"):
        Gate("cmall", "", quantile, probability)


def test_probabilities_beyond_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cm2, cm4 sum to 1.2"):
        source_and_quantile(np.zeros((1, 2)), [Gate("cm2", "", 0.4, 0.6), Gate("cm4", "", 0.4, 0.6)])
    with pytest.raises(ValueError, match="k >= 2"):
        source_and_quantile(np.zeros((3, 1)), [])
