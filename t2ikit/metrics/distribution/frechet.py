"""Frechet distance between Gaussians fitted to two feature sets (FID, FD-DINOv2), from streamed moments.

Shape legend::

    N  samples    D  features    r  rank of a covariance

``d^2 = |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr (S_a S_b)^(1/2)`` (Dowson and Landau 1982; Heusel et al. 2017,
Equation 6). With ``S_a = L L^T`` the last trace is that of ``(L^T S_b L)^(1/2)``, a symmetric positive semi-definite
matrix: its eigenvalues are real and come several times faster than a general matrix square root.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2ikit.files import parse_json
from t2ikit.metrics.base import MORE_IMAGES

Array = Tensor | NDArray[np.floating]


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """Squared Frechet distance of two Gaussians, in float64.

    Args:
        mean_a: [D] mean of the first set.
        cov_a: [D, D] covariance of the first set; any rank.
        mean_b: [D] mean of the second set.
        cov_b: [D, D] covariance of the second set; any rank.

    Returns:
        The distance (the papers' FID when the features are Inception's), never below zero.

    Raises:
        ValueError: shapes that do not fit, or entries that are not finite.
    """
    first, second = _mean(mean_a, "mean_a"), _mean(mean_b, "mean_b")
    if first.shape != second.shape:
        raise ValueError(f"the two sets differ in feature width: {len(first)} and {len(second)}")
    cov_1, cov_2 = _covariance(cov_a, len(first), "cov_a"), _covariance(cov_b, len(first), "cov_b")
    squared = (first - second).square().sum() + cov_1.trace() + cov_2.trace() - 2.0 * _trace_of_root(cov_1, cov_2)
    return max(float(squared), 0.0)


def _mean(value: Array, name: str) -> Tensor:
    mean = torch.as_tensor(value).detach().to("cpu", torch.float64).reshape(-1)
    if not bool(mean.isfinite().all()):
        raise ValueError(f"{name} is not finite: look for NaN features or an empty image")
    return mean


def _covariance(value: Array, width: int, name: str) -> Tensor:
    covariance = torch.as_tensor(value).detach().to("cpu", torch.float64)
    covariance = covariance.reshape(1, 1) if covariance.dim() == 0 else covariance
    if covariance.shape != (width, width):
        raise ValueError(f"{name} must be [{width}, {width}]; got {tuple(covariance.shape)}")
    if not bool(covariance.isfinite().all()):
        raise ValueError(
            f"{name} is not finite: look for features that are not finite, or take 2 samples or more ({MORE_IMAGES})"
        )
    return (covariance + covariance.T) / 2


def _trace_of_root(cov_a: Tensor, cov_b: Tensor) -> Tensor:
    """tr (S_a S_b)^(1/2) of two covariances [D, D]."""
    factor_a, factor_b = _factor(cov_a), _factor(cov_b)
    # The thinner factor leaves no zero eigenvalue whose rounding a square root would blow up.
    factor, other = (factor_a, cov_b) if factor_a.shape[1] <= factor_b.shape[1] else (factor_b, cov_a)
    if factor.shape[1] == 0:
        return cov_a.new_zeros(())
    inner = factor.T @ other @ factor
    return torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()


def _factor(covariance: Tensor) -> Tensor:
    """L [D, r] with ``L L^T = S``: Cholesky where S is safely of full rank, else its eigenvectors without the null."""
    tolerance = torch.finfo(torch.float64).eps * len(covariance)
    triangle, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed) == 0:
        pivots = triangle.diagonal().square()
        if bool(pivots.min() > tolerance * pivots.max()):
            return triangle
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > tolerance * values[-1].clamp_min(0)
    return vectors[:, kept] * values[kept].sqrt()


class Moments:
    """Mean and covariance of a feature set, in float64, filled batch by batch.

    Each batch is centred on its own mean and joined to the rest by the parallel update, which keeps the covariance
    accurate for features far from zero.

    Attributes:
        count: samples so far.
        fingerprint: what the features are of (reference set, resize, weights ...); JSON-able, saved along.
    """

    def __init__(self, dim: int, fingerprint: Mapping[str, Any] | None = None) -> None:
        """Empty moments of features of ``dim`` values."""
        if dim < 1:
            raise ValueError(f"dim must be at least 1; got {dim}")
        self.count = 0
        self.fingerprint: dict[str, Any] = dict(fingerprint or {})
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @classmethod
    def of(cls, features: Array, fingerprint: Mapping[str, Any] | None = None) -> Moments:
        """Moments of features [N, D]."""
        rows = torch.as_tensor(features)
        if rows.dim() != 2:
            raise ValueError(f"moments need features [N, D]; got {tuple(rows.shape)}")
        moments = cls(rows.shape[1], fingerprint)
        for block in rows.split(8192):
            moments.update(block)
        return moments

    @property
    def dim(self) -> int:
        """D, the width of the features."""
        return len(self._mean)

    @property
    def mean(self) -> Tensor:
        """[D] float64."""
        self._need(1)
        return self._mean.clone()

    @property
    def covariance(self) -> Tensor:
        """[D, D] float64, normalised by N - 1."""
        self._need(2)
        return self._scatter / (self.count - 1)

    def _need(self, least: int) -> None:
        if self.count < least:
            raise ValueError(f"moments of {self.count} samples, {least} or more are needed: {MORE_IMAGES}")

    def update(self, features: Array) -> None:
        """Adds a batch [B, D]; ValueError when a row is not finite (named by its place in the whole set)."""
        rows = torch.as_tensor(features).detach().to("cpu", torch.float64)
        if rows.dim() != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"moments need features [B, {self.dim}]; got {tuple(rows.shape)}")
        broken = (~rows.isfinite().all(dim=1)).nonzero()
        if len(broken):
            raise ValueError(f"features of image {self.count + int(broken[0])} are not finite")
        if len(rows):
            mean = rows.mean(dim=0)
            centred = rows - mean
            self._add(len(rows), mean, centred.T @ centred)

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Chan, Golub and LeVeque 1979, Equation 2.1, for vectors."""
        total = self.count + count
        shift = mean - self._mean
        self._scatter += scatter
        if self.count:
            self._scatter += torch.outer(shift, shift) * (self.count * count / total)
            self._mean += shift * (count / total)
        else:
            self._mean = mean.clone()
        self.count = total

    def distance(self, other: Moments) -> float:
        """Squared Frechet distance to another set's moments."""
        return frechet_distance(self.mean, self.covariance, other.mean, other.covariance)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a file of statistics holds, by name."""
        return {
            "mean": self._mean.numpy(),
            "scatter": self._scatter.numpy(),
            "count": np.array(self.count, dtype=np.int64),
            "fingerprint": np.array(json.dumps(self.fingerprint, sort_keys=True)),
        }

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Moments from a file of statistics; ValueError when the file is not one, or its arrays do not fit."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                moments = cls(len(stored["mean"]), parse_json(str(stored["fingerprint"])))
                moments._mean = torch.from_numpy(stored["mean"])
                moments._scatter = torch.from_numpy(stored["scatter"])
                moments.count = int(stored["count"])
            if moments._mean.shape != (moments.dim,) or moments._scatter.shape != (moments.dim, moments.dim):
                raise ValueError(f"mean {tuple(moments._mean.shape)}, scatter {tuple(moments._scatter.shape)}")
            if not bool(moments._mean.isfinite().all() and moments._scatter.isfinite().all()):
                raise ValueError("values that are not finite")
        except (KeyError, ValueError, EOFError, BadZipFile) as error:
            raise ValueError(
                f"{path} holds no feature moments ({error}): write it again with t2ikit evaluate --write-reference"
            ) from error
        return moments
