"""The metric contract: images and what they were made from in, pairs (name, value) out.

Shape legend::

    N  generated images    M  reference images    H, W  pixels    D  features
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2ikit.metrics.features import FeatureExtractor, check_images
from t2ikit.metrics.fingerprint import images_sha256


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

    @cached_property
    def reference_sha256(self) -> str | None:
        """Hash of the reference images: computed once for all metrics, since 50,000 of 256 pixels are 10 GB."""
        return None if self.reference is None else images_sha256(self.reference)


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


def need_images(count: int, least: int, reason: str, what: str = "generated") -> None:
    """ValueError when a set of ``count`` images has fewer than ``least``; ``reason`` says what needs them."""
    if count < least:
        remedy = "raise num_images" if what == "generated" else "take a larger reference set (num_images)"
        raise ValueError(f"{count} {what} images, but {reason} needs at least {least}: {remedy}")


def describe(samples: Samples) -> dict[str, Any]:
    """The part of a fingerprint that the samples give: set sizes, name and hash of the reference."""
    described: dict[str, Any] = {"num_images": len(samples)}
    if samples.reference is not None:
        described["reference"] = samples.reference_name or None
        described["reference_sha256"] = samples.reference_sha256
        described["num_reference"] = len(samples.reference)
    return described


def extract(
    features: FeatureExtractor, images: Tensor, batch_size: int, what: str = "generated", first: int = 0
) -> Tensor:
    """Features [N, D] float32 on the CPU of images [N, 3, H, W] uint8, batch by batch.

    Args:
        features: the network.
        images: the images.
        batch_size: images a pass.
        what: "generated" or "reference", for messages.
        first: number of the first image, for messages.

    Raises:
        ValueError: the features of an image are not finite; the message names the image's index.
    """
    rows = []
    for start in range(0, len(images), batch_size):
        batch = features(images[start : start + batch_size]).detach().to("cpu", torch.float32)
        if batch.shape != (len(images[start : start + batch_size]), features.dim):
            raise ValueError(
                f"{features.name} gives features {tuple(batch.shape)}, not [B, {features.dim}]: set its dim"
            )
        broken = (~batch.isfinite().all(dim=1)).nonzero()
        if len(broken):
            raise ValueError(
                f"{features.name} gives features that are not finite for {what} image {first + start + int(broken[0])}"
            )
        rows.append(batch)
    return torch.cat(rows) if rows else torch.empty(0, features.dim)
