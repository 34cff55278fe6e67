"""The metric contract: images and what they were made from in, pairs (name, value) out; and the distribution metrics.

Shape legend::

    N  generated images    M  reference images    H, W  pixels    D  features
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2ikit.metrics.features import FeatureExtractor, check_images
from t2ikit.metrics.fingerprint import images_sha256
from t2ikit.metrics.frechet import Moments
from t2ikit.metrics.prdc import PRESETS, prdc, prdc_preset


@dataclass
class Samples:
    """The images of one snapshot with what they were made from; row i of everything belongs together.

    Attributes:
        images: [N, 3, H, W] uint8.
        prompts: N prompts.
        metadata: N JSON-able dicts (GenEval's, or the record's).
        reference: [M, 3, H', W'] uint8 real images, or None for metrics that need none.
        reference_name: the reference set's name, for the fingerprint.
    """

    images: Tensor
    prompts: list[str] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    reference: Tensor | None = None
    reference_name: str = ""

    def __post_init__(self) -> None:
        check_images(self.images)
        if self.reference is not None:
            check_images(self.reference)
        for name, rows in (("prompts", self.prompts), ("metadata", self.metadata)):
            if rows and len(rows) != len(self.images):
                raise ValueError(f"{len(self.images)} images but {len(rows)} {name}: one row an image is needed")

    def __len__(self) -> int:
        return self.images.shape[0]


class Metric(ABC):
    """Scores of one set of images. Holds settings and networks, never results; needs no Lightning and no data set.

    Attributes:
        name: put before the names of its scores (``<name>/<score>``), so that two of a kind can read the same images.
    """

    name: str | None = None

    @abstractmethod
    def compute(self, samples: Samples) -> Iterator[tuple[str, float]]:
        """Yields (name, value) pairs; ValueError when the samples lack something, naming the option to change."""

    def standard_errors(self) -> dict[str, float]:
        """Standard errors of the scores that :meth:`compute` has just given, by their names; most metrics have none."""
        return {}

    def publish(self, folder: str | Path) -> list[Path]:
        """Writes into ``folder``, beside the scores that :meth:`compute` has just given, what they were made of.

        Returns:
            The files, such as GenEval's ``results.jsonl``; most metrics write none.
        """
        return []

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """The metric's settings, JSON-able; keys that are fields of ``Fingerprint`` mean the same."""

    def fingerprint_of(self, samples: Samples) -> dict[str, Any]:
        """The settings with the set sizes and the reference's name and hash."""
        return {**self.fingerprint(), **describe(samples)}


class DistributionMetrics(Metric):
    """Frechet distance, precision, recall, density and coverage on one feature network."""

    def __init__(
        self,
        features: FeatureExtractor,
        k: int = 5,
        preset: str | None = None,
        batch_size: int = 64,
        name: str | None = None,
    ) -> None:
        """Settings.

        Args:
            features: the feature network; its name is part of the fingerprint.
            k: neighbour that gives the radius of precision, recall, density and coverage.
            preset: a published way to compute those four instead ("imagenet_t2i", "dgm_eval", "synthreal"; see
                ``t2ikit.metrics.prdc.PRESETS``), which brings its own k.
            batch_size: images a pass of the feature network.
            name: put before the scores' names, where a snapshot has two of these (``dinov2/frechet_distance``).
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
        self._reference: tuple[str, Tensor] | None = None

    def compute(self, samples: Samples) -> Iterator[tuple[str, float]]:
        """Yields frechet_distance, precision, recall, density, coverage.

        Raises:
            ValueError: no reference, too few images (num_images) or reference images, features that are not finite.
        """
        chunks = 1 if self.preset is None else PRESETS[self.preset].chunks
        reference = need_reference(samples, (self.k + 2) * chunks, f"k={self.k}")
        real = self._reference_features(reference)
        fake = extract(self.features, samples.images, self.batch_size, "generated")
        yield "frechet_distance", Moments.of(real).distance(Moments.of(fake))
        yield from (prdc(real, fake, self.k) if self.preset is None else prdc_preset(real, fake, self.preset)).items()

    def _reference_features(self, reference: Tensor) -> Tensor:
        """Features of the reference, kept for the next snapshot of the same set."""
        key = images_sha256(reference)
        if self._reference is None or self._reference[0] != key:
            self._reference = (key, extract(self.features, reference, self.batch_size, "reference"))
        return self._reference[1]

    def fingerprint(self) -> dict[str, Any]:
        """Features, resize, k and preset."""
        return {**self.features.fingerprint(), "k": self.k, "preset": self.preset}


def need_reference(samples: Samples, least: int, reason: str = "the metric") -> Tensor:
    """The reference images; ValueError when there are none, or when either set has fewer than ``least`` images."""
    if samples.reference is None:
        raise ValueError(f"{reason} needs reference images: give the snapshot a reference set")
    if len(samples) < least:
        raise ValueError(f"{len(samples)} generated images, but {reason} needs at least {least}: raise num_images")
    if len(samples.reference) < least:
        raise ValueError(
            f"{len(samples.reference)} reference images, but {reason} needs at least {least}: "
            "take a larger reference set (num_images)"
        )
    return samples.reference


def describe(samples: Samples) -> dict[str, Any]:
    """The part of a fingerprint that the samples give: set sizes, name and hash of the reference."""
    described: dict[str, Any] = {"num_images": len(samples)}
    if samples.reference is not None:
        described["reference"] = samples.reference_name or None
        described["reference_sha256"] = images_sha256(samples.reference)
        described["num_reference"] = len(samples.reference)
    return described


def extract(features: FeatureExtractor, images: Tensor, batch_size: int, what: str = "generated") -> Tensor:
    """Features [N, D] float32 on the CPU of images [N, 3, H, W] uint8, batch by batch.

    Raises:
        ValueError: the features of an image are not finite; the message names the image's index.
    """
    rows = []
    for start in range(0, len(images), batch_size):
        batch = features(images[start : start + batch_size]).detach().to("cpu", torch.float32)
        broken = (~batch.isfinite().all(dim=1)).nonzero()
        if len(broken):
            raise ValueError(
                f"{features.name} gives features that are not finite for {what} image {start + int(broken[0])}"
            )
        rows.append(batch)
    return torch.cat(rows) if rows else torch.empty(0, features.dim)
