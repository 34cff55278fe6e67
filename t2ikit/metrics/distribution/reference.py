"""What generated images are compared with: reference images, or their statistics from a file.

Shape legend::

    M  reference images    H, W  pixels    D  features

A file of statistics holds mean and covariance sums (float64), the features themselves unless they were left out, and a
fingerprint: network, hash of its weights, pixel pipeline, name, hash and size of the set. Statistics of another network
or set are refused, so a score from a file has the fingerprint of the same score from the images.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from t2ikit.files import partial_of, publish
from t2ikit.metrics.base import Metric, Samples, describe, extract, need_images
from t2ikit.metrics.distribution.frechet import Moments
from t2ikit.metrics.features.features import FeatureExtractor, check_images

OPTION = "reference_statistics"


@dataclass(frozen=True)
class ReferenceStatistics:
    """Of one reference set under one network.

    Attributes:
        moments: mean and covariance, with the fingerprint of the set.
        features: [M, D] float32, or None where they were not kept.
    """

    moments: Moments
    features: Tensor | None

    def save(self, path: str | Path) -> None:
        """Writes one ``.npz``, whole or not at all; ``Moments.load`` reads it, too."""
        file = Path(path)
        arrays = self.moments.arrays()
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_of(file)
        try:
            with partial.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
            publish(partial, file)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> ReferenceStatistics:
        """From a file of ``save``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it holds no statistics, or features of another number than its moments.
        """
        moments = Moments.load(path)
        with np.load(path, allow_pickle=False) as stored:
            features = torch.from_numpy(stored["features"]) if "features" in stored.files else None
        if features is not None and features.shape != (moments.count, moments.dim):
            raise ValueError(
                f"{path} has features {tuple(features.shape)} for moments of {moments.count} images: write it again"
            )
        return cls(moments, features)


class Reference:
    """The reference set of a metric: that of the samples, whose features are computed once, or that of a file."""

    def __init__(self, features: FeatureExtractor, batch_size: int, path: str | None = None) -> None:
        """Settings.

        Args:
            features: the network.
            batch_size: images a pass of it.
            path: file of statistics; None takes the reference images of the samples.

        Raises:
            FileNotFoundError: no such file.
        """
        self.features = features
        self.batch_size = batch_size
        self.path = None if path is None else Path(path).expanduser()
        if self.path is not None and not self.path.is_file():
            raise FileNotFoundError(
                f"no reference statistics {self.path}: set {OPTION} to a file of t2ikit.metrics.write_reference"
            )
        self._sha256: str | None = None  # of the images that the statistics are of
        self._statistics: ReferenceStatistics | None = None

    def check(self, samples: Samples, least: int, reason: str) -> None:
        """Refuses samples that cannot be compared.

        Args:
            samples: the generated images, with their reference if they have one.
            least: fewest images that either set may have.
            reason: what needs so many, for messages.

        Raises:
            ValueError: no reference, or too few images.
        """
        if self.path is None and samples.reference is None:
            raise ValueError(
                f"{reason} needs reference images: give the snapshot a reference set (reference), or the metric a file "
                f"({OPTION})"
            )
        need_images(len(samples), least, reason)
        if self.path is not None:
            need_images(self._load().moments.count, least, reason, "reference")
        elif samples.reference is not None:
            need_images(len(samples.reference), least, reason, "reference")

    def lacks_features(self, samples: Samples) -> bool:
        """Whether the networks must look at the reference images: not where a file or an earlier call did."""
        return self.path is None and (self._statistics is None or self._sha256 != samples.reference_sha256)

    def observe(self, part: Samples) -> Tensor:
        """Features [M, D] of reference images, which stand in the place of the generated ones."""
        return extract(self.features, part, self.batch_size, "reference")

    def keep(self, samples: Samples, rows: Tensor) -> None:
        """Keeps features [M, D] as those of the reference of ``samples``."""
        assert self.path is None and samples.reference is not None
        self._sha256, self._statistics = samples.reference_sha256, ReferenceStatistics(Moments.of(rows), rows)

    def write(self, path: Path, samples: Samples) -> None:
        """Writes what was kept of the reference of ``samples``, with features and fingerprint: a file for ``path``."""
        rows = self.statistics(samples).features
        assert rows is not None and self.path is None
        described = {**self.features.fingerprint(), **describe(samples)}
        del described["num_images"]
        moments = Moments(self.features.dim, described)
        moments.update(rows)
        ReferenceStatistics(moments, rows).save(path)

    def statistics(self, samples: Samples) -> ReferenceStatistics:
        """The reference's statistics; ValueError for those of another network or set, naming the field."""
        if self.path is not None:
            return self._of_file(samples)
        if self.lacks_features(samples):
            assert samples.reference is not None
            self.keep(samples, self.observe(Samples(samples.reference, device=samples.device)))
        assert self._statistics is not None
        return self._statistics

    def features_of(self, samples: Samples, reason: str) -> Tensor:
        """The reference's features [M, D]; ValueError as `statistics`, and where a file was written without them."""
        found = self.statistics(samples)
        if found.features is None:
            raise ValueError(f"{self.path} holds no features, which {reason} needs: write it with keep_features=True")
        return found.features

    def describe(self, samples: Samples) -> dict[str, Any]:
        """The part of a fingerprint that the samples and the reference give."""
        described = describe(samples)
        if self.path is not None and samples.reference is None:
            stored = self._load().moments.fingerprint
            described |= {key: stored.get(key) for key in ("reference", "reference_sha256", "num_reference")}
        return described

    def _load(self) -> ReferenceStatistics:
        assert self.path is not None
        if self._statistics is None:
            self._statistics = ReferenceStatistics.load(self.path)
        return self._statistics

    def _of_file(self, samples: Samples) -> ReferenceStatistics:
        found = self._load()
        stored = found.moments.fingerprint
        wanted: dict[str, Any] = dict(self.features.fingerprint())
        if samples.reference is not None:
            described = describe(samples)
            wanted |= {key: described[key] for key in ("num_reference", "reference_sha256")}
        lacking = [key for key in ("reference", "reference_sha256", "num_reference") if key not in stored]
        if lacking:
            raise ValueError(f"{self.path} does not say which set it is of ({', '.join(lacking)}): write it again")
        # Through JSON, as the stored ones went.
        for key, value in json.loads(json.dumps(wanted)).items():
            if stored.get(key) != value:
                raise ValueError(
                    f"the statistics of {self.path} ({OPTION}) differ in {key}: {stored.get(key)!r} there, {value!r} "
                    "here; write them again with this network and set"
                )
        if stored["num_reference"] != found.moments.count or found.moments.dim != self.features.dim:
            raise ValueError(
                f"{self.path} holds moments of {found.moments.count} images and {found.moments.dim} features, its "
                f"fingerprint says {stored['num_reference']} and the network {self.features.dim}: write it again"
            )
        return found


