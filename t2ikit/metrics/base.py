"""The metric contract: images and what they were made from in, values with their errors and files out.

A metric works in two steps, so that a set can be spread over processes: ``observe`` looks at images one by one, with
the networks (features, detections, answers), and ``score`` turns the rows of all of them into a ``Result``.

Shape legend::

    N  generated images    M  reference images    H, W  pixels
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from t2ikit import ranks
from t2ikit.metrics.features.features import NetworkHolder, check_images
from t2ikit.metrics.fingerprint import images_sha256
from t2ikit.pictures import Images
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
    """A set of images with what they were made from, row by row, and what metrics have seen of them.

    The reference is such a set, too. Give one object with every set that is compared with it: no network looks at the
    same object twice.

    Attributes:
        images: [N, 3, H, W] uint8: a tensor on the CPU, or images on disk that are read batch by batch.
        prompts: N prompts.
        metadata: N JSON-able dicts (GenEval's, or the record's).
        reference: real images [M, 3, H', W'], or None for metrics that need none.
        name: of a reference set, for the fingerprint.
        device: where networks look at the images.
        kind: "generated" or "reference", for messages.
        remedy: what makes them more, for messages.
        rows: what metrics saw of the images, by `Metric.rows_key`, and what they computed of it.
    """

    images: Images
    prompts: list[str] = field(default_factory=list)
    metadata: Sequence[dict[str, Any]] = field(default_factory=list)
    reference: Samples | None = None
    name: str = ""
    device: torch.device = CPU
    kind: str = "generated"
    remedy: str = MORE_GENERATED
    rows: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_images(self.images)
        for name, rows in (("prompts", self.prompts), ("metadata", self.metadata)):
            if rows and len(rows) != len(self.images):
                raise ValueError(f"{len(self.images)} images but {len(rows)} {name}: one row an image is needed")

    def __len__(self) -> int:
        return self.images.shape[0]

    @cached_property
    def sha256(self) -> str:
        """Hash of the images: computed once, since 50,000 of 256 pixels are 10 GB."""
        return images_sha256(self.images)

    def describe_reference(self) -> dict[str, Any]:
        """The part of a fingerprint that the reference gives: its name, hash and size; nothing without one."""
        if self.reference is None:
            return {}
        return {
            "reference": self.reference.name or None,
            "num_reference": len(self.reference),
            "reference_sha256": self.reference.sha256,
        }

    def batch(self, start: int, stop: int) -> SampleBatch:
        """Images ``start`` to ``stop - 1``, on the device."""
        rows = slice(start, stop)
        images = self.images[rows].to(self.device, non_blocking=True)
        return SampleBatch(images, self.prompts[rows], self.metadata[rows], start, self.kind)


@dataclass
class SampleBatch:
    """Consecutive images of a set, in memory.

    Attributes:
        images: [B, 3, H, W] uint8, on the device where networks look at them.
        prompts: B prompts, or none.
        metadata: B JSON-able dicts, or none.
        first: index of the first image in the set.
        kind: "generated" or "reference", for messages.
    """

    images: Tensor
    prompts: list[str] = field(default_factory=list)
    metadata: Sequence[dict[str, Any]] = field(default_factory=list)
    first: int = 0
    kind: str = "generated"

    def __len__(self) -> int:
        return len(self.images)


def samples_of(images: Images, prompts: Sequence[Prompt], device: torch.device = CPU) -> Samples:
    """Images [N, 3, H, W] with the prompts that they were made from; ``device`` as in `Samples`."""
    texts, metadata = [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts]
    return Samples(images, texts, metadata, device=device)


def reference_of(
    images: Images, name: str = "", device: torch.device = CPU, metadata: Sequence[dict[str, Any]] = ()
) -> Samples:
    """Real images [M, 3, H, W] to compare others with; the other arguments as in `Samples`."""
    return Samples(images, name=name, device=device, kind="reference", metadata=metadata)


class Metric(NetworkHolder, ABC):
    """Scores of one set of images. Holds settings and networks, never results; needs no Lightning and no data set.

    Attributes:
        name: put before the names of its scores (``<name>/<score>``), so that two of a kind can read the same images.
        unit: of its scores, such as "percent"; empty for numbers without one.
        less_is_better: names of its scores (without ``name``) of which a smaller value is better, such as distances.
        batch_size: images that `observe` gets at a time.
        statistics_file: name of the file that `write_statistics` fills. None: the metric does not compare the images
            with those of a reference, so nobody calls `observe` on these.

    Example:
        >>> class Brightness(Metric):
        ...     def observe(self, batch):
        ...         return batch.images.double().mean((1, 2, 3))
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
    batch_size: int = 64
    statistics_file: str | None = None

    @property
    def title(self) -> str:
        """What the metric is called in the log."""
        return type(self).__name__ if self.name is None else f"{self.name}/{type(self).__name__}"

    def check(self, samples: Samples) -> None:
        """Refuses samples that lack something; called before the images are sampled.

        Args:
            samples: with images of no content and of any size, but as many as there will be.

        Raises:
            ValueError: what is missing, and the option to change.
        """

    def observe(self, batch: SampleBatch) -> Rows:
        """What is seen of each image by itself, one row an image; by default nothing.

        Every process sees the batches of its share of the images, so a row must not depend on the other images. Rows
        are sent to the first process: let them be small.

        Args:
            batch: at most ``batch_size`` images of a set, generated or of a reference.
        """
        return [None] * len(batch)

    def rows_key(self) -> Hashable:
        """What the rows depend on besides the images: metrics of one key share them. By default none does."""
        return self._key_of_no_other

    @cached_property
    def _key_of_no_other(self) -> object:
        return object()  # not id(self), which a later metric may get when this one is gone

    def sets(self, samples: Samples) -> list[Samples]:
        """The sets that `observe` must see: the reference if the metric compares with one, and the images."""
        if self.statistics_file is None or samples.reference is None:
            return [samples]
        return [samples.reference, samples]

    @abstractmethod
    def score(self, samples: Samples, rows: Rows) -> Result:
        """The scores of a set of images.

        Args:
            samples: all images; the rows of a reference are in ``samples.reference.rows[self.rows_key()]``.
            rows: what ``observe`` gave for them.
        """

    def compute(self, samples: Samples) -> Result:
        """All of it in this process: checks the samples, looks at them and at their reference, scores them."""
        self.check(samples)
        key = self.rows_key()
        for seen in self.sets(samples):
            if key not in seen.rows:
                seen.rows[key] = look(self, seen, range(len(seen)))
        return self.score(samples, samples.rows[key])

    def write_statistics(self, path: Path, samples: Samples) -> None:
        """Writes the statistics of the reference of ``samples``, whose rows are there."""
        raise NotImplementedError(f"{type(self).__name__} compares with no reference")

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """The metric's settings, JSON-able; keys that are fields of ``Fingerprint`` mean the same."""

    def fingerprint_of(self, samples: Samples) -> dict[str, Any]:
        """The settings with the set sizes and the reference's name and hash."""
        return {**self.fingerprint(), "num_images": len(samples), **samples.describe_reference()}


