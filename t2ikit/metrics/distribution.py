"""The metrics that compare the distribution of generated features with that of real ones.

Shape legend::

    N  generated images    M  reference images    D  features
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from t2ikit.metrics.base import Metric, Samples, extract
from t2ikit.metrics.features import FeatureExtractor
from t2ikit.metrics.frechet import Moments
from t2ikit.metrics.prdc import PRESETS, prdc, prdc_preset
from t2ikit.metrics.reference import Reference, write_reference


class DistributionMetrics(Metric):
    """Frechet distance, precision, recall, density and coverage on one feature network."""

    def __init__(
        self,
        features: FeatureExtractor,
        k: int = 5,
        preset: str | None = None,
        batch_size: int = 64,
        name: str | None = None,
        reference_statistics: str | None = None,
    ) -> None:
        """Settings.

        Args:
            features: the feature network; its name is part of the fingerprint.
            k: neighbour that gives the radius of precision, recall, density and coverage.
            preset: a published way to compute those four instead ("imagenet_t2i", "dgm_eval", "synthreal"; see
                ``t2ikit.metrics.prdc.PRESETS``), which brings its own k.
            batch_size: images a pass of the feature network.
            name: put before the scores' names, where a snapshot has two of these (``dinov2/frechet_distance``).
            reference_statistics: file of ``write_reference``, instead of reference images. One without features gives
                the Frechet distance alone.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1; got {k}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}")
        self.features = features
        self.name = name
        self.k = k if preset is None else PRESETS[preset].k
        self.preset = preset
        self.batch_size = batch_size
        self.reference = Reference(features, batch_size, reference_statistics)

    def compute(self, samples: Samples) -> Iterator[tuple[str, float]]:
        """Yields frechet_distance, precision, recall, density, coverage.

        Raises:
            ValueError: no reference, too few images (num_images) or reference images, features that are not finite,
                statistics of another network or set.
        """
        chunks = 1 if self.preset is None else PRESETS[self.preset].chunks
        real = self.reference.statistics(samples, (self.k + 2) * chunks, f"k={self.k}")
        fake = extract(self.features, samples.images, self.batch_size, "generated")
        yield "frechet_distance", real.moments.distance(Moments.of(fake))
        if real.features is not None:
            rows = real.features
            yield from (
                prdc(rows, fake, self.k) if self.preset is None else prdc_preset(rows, fake, self.preset)
            ).items()

    def write_reference(
        self, path: str | Path, images: Tensor, name: str, keep_features: bool = True
    ) -> dict[str, Any]:
        """Writes the statistics of a reference set for this metric's network: see ``t2ikit.metrics.reference``."""
        return write_reference(path, self.features, images, name, self.batch_size, keep_features)

    def fingerprint(self) -> dict[str, Any]:
        """Features, resize, k and preset."""
        return {**self.features.fingerprint(), "k": self.k, "preset": self.preset}

    def fingerprint_of(self, samples: Samples) -> dict[str, Any]:
        """The settings with the set sizes and the reference's name and hash, of images or of the saved statistics."""
        return {**self.fingerprint(), **self.reference.describe(samples)}
