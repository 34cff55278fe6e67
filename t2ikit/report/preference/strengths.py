"""Strengths of three or more models out of pairwise comparisons: Bradley and Terry, and Davidson.

With strengths s, model i is better than j with odds exp(s_i) : exp(s_j) (Bradley and Terry, "Rank analysis of
incomplete block designs", 1952); a tie is half a win of each. Davidson ("On extending the Bradley-Terry model to
accommodate ties", 1970) gives ties a probability of their own, with odds exp(s_i) : nu exp((s_i + s_j) / 2) :
exp(s_j). Both are logistic models with a concave likelihood, which Newton's method maximises. Strengths have mean 0.

Legend: R rows, K models, C pairs, O outcomes of a pair (first better, second better, with Davidson tie), N parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

ELO = 400 / math.log(10)
"""Points of Elo's scale a unit of strength: 400 points are odds of ten to one."""

_STEPS = 200
_TOLERANCE = 1e-10  # of the gradient, a comparison

Array = NDArray[np.float64]


class InfiniteStrengths(ValueError):
    """The likelihood has no maximum: some models never lose against others."""


def strengths(counts: Array, models: Sequence[str], davidson: bool = False) -> Array:
    """The strengths of the models.

    Args:
        counts: [C, 3] ratings of every pair, in the order of ``itertools.combinations``: first better, same, second
            better.
        models: K names.
        davidson: ties have a probability of their own; else each is half a win of both.

    Returns:
        [K] natural logarithms, with mean 0.

    Raises:
        InfiniteStrengths: says which models were never better than which others.
    """
    if davidson and not counts[:, [0, 2]].any():
        raise InfiniteStrengths("no rating prefers a model, which Davidson's strengths need: take --ties half")
    direction = _direction(counts, len(models), davidson)
    if direction is not None:
        raise InfiniteStrengths(_reason(direction, models, davidson))
    return _fit(counts[None], len(models), davidson)[0]


def resampled_strengths(counts: Array, count: int, davidson: bool = False) -> Array:
    """The strengths of every row [R, C, 3] of counts of ``count`` models: [R, K], NaN where they are infinite."""
    result = np.full((len(counts), count), np.nan)
    # Whether a maximum exists depends only on which counts are zero.
    patterns, rows = np.unique(counts > 0, axis=0, return_inverse=True)
    finite = np.array([_direction(pattern.astype(np.float64), count, davidson) is None for pattern in patterns])
    chosen = finite[rows.reshape(-1)]
    if chosen.any():
        result[chosen] = _fit(counts[chosen], count, davidson)
    return result


def _features(count: int, davidson: bool) -> Array:
    """[C, O, N]: the logarithm of an outcome's odds is its features times the parameters. Those are coordinates of
    strengths with mean 0, and with Davidson log nu."""
    basis = np.linalg.qr(np.eye(count) - 1 / count)[0][:, : count - 1]  # [K, K - 1], columns of sum 0
    pairs = list(combinations(range(count), 2))
    outcomes = [[basis[first], basis[second], (basis[first] + basis[second]) / 2] for first, second in pairs]
    features = np.array(outcomes)
    if not davidson:
        return features[:, :2]
    ties = np.broadcast_to([[[0.0], [0.0], [1.0]]], (len(pairs), 3, 1))
    return np.concatenate([features, ties], axis=2)


def _outcomes(counts: Array, davidson: bool) -> Array:
    """[R, C, 3] first, same, second to [R, C, O] first, second, tie."""
    first, same, second = counts[..., 0], counts[..., 1], counts[..., 2]
    if davidson:
        return np.stack([first, second, same], axis=-1)
    return np.stack([first + same / 2, second + same / 2], axis=-1)


def _has_ties(counts: Array) -> NDArray[np.bool_]:
    return counts[..., 1].sum(axis=-1) > 0