def need_images(count: int, least: int, reason: str, what: str = "generated", remedy: str = MORE_GENERATED) -> None:
    """ValueError when a set of ``count`` images has fewer than ``least``; ``reason`` says what needs them."""
    if count < least:
        remedy = remedy if what == "generated" else MORE_REFERENCE
        raise ValueError(f"{count} {what} images, but {reason} needs at least {least}: {remedy}")


def look(metric: Metric, samples: Samples, share: range) -> Rows:
    """What a metric sees of consecutive images of a set, batch by batch behind a progress bar: a row an image.

    All that any metric sees goes through here: generated images, references, pictures of a folder.

    Raises:
        ValueError: ``observe`` gives another number of rows than of images.
        Stopped: a signal to any rank has ended it.
    """
    if type(metric).observe is Metric.observe:
        return [None] * len(share)
    table: Tensor | None = None
    listed: list[Any] = []
    label = f"{metric.title}, {samples.kind}"
    with tqdm(total=len(share), desc=label, unit="img", leave=False, disable=share.start > 0, mininterval=1.0) as bar:
        for start in range(share.start, share.stop, metric.batch_size):
            ranks.stop_if_asked()
            batch = samples.batch(start, min(start + metric.batch_size, share.stop))
            rows = metric.observe(batch)
            if len(rows) != len(batch):
                raise ValueError(
                    f"{metric.title}: observe gives {len(rows)} rows for {len(batch)} images, not one an image"
                )
            if isinstance(rows, Tensor):
                if table is None:  # one block: many small ones between the large ones of a network fragment the memory
                    table = torch.empty(len(share), *rows.shape[1:], dtype=rows.dtype)
                table[start - share.start :][: len(rows)] = rows
            else:
                listed += rows
            bar.update(len(batch))
    return listed if table is None else table


def join(parts: Sequence[Rows]) -> Rows:
    """The rows of consecutive parts as those of the whole; empty parts (of any shape) count for nothing."""
    filled = [part for part in parts if len(part)]
    tensors = [part for part in filled if isinstance(part, Tensor)]
    return torch.cat(tensors) if tensors else [row for part in filled for row in part]
