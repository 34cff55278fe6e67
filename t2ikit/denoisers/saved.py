"""A trained network as an experiment names it: by its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SavedDenoiser:
    """A denoiser that is still in its checkpoint: a name without weights, filled where it is used.

    Attributes:
        checkpoint: a ``step-*.ckpt`` of a run, or its run folder for the newest one.
        weights: "ema" for the averages, "raw" for the weights themselves.
    """

    checkpoint: str
    weights: Literal["ema", "raw"] = "ema"
