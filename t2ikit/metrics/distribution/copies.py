"""Copies of training photos among generated images: those that are nearer to a photo than photos are to each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from t2ikit.metrics.distribution.nearest import Nearest

_BLOCK = 2**24  # similarities held at a time


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
    real, fake = (torch.nn.functional.normalize(rows.double(), dim=1).float() for rows in (real, fake))
    among = _nearest(real, real, 2)[:, 1]  # the nearest is the row itself, or a duplicate of it
    threshold = among.sort().values[max(0, math.ceil(quantile * len(among)) - 1)]
    return float((_nearest(fake, real, 1)[:, 0] < threshold).double().mean())


def _nearest(rows: Tensor, others: Tensor, count: int) -> Tensor:
    """Cosine distances [N, count] of every row to its nearest others, the smallest first."""
    nearest = Nearest(len(rows), count, rows.device)
    step = max(1, _BLOCK // len(others))
    for start in range(0, len(rows), step):
        nearest.add(1.0 - rows[start : start + step] @ others.T, start, 0)
    return nearest.values
