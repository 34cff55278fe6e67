"""What generated images are compared with: reference images, or their statistics from a file.

Shape legend::

    N  images of a set    M  reference images    H, W  pixels    D  features

A file of statistics holds mean and covariance sums (float64), the features themselves unless they were left out, and a
fingerprint: network, hash of its weights, pixel pipeline, name, hash and size of the set. Statistics of another network
or set are refused, so a score from a file has the fingerprint of the same score from the images.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2ikit.files import partial_of, publish
from t2ikit.metrics.base import Metric, SampleBatch, Samples, need_images
from t2ikit.metrics.distribution.frechet import Moments
from t2ikit.metrics.features.features import FeatureExtractor

OPTION = "reference_statistics"
REFERENCE_FIELDS = ("reference", "reference_sha256", "num_reference")


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


@dataclass(eq=False)
class ComparedMetric(Metric):
    """A metric that compares the features of the generated images with those of a reference set.

    Attributes:
        features: the feature network; its name is part of the fingerprint.
        batch_size: images a pass of the network; of metrics on one network, the first decides.
        name: put before the scores' names, where a snapshot has two of these (``dinov2/frechet_distance``).
        reference_statistics: file of `write_statistics`, instead of the reference images of the samples. One without
            features serves the Frechet distance alone.
        path: of that file, or None.
    """

    features: FeatureExtractor
    batch_size: int = field(default=64, kw_only=True)
    name: str | None = field(default=None, kw_only=True)
    reference_statistics: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")
        self.path = None if self.reference_statistics is None else Path(self.reference_statistics).expanduser()
        if self.path is None:
            self.statistics_file = re.sub(r"[^A-Za-z0-9.]+", "_", self.features.file_name).strip("_") + ".npz"
        elif not self.path.is_file():
            raise FileNotFoundError(
                f"no reference statistics {self.path}: set {OPTION} to a file that t2ikit evaluate --write-reference "
                "wrote"
            )

    @abstractmethod
    def least(self) -> tuple[int, str]:
        """Fewest images that either set may have, and what needs so many, for messages."""

    def check(self, samples: Samples) -> None:
        """Refuses samples that cannot be compared: without a reference, too few images in a set, or a file of another
        network.
        """
        least, reason = self.least()
        if self.path is None and samples.reference is None:
            raise ValueError(
                f"{reason} needs reference images: give the snapshot a reference set (reference), or the metric a file "
                f"({OPTION})"
            )
        need_images(len(samples), least, reason, remedy=samples.remedy)
        if self.path is not None:
            need_images(self._stored.moments.count, least, reason, "reference")
            self._compare_stored(self.features.fingerprint())
        elif samples.reference is not None:
            need_images(len(samples.reference), least, reason, "reference")

    def rows_key(self) -> Hashable:
        """Network, weights and pixels: metrics that agree in them look once."""
        return json.dumps(self.features.fingerprint(), sort_keys=True)

    def observe(self, batch: SampleBatch) -> Tensor:
        """Features [B, D] float32 on the CPU; ValueError where they are not finite, with the image's index."""
        name = self.features.name
        rows = self.features(batch.images).detach().to("cpu", torch.float32)
        if rows.shape != (len(batch), self.features.dim):
            raise ValueError(f"{name} gives features {tuple(rows.shape)}, not [B, {self.features.dim}]: set its dim")
        broken = (~rows.isfinite().all(dim=1)).nonzero()
        if len(broken):
            index = batch.first + int(broken[0])
            raise ValueError(f"{name} gives features that are not finite for {batch.kind} image {index}")
        return rows

    def reference(self, samples: Samples) -> ReferenceStatistics:
        """The reference's moments and features, from the file or from the rows of the reference images.

        Raises:
            ValueError: a file of another network or set; names the field.
        """
        if self.path is not None:
            return self._checked(samples)
        assert samples.reference is not None
        kept, key = samples.reference.rows, ("statistics", self.rows_key())
        if key not in kept:
            rows = torch.as_tensor(kept[self.rows_key()])
            kept[key] = ReferenceStatistics(Moments.of(rows), rows)
        statistics: ReferenceStatistics = kept[key]
        return statistics

    def reference_features(self, samples: Samples) -> Tensor:
        """The reference's features [M, D]; ValueError where the file was written without them."""
        features = self.reference(samples).features
        if features is None:
            raise ValueError(
                f"{self.path} holds no features, which {type(self).__name__} needs: write it again with "
                "t2ikit evaluate --write-reference"
            )
        return features

    def write_statistics(self, path: Path, samples: Samples) -> None:
        """Writes the statistics of the reference of ``samples``, with features and fingerprint."""
        assert samples.reference is not None
        rows = torch.as_tensor(samples.reference.rows[self.rows_key()])
        moments = Moments(self.features.dim, {**self.features.fingerprint(), **samples.describe_reference()})
        moments.update(rows)
        ReferenceStatistics(moments, rows).save(path)

    def fingerprint(self) -> dict[str, Any]:
        """The network, the hash of its weights, the pixel pipeline."""
        return self.features.fingerprint()

    def fingerprint_of(self, samples: Samples) -> dict[str, Any]:
        """The settings with the set sizes and the reference's name and hash, of images or of the saved statistics."""
        described = super().fingerprint_of(samples)
        if self.path is not None and samples.reference is None:
            stored = self._stored.moments.fingerprint
            described |= {key: stored.get(key) for key in REFERENCE_FIELDS}
        return described

    @cached_property
    def _stored(self) -> ReferenceStatistics:
        """The file."""
        assert self.path is not None
        return ReferenceStatistics.load(self.path)

    def _checked(self, samples: Samples) -> ReferenceStatistics:
        """The file's, if they are of this network and of the reference of the samples."""
        moments = self._stored.moments
        stored = moments.fingerprint
        wanted: dict[str, Any] = {**self.features.fingerprint(), **samples.describe_reference()}
        wanted.pop("reference", None)  # the same images may have two names
        lacking = [key for key in REFERENCE_FIELDS if key not in stored]
        if lacking:
            raise ValueError(f"{self.path} does not say which set it is of ({', '.join(lacking)}): write it again")
        self._compare_stored(wanted)
        if stored["num_reference"] != moments.count or moments.dim != self.features.dim:
            raise ValueError(
                f"{self.path} holds moments of {moments.count} images and {moments.dim} features, its fingerprint says "
                f"{stored['num_reference']} and the network {self.features.dim}: write it again"
            )
        return self._stored

    def _compare_stored(self, wanted: dict[str, Any]) -> None:
        """ValueError where the file says something else than ``wanted``; names the field."""
        stored = self._stored.moments.fingerprint
        for key, value in json.loads(json.dumps(wanted)).items():  # through JSON, as the stored ones went
            if stored.get(key) != value:
                raise ValueError(
                    f"the statistics of {self.path} ({OPTION}) differ in {key}: {stored.get(key)!r} there, {value!r} "
                    "here; write them again with this network and set"
                )
