"""The metrics that compare the distribution of generated features with that of real ones.

Shape legend::

    N  generated images    M  reference images    D  features
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch

from t2ikit.metrics.base import MORE_REFERENCE, Result, Rows, Samples
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
        return (self.k + 2) * self._chunks, f"k={self.k}"

    def check(self, samples: Samples) -> None:
        """Also refuses a set of which the last chunk of the preset, which may be far smaller, has too few images."""
        super().check(samples)
        if self.path is None:
            assert samples.reference is not None
            reference = len(samples.reference)
        elif self._stored.features is not None:
            reference = self._stored.moments.count
        else:  # moments alone give the Frechet distance
            return
        for count, what, remedy in (
            (len(samples), "generated", samples.remedy),
            (reference, "reference", MORE_REFERENCE),
        ):
            last = self._last_chunk(count)
            if last < self.k + 2:
                more = next(more for more in itertools.count(count) if self._last_chunk(more) >= self.k + 2)
                raise ValueError(
                    f"{count} {what} images leave {last} for the last of the {self._chunks} parts of {self.preset}, "
                    f"but k={self.k} needs at least {self.k + 2}: take {more} ({remedy}), or {self.least()[0]}"
                )

    @property
    def _chunks(self) -> int:
        return 1 if self.preset is None else PRESETS[self.preset].chunks

    def _last_chunk(self, count: int) -> int:
        """Images of the smallest part that ``torch.chunk`` makes."""
        return count % math.ceil(count / self._chunks) or math.ceil(count / self._chunks)

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
