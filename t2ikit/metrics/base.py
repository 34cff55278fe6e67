"""The metric contract: images and what they were made from in, values with their errors and files out.

A metric works in two steps, so that a set can be spread over processes: ``observe`` looks at images one by one, with
the networks (features, detections, answers), and ``score`` turns the rows of all of them into a ``Result``.

Shape legend::

    N  generated images    M  reference images    H, W  pixels
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from t2ikit.metrics.features.features import NetworkHolder, check_images
from t2ikit.metrics.fingerprint import images_sha256
from t2ikit.prompts import Prompt

CPU = torch.device("cpu")

MORE_GENERATED = "raise prompts.limit of the snapshot, or --limit of t2ikit evaluate"
MORE_REFERENCE = "raise reference_limit of the snapshot, or take a larger reference set"
MORE_IMAGES = f"for generated images {MORE_GENERATED}; for the reference {MORE_REFERENCE}"

Rows = Tensor | list[Any]
"""What a metric sees of images, one row an image, in their order: a tensor on the CPU or any objects."""


@dataclass(frozen=True)
class Result:
    """What a metric says of one set of images.

    Attributes:
        values: score name -> value.
        errors: score name -> standard error, for the scores that have one.
        files: file name -> content, what the values were made of (GenEval's verdicts, answers); the caller writes them.
    """

    values: Mapping[str, float]
    errors: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass
class Samples:
    """The images of one snapshot, or a part of them, with what they were made from, row by row.

    Attributes:
        images: [N, 3, H, W] uint8, on the CPU.
        prompts: N prompts.
        metadata: N JSON-able dicts (GenEval's, or the record's).
        reference: [M, 3, H', W'] uint8 real images, or None for metrics that need none.
        reference_name: the reference set's name, for the fingerprint.
        device: where networks look at the images.
        first: index of the first image, where these are a part of a set.
        kind: "generated" or "reference", for messages.
        rows: what metrics saw of the images, by `Metric.rows_key`.
        reference_rows: what metrics saw of the reference images, by `Metric.reference_key`, and what they computed of
            it. Give the same mapping with every set that has this reference, so that no network looks at it twice.
    """

    images: Tensor
    prompts: list[str] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    reference: Tensor | None = None
    reference_name: str = ""
    device: torch.device = CPU
    first: int = 0
    kind: str = "generated"
    rows: dict[Hashable, Rows] = field(default_factory=dict, repr=False)
    reference_rows: dict[Hashable, Any] = field(default_factory=dict, repr=False)

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

    def describe_reference(self) -> dict[str, Any]:
        """The part of a fingerprint that the reference gives: its name, hash and size; nothing without one."""
        if self.reference is None:
            return {}
        return {
            "reference": self.reference_name or None,
            "num_reference": len(self.reference),
            "reference_sha256": self.reference_sha256,
        }

    def batches(self, size: int, what: str) -> Iterator[Samples]:
        """Parts of at most ``size`` images, these on the device; a bar (of a set's first part) names ``what``."""
        with tqdm(total=len(self), desc=what, unit="img", leave=False, disable=self.first > 0, mininterval=1.0) as bar:
            for start in range(0, len(self), size):
                rows, first = slice(start, start + size), self.first + start
                images = self.images[rows].to(self.device, non_blocking=True)
                yield Samples(images, self.prompts[rows], self.metadata[rows], device=self.device, first=first)
                bar.update(len(images))


def samples_of(images: Tensor, prompts: Sequence[Prompt], device: torch.device = CPU, first: int = 0) -> Samples:
    """Images [N, 3, H, W] with the prompts that they were made from; ``device`` and ``first`` as in `Samples`."""
    texts, metadata = [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts]
    return Samples(images, texts, metadata, device=device, first=first)


class Metric(NetworkHolder, ABC):
    """Scores of one set of images. Holds settings and networks, never results; needs no Lightning and no data set.

    Attributes:
        name: put before the names of its scores (``<name>/<score>``), so that two of a kind can read the same images.
        unit: of its scores, such as "percent"; empty for numbers without one.
        less_is_better: names of its scores (without ``name``) of which a smaller value is better, such as distances.
        statistics_file: name of the file that `write_statistics` fills. None: the metric does not compare the images
            with those of a reference, so nobody calls `observe` on these.

    Example:
        >>> class Brightness(Metric):
        ...     def observe(self, part):
        ...         return part.images.double().mean((1, 2, 3))
        ...
        ...     def score(self, samples, rows):
        ...         return Result({"brightness": float(rows.mean())})
        ...
        ...     def fingerprint(self):
        ...         return {}
        >>> Brightness().compute(Samples(torch.full((2, 3, 4, 4), 7, dtype=torch.uint8))).values
        {'brightness': 7.0}
    """

    name: str | None = None
    unit: str = ""
    less_is_better: Sequence[str] = ()
    statistics_file: str | None = None

    def check(self, samples: Samples) -> None:
        """Refuses samples that lack something; called before the images are sampled.

        Args:
            samples: with images of no content and of any size, but as many as there will be.

        Raises:
            ValueError: what is missing, and the option to change.
        """

    def observe(self, part: Samples) -> Rows:
        """What is seen of each image by itself, one row an image; by default nothing.

        Every process calls it on its own part of the images, so a row must not depend on the other images. Rows are
        sent to the first process: let them be small.

        Args:
            part: consecutive images of a set, without the reference.
        """
        return [None] * len(part)

    def rows_key(self) -> Hashable:
        """What the rows depend on besides the images: metrics of one key share them. By default none does."""
        return self._key_of_no_other

    def reference_key(self, samples: Samples) -> Hashable:
        """The key of ``samples.reference_rows`` under which the rows of its reference images are kept."""
        return self.rows_key(), samples.reference_sha256

    def lacks_reference(self, samples: Samples) -> bool:
        """Whether `observe` must still see the reference images of the samples, before `score` is called."""
        if self.statistics_file is None or samples.reference is None:
            return False
        return self.reference_key(samples) not in samples.reference_rows

    @cached_property
    def _key_of_no_other(self) -> object:
        return object()  # not id(self), which a later metric may get when this one is gone

    @abstractmethod
    def score(self, samples: Samples, rows: Rows) -> Result:
        """The scores of a set of images.

        Args:
            samples: all images, with the rows of the reference where the metric compares with one.
            rows: what ``observe`` gave for them.
        """

    def compute(self, samples: Samples) -> Result:
        """All of it in this process: checks the samples, looks at them and at their reference, scores them."""
        self.check(samples)
        if self.lacks_reference(samples):
            assert samples.reference is not None
            reference = Samples(samples.reference, device=samples.device, kind="reference")
            samples.reference_rows[self.reference_key(samples)] = self.observe(reference)
        return self.score(samples, self.observe(samples))

    def write_statistics(self, path: Path, samples: Samples) -> None:
        """Writes the statistics of the reference of ``samples``, whose rows are there."""
        raise NotImplementedError(f"{type(self).__name__} compares with no reference")

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """The metric's settings, JSON-able; keys that are fields of ``Fingerprint`` mean the same."""

    def fingerprint_of(self, samples: Samples) -> dict[str, Any]:
        """The settings with the set sizes and the reference's name and hash."""
        return {**self.fingerprint(), "num_images": len(samples), **samples.describe_reference()}


def need_images(count: int, least: int, reason: str, what: str = "generated") -> None:
    """ValueError when a set of ``count`` images has fewer than ``least``; ``reason`` says what needs them."""
    if count < least:
        remedy = MORE_GENERATED if what == "generated" else MORE_REFERENCE
        raise ValueError(f"{count} {what} images, but {reason} needs at least {least}: {remedy}")


def join(parts: Sequence[Rows]) -> Rows:
    """The rows of consecutive parts as those of the whole; empty parts (of any shape) count for nothing."""
    filled = [part for part in parts if len(part)] or [parts[0]]
    tensors = [part for part in filled if isinstance(part, Tensor)]
    return torch.cat(tensors) if tensors else [row for part in filled for row in part]
