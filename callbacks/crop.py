"""Crop: a share of every batch is seen through a window only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from t2ikit import rng
from t2ikit.augment.crop import (
    ASPECTS,
    Aspect,
    coordinates,
    cropped,
    cut,
    sides,
    typical_sizes,
    window_corners,
    window_size,
)
from t2ikit.batch import Batch
from t2ikit.callbacks.augmentation import AugmentationCallback
from t2ikit.data.datamodule import DataModule
from t2ikit.module import TextToImage

_LOOKED_AT = 2**14  # steps; every pair of 31 sides is among them


class Crop(AugmentationCallback):
    """Shows a share of the images through a window of more than half of their side, and tells the denoiser which.

    Appendix F of "How far can we go with ImageNet". Caption, noise level and conditioning drop are those of the whole
    image; the denoiser computes the tokens of the window only, at their places in the whole grid, and the loss is their
    mean. Drawing always asks for the whole image. The windows of an optimizer step have one size, on all devices: two
    dense batches, and no device waits for another.

    The paper says p and "more than 50 % of the resolution"; square windows, their law and the coordinate tokens are
    ours (docs/reproduce.md).

    Args:
        p: share of the images that are cropped, in [0, 1]; exact in the long run, and in every micro-batch where it
            gives a whole number. The slot alone says which ones, whatever the ranks and micro-batches.
        aspect: "square" windows, or "free" ones whose height and width are chosen independently.

    Raises:
        ValueError: p outside [0, 1], an unknown aspect.
    """

    def __init__(self, p: float = 0.5, aspect: Aspect = "square") -> None:
        super().__init__()
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"callbacks.crop: p must lie in [0, 1], got {p}")
        if aspect not in ASPECTS:
            raise ValueError(f"callbacks.crop: aspect must be one of {', '.join(ASPECTS)}, got {aspect!r}")
        self.p = p
        self.aspect: Aspect = aspect
        self._grid = (0, 0)
        self._patch_size = 0
        self._seed = 0
        self._step_slots = 1

    def validate_experiment(self, experiment: Any) -> None:
        """Refuses a denoiser that cannot be told which part of an image it sees."""
        self._look_at(getattr(experiment.model, "denoiser", None))

    def _look_at(self, denoiser: Any) -> None:
        if "window" not in getattr(denoiser, "supports", ()):
            raise ValueError(
                f"callbacks.crop: {type(denoiser).__name__} is not told which part of an image it sees: set "
                "--model.denoiser.window_tokens true"
            )
        self._grid, self._patch_size = denoiser.grid, denoiser.patch_size
        for tokens in self._grid:
            sides(tokens)

    def register(self, data: DataModule, module: TextToImage) -> None:
        self._look_at(module.denoiser)
        self._seed, self._step_slots = module.seed, data.batch_size
        module.add_batch_transform(self.augment)

    def unlike_steps(self) -> Sequence[int]:
        """One step for each of the window's :func:`typical_sizes`."""
        drawn = rng.uniforms(self._seed, "crop size", 0, _LOOKED_AT, 2)
        sizes = [window_size(self._grid, uniforms, self.aspect) for uniforms in drawn]
        return [sizes.index(size) for size in typical_sizes(self._grid, self.aspect) if size in sizes]

    def augment(self, batch: Batch) -> tuple[Batch, ...]:
        if batch.window is not None:
            raise ValueError("callbacks.crop: the batch shows windows already; keep one of the callbacks that crop")
        chosen = cropped(batch.slots, self.p)
        if not chosen.any():
            return (batch,)
        windows = self._cropped(batch.rows(chosen.nonzero()[0]))
        return (windows,) if chosen.all() else (batch.rows((~chosen).nonzero()[0]), windows)

    def _cropped(self, batch: Batch) -> Batch:
        step = int(batch.slots[0]) // self._step_slots
        size = window_size(self._grid, rng.uniforms(self._seed, "crop size", step, 1, 2)[0], self.aspect)
        numbers = rng.uniforms(self._seed, "crop place", batch.slot, len(batch), 2)
        corners = torch.from_numpy(window_corners(self._grid, size, numbers))
        corners = corners.to(batch.latents.device, non_blocking=True)
        latents = cut(batch.latents, corners, size, self._patch_size)
        return replace(batch, latents=latents, window=coordinates(self._grid, size, corners))
