"""Copies of training photos among generated images: those that are nearer to a photo than photos are to each other.

Shape legend::

    N  real training images    M  generated images    H  held-out images    D  features    K  nearest kept of each
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ikit.metrics.distribution.nearest import Nearest

_BLOCK = 2**24  # similarities held at a time


@dataclass(frozen=True)
class Copies:
    """The nearest training and held-out image of every generated one, by cosine distance.

    Attributes:
        threshold: a copy is nearer to a training image than this.
        train, held_out: distances [M] float32.
        train_index, held_out_index: [M] int64, which image that is.
    """

    threshold: float
    train: Tensor
    train_index: Tensor
    held_out: Tensor
    held_out_index: Tensor

    @property
    def flags(self) -> Tensor:
        """[M] bool: nearer to a training image than to every held-out one, and nearer than the threshold."""
        return (self.train < self.held_out) & (self.train < self.threshold)

    @property
    def share(self) -> float:
        """Of generated images that are copies."""
        return float(self.flags.double().mean())


def share_of_copies(real: Tensor, fake: Tensor, quantile: float = 0.01) -> float:
    """The share of generated images that count as copies of a real one.

    An image is one where its cosine distance to the nearest real image is below the ``quantile`` of the distances of
    real images to their nearest other real image. Of images of the very law of the real ones, about that share is.

    Args:
        real: [N, D] features of the real training images.
        fake: [M, D] features of generated ones.
        quantile: of the real distances.

    Raises:
        ValueError: fewer than two real rows, or other widths.

    Example:
        >>> real = torch.eye(4)
        >>> share_of_copies(real, torch.cat([real[:1], -torch.ones(3, 4)]))
        0.25
    """
    if len(real) < 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"copies need features of one width, two real rows; got {tuple(real.shape)}, {tuple(fake.shape)}"
        )
    real, fake = unit_rows(real), unit_rows(fake)
    threshold = copy_threshold(real, [real], quantile)
    return float((_nearest(fake, [real], 1).values[:, 0] < threshold).double().mean())


def find_copies(fake: Tensor, train: Iterable[Tensor], held_out: Tensor, threshold: float) -> Copies:
    """Which generated images are copies: nearer to a training image than to held-out ones and than the threshold.

    Args:
        fake: [M, D] of length one, see :func:`unit_rows`.
        train: all training images in blocks of rows, of length one, each read once.
        held_out: [H, D] of length one.
        threshold: cosine distance, see :func:`copy_threshold`.
    """
    nearest, other = _nearest(fake, train, 1), _nearest(fake, [held_out], 1)
    return Copies(threshold, nearest.values[:, 0], nearest.columns[:, 0], other.values[:, 0], other.columns[:, 0])


def copy_threshold(rows: Tensor, real: Iterable[Tensor], quantile: float) -> float:
    """The ``quantile`` of the cosine distances of real images to their nearest other one.

    Args:
        rows: of length one, those of the real images whose distances are taken: all, or some of them.
        real: all real images in blocks of rows, of length one, each read once.
        quantile: in (0, 1].
    """
    among = _nearest(rows, real, 2).values[:, 1]  # the nearest is the row itself, or a duplicate of it
    return float(among.sort().values[max(0, math.ceil(quantile * len(among)) - 1)])


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length one, float32."""
    return torch.nn.functional.normalize(rows.double(), dim=1).float()


def _nearest(rows: Tensor, blocks: Iterable[Tensor], count: int) -> Nearest:
    """Cosine distances [M, K] of every row to its nearest rows of all blocks, the smallest first."""
    nearest, column = Nearest(len(rows), count, rows.device), 0
    for block in blocks:
        step = max(1, _BLOCK // len(block))
        for start in range(0, len(rows), step):
            nearest.add(1.0 - rows[start : start + step] @ block.T, start, column)
        column += len(block)
    return nearest
