"""Stops a run whose loss is no longer finite, and says where it happened."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from t2ikit import ranks
from t2ikit.batch import StepOutput


class NonFiniteGuard(L.Callback):
    """Watches every loss on the device and looks at the verdict every few steps, so that no step waits for the host.

    A verdict is that of all ranks: when one meets a loss that is not finite, every rank stops.

    Args:
        every_n_steps: optimizer steps between two looks; every checkpoint looks as well, so none is written after the
            loss broke.

    Raises:
        FloatingPointError: names the optimizer step (1 is the first) and the records of the first batch with a
            non-finite loss, on whichever rank it was.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"callbacks.guard: every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._current = 0
        self._broken: Tensor | None = None
        self._step: Tensor | None = None
        self._rows: Tensor | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # The step that this batch is part of, also where several batches make one step.
        self._current = trainer.global_step + 1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step: StepOutput = outputs["step"]
        rows = torch.stack([step.source, step.index, (~torch.isfinite(step.loss)).long()])
        bad = rows[2].any()
        if self._broken is None or self._rows is None or self._step is None:
            self._broken, self._step, self._rows = torch.zeros_like(bad), torch.zeros_like(rows[0, 0]), rows
        if rows.shape != self._rows.shape:  # a column of padding is no broken record
            width = max(rows.shape[1], self._rows.shape[1])
            rows, self._rows = (F.pad(table, (0, width - table.shape[1])) for table in (rows, self._rows))
        first = bad & ~self._broken
        self._rows = torch.where(first, rows, self._rows)
        self._step = torch.where(first, self._current, self._step)
        self._broken = self._broken | bad
        stepped = trainer.global_step >= self._current
        if stepped and trainer.global_step % self.every_n_steps == 0:
            self.check(trainer)

    def check(self, trainer: L.Trainer) -> None:
        """Looks at the verdict of all ranks; every rank must call it. One host sync."""
        if self._broken is None or self._rows is None or self._step is None:
            return
        if not bool(trainer.strategy.reduce(self._broken.long(), reduce_op="sum")):
            return
        names = trainer.datamodule.source_names
        broken = [batch for batch in ranks.together(self._first_broken) if batch is not None]
        first = min(step for step, _ in broken)
        records = [f"{names[source]}[{index}]" for step, rows in broken if step == first for source, index in rows]
        raise FloatingPointError(
            f"the loss is not finite at optimizer step {first}; records (source[index]): {', '.join(records)}. "
            "The last checkpoint is from before; lower the learning rate or trainer.gradient_clip_val, or look at "
            "these records with `t2ikit prepare check`"
        )

    def _first_broken(self) -> tuple[int, list[tuple[int, int]]] | None:
        """Step and records (source, index) of the first batch of this rank with a loss that is not finite, if any."""
        assert self._broken is not None and self._rows is not None and self._step is not None
        if not bool(self._broken):
            return None
        return int(self._step), [(source, index) for source, index, broken in self._rows.T.tolist() if broken]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.check(trainer)
