"""The metrics that compare the distribution of generated features with that of real ones.

Shape legend::

    N  generated images    M  reference images    D  features
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from t2ikit.metrics.base import Result, Rows, Samples
from t2ikit.metrics.distribution.frechet import Moments
from t2ikit.metrics.distribution.precision_recall import PRESETS, prdc, prdc_preset
from t2ikit.metrics.distribution.reference import ComparedMetric


@dataclass(eq=False)
class DistributionMetrics(ComparedMetric):
    """Frechet distance, precision, recall, density and coverage on one feature network.

    Attributes:
        k: neighbour that gives the radius of precision, recall, density and coverage.
        preset: a published way to compute those four instead ("imagenet_t2i", "dgm_eval", "synthreal"; see
            ``t2ikit.metrics.distribution.precision_recall.PRESETS``), which brings its own k.
    """

    k: int = 5
    preset: str | None = None
    less_is_better = ("frechet_distance",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"k must be at least 1; got {self.k}")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {self.preset!r}")
        self.k = self.k if self.preset is None else PRESETS[self.preset].k

    def least(self) -> tuple[int, str]:
        """Two more than k, in each chunk of the preset."""
        chunks = 1 if self.preset is None else PRESETS[self.preset].chunks
        return (self.k + 2) * chunks, f"k={self.k}"

    def score(self, samples: Samples, rows: Rows) -> Result:
        """``frechet_distance``, ``precision``, ``recall``, ``density``, ``coverage``.

        Raises:
            ValueError: statistics of another network or set.
        """
        reference, fake = self.reference(samples), torch.as_tensor(rows)
        values = {"frechet_distance": reference.moments.distance(Moments.of(fake))}
        real = reference.features
        if real is None:
            return Result(values)
        if self.preset is None:
            return Result(values | prdc(real, fake, self.k))
        return Result(values | prdc_preset(real, fake, self.preset))

    def fingerprint(self) -> dict[str, Any]:
        """Features, resize, k and preset."""
        return {**super().fingerprint(), "k": self.k, "preset": self.preset}
