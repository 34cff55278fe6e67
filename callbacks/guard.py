"""Stops a run whose loss is no longer finite, and says where it happened."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor


class NonFiniteGuard(L.Callback):
    """Watches every loss on the device and looks at the verdict every few steps, so that no step waits for the host.

    Args:
        every_n_steps: optimizer steps between two looks; every checkpoint looks as well, so none is written after the
            loss broke.

    Raises:
        FloatingPointError: names the step and the records of the first batch with a non-finite loss.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"callbacks.guard: every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._broken: Tensor | None = None
        self._step: Tensor | None = None
        self._rows: Tensor | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss_B = outputs["loss_B"]
        rows = torch.stack([outputs["source"], outputs["index"], (~torch.isfinite(loss_B)).long()])
        bad = rows[2].any()
        if self._broken is None or self._rows is None or self._rows.shape != rows.shape:
            self.check(trainer)
            self._broken = torch.zeros_like(bad)
            self._step = torch.zeros_like(rows[0, 0])
            self._rows = rows
        assert self._step is not None
        first = bad & ~self._broken
        self._rows = torch.where(first, rows, self._rows)
        self._step = torch.where(first, trainer.global_step, self._step)
        self._broken = self._broken | bad
        if trainer.global_step % self.every_n_steps == 0:
            self.check(trainer)

    def check(self, trainer: L.Trainer) -> None:
        """Looks at the verdict; one host sync."""
        if self._broken is None or self._rows is None or self._step is None or not bool(self._broken):
            return
        names = trainer.datamodule.source_names
        records = [f"{names[source]}[{index}]" for source, index, broken in self._rows.T.tolist() if broken]
        raise FloatingPointError(
            f"the loss is not finite at optimizer step {int(self._step)}; records (source[index]): "
            f"{', '.join(records)}. "
            "The last checkpoint is from before; lower the learning rate or trainer.gradient_clip_val, or look at "
            "these records with `t2ikit prepare check`"
        )

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.check(trainer)
