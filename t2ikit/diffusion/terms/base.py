"""The contract of a term: what the main pass gave, to a further loss of every sample.

Shape legend::

    x_t, output, target  [B, C, H, W]      t  [B]      features  [B, N, D], image tokens after a block
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Needs:
    """What an objective or a term reads beyond latents, text and t.

    Attributes:
        arrays: names of arrays of a record, which arrive in ``Batch.extra``.
        taps: blocks of the denoiser, counted from 1, whose image tokens it reads (``Prediction.features``).
    """

    arrays: tuple[str, ...] = ()
    taps: tuple[int, ...] = ()

    def __or__(self, other: Needs) -> Needs:
        """What both need, each once, in rising order."""
        return Needs(
            tuple(sorted({*self.arrays, *other.arrays})),
            tuple(sorted({*self.taps, *other.taps})),
        )


@dataclass
class MainPass:
    """What a term may read.

    Attributes:
        x_t: [B, C, H, W], what the denoiser saw.
        output: [B, C, H, W], what it predicted.
        target: [B, C, H, W], of the process.
        t: [B] in [0, 1].
        features: [B, N, D] by tap, as ``needs.taps`` asked.
        arrays: [B, ...] by name, as ``needs.arrays`` asked; of whole images, also where a window is seen.
        window: [B, 4] x0 y0 x1 y1 in [0, 1], the part of the image that is seen; None = all of it.
    """

    x_t: Tensor
    output: Tensor
    target: Tensor
    t: Tensor
    features: Mapping[int, Tensor]
    arrays: Mapping[str, Tensor]
    window: Tensor | None


class Term(nn.Module, ABC):
    """A loss that is added to the denoising loss. It may own parameters (a projector), and frozen networks.

    Args:
        weight: what it is multiplied by.
        until: optimizer step from which it is off; None = never.

    Attributes:
        needs: arrays of a record and taps of the denoiser that it reads.
        compares_rows: whether a sample's value depends on the other samples of its micro-batch.

    Raises:
        ValueError: ``until`` below 1, or a weight that is not finite.
    """

    needs: Needs = Needs()
    compares_rows: bool = False

    def __init__(self, weight: float = 1.0, until: int | None = None) -> None:
        super().__init__()
        if until is not None and until < 1:
            raise ValueError(f"until must be at least 1, or null for the whole run; got {until}")
        if not math.isfinite(weight):
            raise ValueError(f"weight of a term must be finite, got {weight}")
        self.weight = weight
        self.until = until

    def on(self, step: int) -> bool:
        """Whether it counts after ``step`` optimizer steps."""
        return self.until is None or step < self.until

    @abstractmethod
    def forward(self, main: MainPass) -> Tensor:
        """The term of every sample, [B], before its weight; a pure function of its argument and its weights."""
