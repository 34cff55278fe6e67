"""One bar over all optimizer steps of a run, with loss, images/s and the time left."""

from __future__ import annotations

import math
import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class StepProgress(ProgressBar):
    """A bar that counts optimizer steps up to ``trainer.max_steps``; epochs mean little here.

    Args:
        refresh_seconds: seconds between two redraws on a terminal; ten times as many where the output is a file.
    """

    def __init__(self, refresh_seconds: float = 0.5) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        self._bar: Any = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = trainer.estimated_stepping_batches  # infinite where only trainer.max_time ends the run
        total = None if math.isinf(steps) else int(steps)
        interval = self.refresh_seconds if sys.stderr.isatty() else 10 * self.refresh_seconds
        self._bar = tqdm(
            total=total,
            initial=trainer.global_step,
            desc="training",
            unit="step",
            mininterval=interval,
            disable=not self._enabled or not trainer.is_global_zero,
            dynamic_ncols=True,
        )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        advance = trainer.global_step - self._bar.n
        if advance > 0:
            latest = pl_module.run_log.latest
            if "train/loss" in latest:
                shown = {"loss": f"{latest['train/loss']:.4f}", "images/s": f"{latest['train/images_per_second']:.0f}"}
                self._bar.set_postfix(shown, refresh=False)
            self._bar.update(advance)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(str(arg) for arg in args))

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