class ComparedMetric(Metric):
    """A metric that compares the features of the generated images with those of a reference set.

    Attributes:
        features: the network.
        reference: the other set.
    """

    def __init__(
        self, features: FeatureExtractor, batch_size: int, name: str | None, reference_statistics: str | None
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        self.features = features
        self.batch_size = batch_size
        self.name = name
        self.reference = Reference(features, batch_size, reference_statistics)

    def observe(self, part: Samples) -> Tensor:
        """Features [N, D] float32."""
        return extract(self.features, part, self.batch_size)

    def fingerprint(self) -> dict[str, Any]:
        """The network, the hash of its weights, the pixel pipeline."""
        return self.features.fingerprint()

    def fingerprint_of(self, samples: Samples) -> dict[str, Any]:
        """The settings with the set sizes and the reference's name and hash, of images or of the saved statistics."""
        return {**self.fingerprint(), **self.reference.describe(samples)}


def write_reference(
    path: str | Path,
    features: FeatureExtractor,
    images: Tensor,
    name: str,
    batch_size: int = 64,
    keep_features: bool = True,
) -> dict[str, Any]:
    """Writes the statistics of a reference set under one network.

    Args:
        path: ``.npz``.
        features: the network.
        images: [M, 3, H, W] uint8, two or more.
        name: of the set ("ImageNet val 256"), for the fingerprint.
        batch_size: images a pass of the network.
        keep_features: also the features themselves, 4 M D bytes, which precision, recall, density, coverage, CMMD and
            KID need; without them the file is for Frechet distances only.

    Returns:
        The fingerprint.

    Raises:
        ValueError: images of another type, fewer than two, or features that are not finite.

    Example:
        ``write_reference("val_dinov2.npz", DINOv2Features(), real_images(data, "val"), "ImageNet val 256")``
    """
    check_images(images)
    if len(images) < 2:
        raise ValueError(f"statistics of {len(images)} images: two or more are needed")
    described = describe(Samples(images[:0], reference=images, reference_name=name))
    fingerprint = {**features.fingerprint(), **described}
    del fingerprint["num_images"]
    moments = Moments(features.dim, fingerprint)
    rows = []
    for start in tqdm(range(0, len(images), batch_size), f"features of {name}", unit="batch", mininterval=1.0):
        part = extract(features, Samples(images[start : start + batch_size], first=start), batch_size, "reference")
        moments.update(part)
        if keep_features:
            rows.append(part)
    ReferenceStatistics(moments, torch.cat(rows) if keep_features else None).save(path)
    return fingerprint
