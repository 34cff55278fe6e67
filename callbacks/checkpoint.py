"""Checkpoints written whole or not at all; a run always keeps a good one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from t2ikit.checkpoints.runs import step_in_name
from t2ikit.files import publish


class Checkpoint(LightningCheckpoint):
    """Writes ``checkpoints/step-00001000.ckpt`` under the run folder.

    A file is written under a temporary name, synced to the disk and renamed; older ones are removed only after that.

    Args:
        every_n_steps: optimizer steps between two checkpoints.
        keep: how many of the newest stay.
        keep_every_n_steps: checkpoints at multiples of this are never removed; None keeps only the newest.
        keep_steps: steps at which one is written and never removed, such as those that another stage starts from.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        keep: int = 2,
        keep_every_n_steps: int | None = None,
        keep_steps: list[int] | None = None,
    ) -> None:
        super().__init__()
        counts = {"every_n_steps": every_n_steps, "keep": keep, "keep_every_n_steps": keep_every_n_steps}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"callbacks.checkpoint: {name} must be at least 1, got {value}")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.keep_every_n_steps = keep_every_n_steps
        self.keep_steps = frozenset(keep_steps or ())
        self._last_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step  # a resumed run has written this checkpoint already
        if trainer.is_global_zero:
            for partial in self._folder(trainer).glob("*.partial"):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
            self._set_aside(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0 or trainer.global_step in self.keep_steps:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Writes the present state if this step has none yet; every rank must call it. ``fast_dev_run`` writes none."""
        step = trainer.global_step
        if step == self._last_step or trainer.fast_dev_run:  # nothing to go on from
            return
        self._last_step = step
        refuse_broken_weights(trainer)
        path = self._folder(trainer) / f"step-{step:08d}.ckpt"
        partial = path.with_name(path.name + ".partial")
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            publish(partial, path)
            self._prune(path.parent)

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"

    def _set_aside(self, trainer: L.Trainer) -> None:
        """Moves checkpoints of later steps away: this run went back before them and makes those steps anew.

        They are kept, but neither `--resume last` nor the pruning of older ones may take them for this run's.
        """
        folder, step = self._folder(trainer), trainer.global_step
        later = [path for path in folder.glob("step-*.ckpt") if step_in_name(path) > step]
        if not later:
            return
        aside = folder / f"left-at-{step:08d}"
        aside.mkdir(exist_ok=True)
        for path in later:
            os.replace(path, aside / path.name)
        trainer.print(f"resumed at step {step}: {len(later)} checkpoints of later steps moved to {aside}")

    def _prune(self, folder: Path) -> None:
        steps = sorted(folder.glob("step-*.ckpt"))
        for old in steps[: -self.keep]:
            step = step_in_name(old)
            if step not in self.keep_steps and (self.keep_every_n_steps is None or step % self.keep_every_n_steps):
                shutil.rmtree(old) if old.is_dir() else old.unlink()


def refuse_broken_weights(trainer: L.Trainer) -> None:
    """A finite loss can still have broken the weights in its backward pass: no checkpoint of those.

    Raises:
        FloatingPointError: a weight is not finite; every rank raises, since all hold the same weights.
    """
    weights = [p.detach() for p in trainer.lightning_module.parameters() if p.is_floating_point()]
    if weights and not bool(torch.stack(torch._foreach_norm(weights)).isfinite().all()):
        raise FloatingPointError(
            f"the weights are not finite after optimizer step {trainer.global_step}; the checkpoint before is good: "
            "lower the learning rate or trainer.gradient_clip_val and go on with --resume last"
        )
