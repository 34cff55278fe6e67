"""The noise gate: which stream a sample comes from, and its noise quantile.

Algorithm 1 of "How far can we go with ImageNet for text-to-image generation?": draw u ~ U(0, 1); where u > tau take,
with probability p, a sample of the augmented stream instead of the raw one. Here the source is chosen first and then
u given the source. The joint law is the same, and no record is read that is not used.

    P(s) = p_s (1 - tau_s)          u | s   ~ U(tau_s, 1)
    P(raw) = 1 - sum of P(s)        u | raw ~ density proportional to 1 - sum of p_s over the s with tau_s < u
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Gate:
    """An augmented stream behind a noise gate: where u > ``quantile`` it is chosen with ``probability``.

    Attributes:
        name: of the source, as it is logged.
        folder: the encoded set: below the data root, or a path.
        quantile: threshold tau on the noise quantile u, in [0, 1].
        probability: p, in [0, 1].

    Raises:
        ValueError: a number outside [0, 1].
    """

    name: str
    folder: str | os.PathLike[str]
    quantile: float
    probability: float

    def __post_init__(self) -> None:
        for option, value in (("threshold tau", self.quantile), ("probability p", self.probability)):
            if not 0 <= value <= 1:
                raise ValueError(f"{self.name}: the {option} must lie in [0, 1], not {value}: change its option")


def shares(gates: Sequence[Gate]) -> np.ndarray:
    """The share of every source in the run, raw first: [1 + len(gates)] float64, sum 1.

    Raises:
        ValueError: if the probabilities sum to more than 1.
    """
    total = sum(gate.probability for gate in gates)
    if total > 1 + 1e-9:
        names = ", ".join(gate.name for gate in gates)
        raise ValueError(f"the probabilities p of {names} sum to {total:g}, more than 1: lower one of them")
    gated = [gate.probability * (1 - gate.quantile) for gate in gates]
    return np.array([max(0.0, 1 - sum(gated)), *gated])


def source_and_quantile(uniforms: np.ndarray, gates: Sequence[Gate]) -> tuple[np.ndarray, np.ndarray]:
    """Source and noise quantile of every sample, with the joint law of Algorithm 1.

    Args:
        uniforms: [n, k] in [0, 1), k >= 2: column 0 chooses the source, column 1 the quantile; others are not used.
        gates: the gated streams, in order; their probabilities sum to at most 1.

    Returns:
        source [n] int64 (0 = raw, then the gates in order) and u [n] float64 in [0, 1].
    """
    if uniforms.ndim != 2 or uniforms.shape[1] < 2:
        raise ValueError(f"uniforms are [n, k] with k >= 2; got {uniforms.shape}")
    share = shares(gates)
    # Gated streams fill [0, sum P(s)) in order; what is left is raw.
    ends = np.cumsum(share[1:])
    interval = np.searchsorted(ends, uniforms[:, 0], side="right")
    source = np.where(interval < len(gates), interval + 1, 0).astype(np.int64)
    u = _raw_quantile(uniforms[:, 1], gates)
    for index, gate in enumerate(gates, start=1):
        chosen = source == index
        u[chosen] = gate.quantile + (1 - gate.quantile) * uniforms[chosen, 1]
    return source, u


def _raw_quantile(uniform: np.ndarray, gates: Sequence[Gate]) -> np.ndarray:
    """Inverse of the distribution function of u given raw, which is linear between the thresholds."""
    knots = np.unique([0.0, 1.0, *(gate.quantile for gate in gates)])
    density = [1 - sum(gate.probability for gate in gates if gate.quantile <= left) for left in knots[:-1]]
    mass = np.concatenate([[0.0], np.cumsum(np.maximum(density, 0.0) * np.diff(knots))])
    if mass[-1] == 0:
        return uniform.copy()  # raw is never chosen
    slope = np.diff(mass) / np.diff(knots)
    # "right" skips the intervals without mass, where no raw sample lies.
    target = uniform * mass[-1]
    piece = np.minimum(np.searchsorted(mass, target, side="right") - 1, len(slope) - 1)
    inside = target - mass[piece]
    return knots[piece] + np.divide(inside, slope[piece], out=np.zeros_like(inside), where=slope[piece] > 0)
