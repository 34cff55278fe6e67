"""Losses that are not finite, remembered on the device and looked at every few steps, so that no step waits for it."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from t2ikit import ranks
from t2ikit.batch import StepOutput
from t2ikit.stopping import Diverged


class LateVerdict:
    """The first step with a loss that is not finite, and the rows of its first batch; all on the device."""

    def __init__(self) -> None:
        self._broken: Tensor | None = None
        self._step: Tensor | None = None
        self._rows: Tensor | None = None

    def add(self, step: int, output: StepOutput) -> None:
        """Notes a batch.

        Args:
            step: of the optimizer that it is part of; 1 is the first.
            output: its losses and records.
        """
        rows = torch.stack([output.source, output.index, (~torch.isfinite(output.loss)).long()])
        bad = rows[2].any()
        if self._broken is None or self._rows is None or self._step is None:
            self._broken, self._step, self._rows = torch.zeros_like(bad), torch.zeros_like(rows[0, 0]), rows
        if rows.shape != self._rows.shape:  # a column of padding is no broken record
            width = max(rows.shape[1], self._rows.shape[1])
            rows, self._rows = (F.pad(table, (0, width - table.shape[1])) for table in (rows, self._rows))
        first = bad & ~self._broken
        self._rows = torch.where(first, rows, self._rows)
        self._step = torch.where(first, step, self._step)
        self._broken = self._broken | bad

    def look(self, trainer: L.Trainer) -> None:
        """Looks at the verdict of all ranks; every rank must call it. One host sync.

        Raises:
            Diverged: names the step and its records, on whichever rank it was.
        """
        if self._broken is None or not bool(trainer.strategy.reduce(self._broken.long(), reduce_op="sum")):
            return
        names = trainer.datamodule.source_names
        broken = [batch for batch in ranks.together(self._first) if batch is not None]
        first = min(step for step, _ in broken)
        records = [f"{names[source]}[{index}]" for step, rows in broken if step == first for source, index in rows]
        raise Diverged(
            f"the loss is not finite at optimizer step {first}; records (source[index]): {', '.join(records)}. The "
            "last checkpoint is from before. With --resume last --callbacks.guard.every_n_steps 1 the run stops before "
            "this update and writes a debug bundle for `t2ikit replay`; or lower the learning rate or "
            "trainer.gradient_clip_val, or look at these records with `t2ikit prepare check`"
        )

    def _first(self) -> tuple[int, list[tuple[int, int]]] | None:
        """Step and records (source, index) of the first bad batch of this rank, if any."""
        assert self._broken is not None and self._rows is not None and self._step is not None
        if not bool(self._broken):
            return None
        return int(self._step), [(source, index) for source, index, broken in self._rows.T.tolist() if broken]
