"""How many generated images are copies of training images, beside the held-out images that nobody could copy.

Shape legend::

    M  generated images    N  training images    H  held-out images    D  features
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2ikit.files import parse_json, write_whole
from t2ikit.metrics.base import Result, Rows, Samples
from t2ikit.metrics.distribution.copies import Copies, copy_threshold, find_copies, unit_rows
from t2ikit.metrics.distribution.reference import ComparedMetric
from t2ikit.metrics.features.stored import StoredFeatures
from t2ikit.pictures import Images, image_grid, png

PAIRS = "nearest_pairs.png"
_ROWS = 10_000  # training images whose distances to all others give the threshold: all pairs of a million take days
_ACROSS = 8


@dataclass(eq=False)
class TrainingCopies(ComparedMetric):
    """The share of generated images that are copies of a training image.

    A copy is nearer, by the cosine distance of features, to a training image than to every held-out image, and nearer
    than the threshold of ``t2ikit.metrics.distribution.copies.share_of_copies``. Of images of the very law of the
    training images, at most about the share ``quantile`` are copies, however many training images there are. The
    reference of the samples are the held-out images.

    Attributes:
        training: features of the training images; :meth:`look_at_training` comes before the score.
        images: the training images themselves, for the picture of the nearest pairs.
        identity: name, hash and number of the training images, for the fingerprint.
        quantile: of the distances of training images to each other, which is the threshold.
        pairs: images in the picture.
    """

    training: StoredFeatures = field(kw_only=True)
    images: Images = field(kw_only=True)
    identity: dict[str, Any] = field(kw_only=True)
    quantile: float = field(default=0.01, kw_only=True)
    pairs: int = field(default=16, kw_only=True)
    less_is_better = ("copies",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.statistics_file = None  # those of the training images are of no use to other metrics

    def least(self) -> tuple[int, str]:
        """One of each."""
        return 1, "the share of copies"

    def sets(self, samples: Samples) -> list[Samples]:
        """The held-out images and the generated ones."""
        assert samples.reference is not None  # check() has refused the samples
        return [samples.reference, samples]

    def look_at_training(self, device: torch.device) -> None:
        """Computes the features of training images that are not there yet; every rank must call it."""
        try:
            self.training.fill(device)
        finally:
            self.offload()

    def score(self, samples: Samples, rows: Rows) -> Result:
        """``copies``, with its binomial standard error unless all or none are.

        Files: the nearest pairs as a picture, all distances as a table.
        """
        device = samples.device
        fake, held_out = unit_rows(torch.as_tensor(rows)), unit_rows(self.reference_features(samples))
        widths = {block.shape[1] for block in self.training.blocks()}
        if widths != {fake.shape[1]}:
            raise ValueError(f"{self.training.folder} holds features of another network: remove this folder")
        copies = find_copies(fake.to(device), self._blocks(device), held_out.to(device), self.threshold(device))
        share = copies.share
        errors = {"copies": math.sqrt(share * (1.0 - share) / len(fake))} if 0.0 < share < 1.0 else {}
        files = {PAIRS: png(self._picture(samples, copies)), "nearest.csv": _table(copies)}
        return Result({"copies": share}, errors, files)

    def fingerprint_of(self, samples: Samples) -> dict[str, Any]:
        """The settings with the held-out images, the training images and the quantile."""
        return {**super().fingerprint_of(samples), **self.identity, "quantile": self.quantile}

    def threshold(self, device: torch.device) -> float:
        """Cosine distance below which an image may be a copy; kept beside the features."""
        path = self.training.folder / f"threshold-{self.quantile:g}.json"
        try:
            return float(parse_json(path.read_text(encoding="utf-8"))["threshold"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # not there yet, or damaged
            count = self.training.count
            chosen = sorted({index * count // min(count, _ROWS) for index in range(min(count, _ROWS))})
            rows = unit_rows(self.training.rows(chosen)).to(device)
            threshold = float(copy_threshold(rows, self._blocks(device), self.quantile))
            write_whole(path, json.dumps({"threshold": threshold}))
            return threshold

    def _blocks(self, device: torch.device) -> Iterator[Tensor]:
        return (unit_rows(block).to(device) for block in self.training.blocks())

    def _picture(self, samples: Samples, copies: Copies) -> Tensor:
        """Generated images that are nearest to a training image; below each that one, and its nearest held-out image.

        Copies come first.
        """
        assert samples.reference is not None
        shown = np.lexsort((copies.train.cpu().numpy(), ~copies.flags.cpu().numpy()))[: self.pairs].tolist()
        sides = (
            (samples.images, shown),
            (self.images, copies.train_index[shown].tolist()),
            (samples.reference.images, copies.held_out_index[shown].tolist()),
        )
        lines, across = [], min(_ACROSS, len(shown))
        for start in range(0, len(shown), across):
            for images, indices in sides:
                line = _brought(images, indices[start : start + across], samples.images.shape[2:])
                white = torch.full((across - len(line), *line.shape[1:]), 255, dtype=torch.uint8)
                lines.append(torch.cat([line, white]))
        return image_grid(torch.cat(lines), across)


def _brought(images: Images, indices: Sequence[int], size: Sequence[int]) -> Tensor:
    """Some images [n, 3, H, W] uint8, of the size (H, W)."""
    chosen = images[list(indices)]
    if tuple(chosen.shape[2:]) == tuple(size):
        return chosen
    scaled = torch.nn.functional.interpolate(chosen.float(), tuple(size), mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)


def _table(copies: Copies) -> bytes:
    """A line an image: its nearest training and held-out image, the distances, whether it is a copy."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "train_index", "train_distance", "held_out_index", "held_out_distance", "copy"])
    columns = (copies.train_index, copies.train, copies.held_out_index, copies.held_out, copies.flags.long())
    for image, row in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        writer.writerow([image, *row])
    return text.getvalue().encode()
