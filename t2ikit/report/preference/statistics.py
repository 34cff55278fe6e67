"""Shares with their intervals, tests, and the agreement of raters.

Ratings of one prompt depend on each other, so intervals come from a bootstrap over prompts, and tests look at one sign
a prompt. Legend: Q questions, P prompts, R resamples; the three answers are first better, same, second better.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from t2ikit import rng

RESAMPLES = 10_000
CONFIDENCE = 0.95
ENTRIES = 2**22
"""Random numbers that a bootstrap holds at once."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; without one where a single prompt was rated."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Shares:
    """Shares of all ratings: of the first model better, of unsure, of the second model better; net is the first less
    the third."""

    first: Estimate
    same: Estimate
    second: Estimate
    net: Estimate


@dataclass(frozen=True)
class ExactTest:
    """An exact binomial test against one half.

    Attributes:
        hits, misses: counts.
        share: hits among both, with the interval of Clopper and Pearson (1934); None where there is neither.
        p: two-sided; 1 where there is neither.
    """

    hits: int
    misses: int
    share: Estimate | None
    p: float


def exact_test(hits: int, misses: int) -> ExactTest:
    """Whether hits are more, or fewer, than half."""
    if not hits + misses:
        return ExactTest(0, 0, None, 1.0)
    result = binomtest(hits, hits + misses)
    interval = result.proportion_ci(CONFIDENCE, method="exact")
    share = Estimate(hits / (hits + misses), float(interval.low), float(interval.high))
    return ExactTest(hits, misses, share, float(result.pvalue))


def resampled(prompts: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """How often each prompt is drawn: [r, P] at a time, R rows in all, each with sum P.

    Args:
        prompts: P.
        resamples: R.
        seed: of the random numbers; a row depends only on it and on its own number.
    """
    step = max(1, ENTRIES // prompts)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        chosen = (rng.uniforms(seed, "bootstrap preference", start, count, prompts) * prompts).astype(np.int64)
        flat = (chosen + np.arange(count)[:, None] * prompts).ravel()
        yield np.bincount(flat, minlength=count * prompts).reshape(count, prompts).astype(np.float64)


def interval(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Percentile interval of resampled values [R]; those that are not defined are left out (Efron 1979)."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def shares(counts: NDArray[np.float64]) -> list[Shares]:
    """The shares of each question and of all together.

    Args:
        counts: [Q, P, 3] ratings; every question has one.

    Returns:
        One entry a question, then the mean of the questions, which weighs them alike.
    """
    values = _values(counts.sum(axis=1)[None])[0]  # [Q + 1, 4]
    bounded = several_prompts(counts.sum(axis=2))
    drawn = np.full((1, *values.shape), np.nan)
    if any(bounded):
        drawn = np.concatenate([_values(np.einsum("rp,qpc->rqc", rows, counts)) for rows in resampled(counts.shape[1])])

    def estimate(row: int, column: int) -> Estimate:
        limits = interval(drawn[:, row, column]) if bounded[row] else (None, None)
        return Estimate(float(values[row, column]), *limits)

    return [Shares(*(estimate(row, column) for column in range(4))) for row in range(len(values))]


def several_prompts(ratings: NDArray[np.float64]) -> list[bool]:
    """Whether a bootstrap over prompts says anything: of each question, and of all; one prompt would never vary.

    Args:
        ratings: [Q, P] numbers.
    """
    enough = [int((row > 0).sum()) > 1 for row in ratings]
    return [*enough, all(enough)]


def _values(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """[R, Q, 3] counts to [R, Q + 1, 4] shares and net, the mean of the questions last."""
    with np.errstate(invalid="ignore"):  # a resample without a rating of one question
        parts = totals / totals.sum(axis=2, keepdims=True)
    parts = np.concatenate([parts, parts.mean(axis=1, keepdims=True)], axis=1)
    return np.concatenate([parts, parts[..., :1] - parts[..., 2:]], axis=2)


def krippendorff(ratings: Iterable[tuple[Hashable, int]], ordinal: bool) -> float | None:
    """Krippendorff's alpha: 1 where raters agree, 0 where they agree as by chance.

    Source: Krippendorff, "Computing Krippendorff's alpha-reliability", 2011: coincidences o_ck of the values c and k
    in units with two ratings or more, alpha = 1 - (n - 1) sum o_ck d_ck / sum n_c n_k d_ck. The nominal distance d is
    1 for unlike values; the ordinal one is (n_c / 2 + those between + n_k / 2) squared.

    Args:
        ratings: unit, and an integer value, of every rating.
        ordinal: whether the values have an order.

    Returns:
        None where it is not defined: no unit with two ratings, or one value only.
    """
    units: dict[Hashable, Counter[int]] = {}
    for unit, value in ratings:
        units.setdefault(unit, Counter())[value] += 1
    pairable = [counts for counts in units.values() if counts.total() > 1]
    values = sorted({value for counts in pairable for value in counts})
    if len(values) < 2:
        return None
    table = np.array([[counts[value] for value in values] for counts in pairable], dtype=np.float64)  # [units, values]
    weights = 1 / (table.sum(axis=1) - 1)
    coincidences = np.einsum("u,uc,uk->ck", weights, table, table) - np.diag(weights @ table)
    totals = table.sum(axis=0)
    distances = 1 - np.eye(len(values))
    if ordinal:
        middles = np.cumsum(totals) - totals / 2
        distances = (middles[:, None] - middles[None, :]) ** 2
    expected = float(totals @ distances @ totals)
    return 1 - (float(totals.sum()) - 1) * float((coincidences * distances).sum()) / expected