def _direction(counts: Array, count: int, davidson: bool) -> Array | None:
    """A direction of the strengths [K] in which the likelihood never falls, or None: it has one maximum.

    Such a direction makes no seen outcome less likely against any other outcome of its pair; if one exists, so does one
    that a linear program finds (Albert and Anderson, "On the existence of maximum likelihood estimates in logistic
    regression models", 1984).
    """
    davidson = davidson and bool(_has_ties(counts))  # without a tie, nu is 0 and the rest Bradley and Terry's
    features = _features(count, davidson)
    seen = _outcomes(counts, davidson) > 0
    gains = np.array(
        [
            features[pair, outcome] - features[pair, other]
            for pair, outcome in zip(*np.nonzero(seen), strict=True)
            for other in range(features.shape[1])
            if other != outcome
        ]
    ).reshape(-1, features.shape[2])
    if np.linalg.matrix_rank(gains) < features.shape[2]:
        # Nothing at all ties two groups of models: the likelihood is flat.
        null = np.linalg.svd(gains, full_matrices=True)[2][-1] if len(gains) else np.eye(features.shape[2])[0]
        return _spread(null, count)
    found = linprog(-gains.sum(axis=0), A_ub=-gains, b_ub=np.zeros(len(gains)), bounds=(-1, 1), method="highs")
    return _spread(found.x, count) if -found.fun > 1e-7 else None


def _spread(parameters: Array, count: int) -> Array:
    basis = np.linalg.qr(np.eye(count) - 1 / count)[0][:, : count - 1]
    result: Array = basis @ parameters[: count - 1]
    return result


def _reason(direction: Array, models: Sequence[str], davidson: bool) -> str:
    order = np.argsort(-direction)
    split = int(np.argmax(-np.diff(direction[order]))) + 1
    upper, lower = (", ".join(models[index] for index in sorted(part)) for part in (order[:split], order[split:]))
    least = "better than" if davidson else "better than, or as good as,"
    return (
        f"the strengths are infinite: in no rating is one of {lower} {least} one of {upper}, so nothing bounds how far "
        "they are apart: collect more ratings, or leave the strengths out with --no-strengths"
    )


def _fit(counts: Array, count: int, davidson: bool) -> Array:
    """The maximum of every row, [R, C, 3] to [R, K]; each has one."""
    if davidson:
        ties = _has_ties(counts)
        if not ties.all():
            result = np.empty((len(counts), count))
            result[~ties] = _fit(counts[~ties], count, False)
            if ties.any():
                result[ties] = _fit(counts[ties], count, True)
            return result
    features, seen = _features(count, davidson), _outcomes(counts, davidson)
    totals = seen.sum(axis=2)  # [R, C]
    scale = totals.sum(axis=1)
    parameters = np.zeros((len(counts), features.shape[2]))
    value, left = _likelihood(parameters, features, seen), np.arange(len(counts))
    for _ in range(_STEPS):
        odds = _odds(parameters[left], features)
        mean = np.einsum("rco,con->rcn", odds, features)
        gradient = np.einsum("rco,con->rn", seen[left], features) - np.einsum("rc,rcn->rn", totals[left], mean)
        moving = np.abs(gradient).max(axis=1) > _TOLERANCE * scale[left]
        left, odds, mean, gradient = left[moving], odds[moving], mean[moving], gradient[moving]
        if not len(left):
            return _strengths(parameters, count)
        second = np.einsum("rc,rco,con,com->rnm", totals[left], odds, features, features)
        curvature = second - np.einsum("rc,rcn,rcm->rnm", totals[left], mean, mean)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        size = np.ones(len(left))
        for _ in range(40):  # halved until the likelihood rises
            trial = parameters[left] + size[:, None] * step
            reached = _likelihood(trial, features, seen[left])
            falls = reached < value[left] - 1e-12 * np.abs(value[left])
            if not falls.any():
                break
            size[falls] /= 2
        parameters[left], value[left] = trial, reached
    raise RuntimeError(f"the strengths were not found in {_STEPS} steps")


def _strengths(parameters: Array, count: int) -> Array:
    return np.stack([_spread(row, count) for row in parameters])


def _odds(parameters: Array, features: Array) -> Array:
    """Probability of every outcome, [R, C, O]."""
    logits = np.einsum("rn,con->rco", parameters, features)
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    result: Array = weights / weights.sum(axis=2, keepdims=True)
    return result


def _likelihood(parameters: Array, features: Array, seen: Array) -> Array:
    """Its logarithm, [R]."""
    logits = np.einsum("rn,con->rco", parameters, features)
    most = logits.max(axis=2, keepdims=True)
    total = most[..., 0] + np.log(np.exp(logits - most).sum(axis=2))
    result: Array = (seen * (logits - total[..., None])).sum(axis=(1, 2))
    return result
