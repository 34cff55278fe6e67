"""Checkpoints written whole or not at all; a run always keeps a good one."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from torch.utils._pytree import tree_leaves

from t2ikit.callbacks.checkpoint_files import failure_of
from t2ikit.callbacks.checkpoint_rules import BestScores, StepClock, seconds_of
from t2ikit.checkpoints.going_back import set_aside
from t2ikit.checkpoints.saving import is_complete, step_in_name
from t2ikit.stopping import Diverged


class Checkpoint(LightningCheckpoint):
    """Writes ``checkpoints/step-00001000.ckpt`` under the run folder.

    A file is written under a temporary name, synced to the disk and renamed (:class:`CheckpointFiles`); older ones are
    removed only after that. Where the disk is full the older ones stay, and the run goes on.

    Args:
        every_n_steps: optimizer steps between two checkpoints; None writes none for the sake of steps.
        keep: how many of the newest stay.
        keep_every_n_steps: checkpoints at multiples of this are never removed; None keeps only the newest.
        keep_steps: steps at which one is written and never removed, such as those that another stage starts from.
        every: one is written, too, when the last one is older than this, such as ``30 min`` (s, min, h, d); the clock
            is that of the first rank.
        monitor: a score, such as ``val/frechet_distance``: the checkpoints that it finds best stay. One is written at
            every step of a snapshot that gives it. What is logged of the training, such as ``train/loss``, counts at
            the steps of ``every_n_steps``, a multiple of ``trainer.log_every_n_steps``.
        mode: "min" if less of it is better, "max" if more is; by default what the metric of the snapshot says.
        keep_best: how many of the best stay.

    Raises:
        ValueError: a number below 1, no such time or mode, or a mode that nothing says.
    """

    def __init__(
        self,
        every_n_steps: int | None = 1000,
        keep: int = 2,
        keep_every_n_steps: int | None = None,
        keep_steps: list[int] | None = None,
        every: str | None = None,
        monitor: str | None = None,
        mode: str | None = None,
        keep_best: int = 1,
    ) -> None:
        super().__init__()
        counts = {
            "every_n_steps": every_n_steps,
            "keep": keep,
            "keep_every_n_steps": keep_every_n_steps,
            "keep_best": keep_best,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"callbacks.checkpoint: {name} must be at least 1, got {value}")
        if mode not in (None, "min", "max"):
            raise ValueError(f"callbacks.checkpoint: mode must be min or max, got {mode!r}")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.keep_every_n_steps = keep_every_n_steps
        self.keep_steps = frozenset(keep_steps or ())
        self.clock = None if every is None else StepClock(seconds_of(every))
        self.best = None if monitor is None else BestScores(monitor, mode, keep_best)
        self._seen = self._last_step = -1

    def state_dict(self) -> dict[str, Any]:
        return {} if self.best is None else {"scores": self.best.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.best is not None:
            self.best.scores = {int(step): float(score) for step, score in state_dict.get("scores", {}).items()}

    def validate_experiment(self, experiment: Any) -> None:
        """Refuses a monitored score that nothing gives, or of which nothing says whether less is better."""
        if self.best is not None:
            self.best.check(experiment, self.every_n_steps)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.best is not None and self.best.mode is None:
            raise ValueError(f"callbacks.checkpoint: say by mode whether less of {self.best.monitor} is better")
        self._seen = self._last_step = trainer.global_step  # a resumed run has written this checkpoint already
        if self.clock is not None:
            self.clock.start(trainer.global_step)
        expected = 0 if trainer.fast_dev_run else expected_bytes(trainer)
        if trainer.is_global_zero:
            for partial in self._folder(trainer).glob("*.partial"):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
            set_aside(Path(trainer.default_root_dir), trainer.global_step)  # a run has done so; a lone Trainer has not
            if not trainer.fast_dev_run:
                self._warn_of_small_disk(trainer, expected)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen:  # in the middle of an accumulated step, whose gradients no checkpoint holds
            return
        self._seen = step
        counts = [self.every_n_steps, None if self.best is None else self.best.every_n_steps]
        due = step in self.keep_steps or any(count is not None and step % count == 0 for count in counts)
        due = due or (self.clock is not None and self.clock.is_due(step))
        self._look_at_training(trainer, pl_module, due)
        if due:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.best is None or trainer.sanity_checking:
            return
        if self.best.look(trainer, pl_module) and trainer.is_global_zero and not trainer.fast_dev_run:
            self._prune(self._folder(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look_at_training(trainer, pl_module, due=True)
        self.save(trainer)

    def _look_at_training(self, trainer: L.Trainer, pl_module: L.LightningModule, due: bool) -> None:
        """Takes a score of no snapshot; where it is of a checkpoint that is there, removes what is not kept for it."""
        step = None if self.best is None else self.best.look_at_training(trainer, pl_module, due)
        if step is None or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        if (self._folder(trainer) / f"step-{step:08d}.ckpt").is_file():
            self._prune(self._folder(trainer))

    def save(self, trainer: L.Trainer) -> None:
        """Writes the present state if this step has none yet; every rank must call it. ``fast_dev_run`` writes none."""
        step = trainer.global_step
        if step == self._last_step or trainer.fast_dev_run:  # nothing to go on from
            return
        self._last_step = step
        refuse_broken_weights(trainer)
        trainer.save_checkpoint(self._folder(trainer) / f"step-{step:08d}.ckpt", weights_only=False)
        if self.clock is not None:
            self.clock.start(step)
        if trainer.is_global_zero and failure_of(trainer) is None:
            self._prune(self._folder(trainer))

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"

    def _prune(self, folder: Path) -> None:
        """Removes files older than the newest ``keep`` whole ones; one that is cut off counts for none."""
        steps = sorted(path for path in folder.glob("step-*.ckpt") if not path.is_dir())  # a folder is of others
        whole = list(filter(is_complete, steps))
        best = set() if self.best is None else self.best.steps(map(step_in_name, whole))
        for old in steps[: steps.index(whole[-self.keep :][0])] if whole else ():
            step = step_in_name(old)
            kept = step in self.keep_steps or step in best
            if not kept and (self.keep_every_n_steps is None or step % self.keep_every_n_steps):
                old.unlink()

    def _warn_of_small_disk(self, trainer: L.Trainer, expected: int) -> None:
        """Says before the first step that there is no room for the checkpoints that are to be kept."""
        folder = self._folder(trainer)
        present = [path for path in folder.glob("step-*.ckpt") if is_complete(path)]
        size = max((path.stat().st_size for path in present), default=0) or expected
        kept = self.keep + (0 if self.best is None else self.best.count)
        count = max(1, kept + 1 - len(present))  # an old one is removed after a new one is written
        free = shutil.disk_usage(next(parent for parent in folder.absolute().parents if parent.exists())).free
        if free < count * size:
            warnings.warn(
                f"the disk of {folder} has {free / 1e6:,.1f} MB free; a checkpoint takes about {size / 1e6:,.1f} MB, "
                f"and {count} more are to lie there at once (keep is {self.keep}): make room, or the run goes on "
                "without those that do not fit",
                stacklevel=2,
            )


def expected_bytes(trainer: L.Trainer) -> int:
    """About the size of a checkpoint before the first step: an optimizer without state gets two moments a weight.

    Every rank must call it, since a callback may gather its state from all of them.
    """
    module = trainer.lightning_module
    held = [module.state_dict(), *(callback.state_dict() for callback in trainer.callbacks)]
    size = sum(leaf.nbytes for leaf in tree_leaves(held) if isinstance(leaf, torch.Tensor))
    trained = [
        weight for optimizer in trainer.optimizers for group in optimizer.param_groups for weight in group["params"]
    ]
    return size + 2 * sum(weight.nbytes for weight in trained)


def refuse_broken_weights(trainer: L.Trainer) -> None:
    """A finite loss can still have broken the weights in its backward pass: no checkpoint of those.

    Raises:
        Diverged: a weight is not finite; every rank raises, since all hold the same weights.
    """
    weights = [p.detach() for p in trainer.lightning_module.parameters() if p.is_floating_point()]
    if weights and not bool(torch.stack(torch._foreach_norm(weights)).isfinite().all()):
        raise Diverged(
            f"the weights are not finite after optimizer step {trainer.global_step}; the checkpoint before is good: "
            "lower the learning rate or trainer.gradient_clip_val and go on with --resume last"
        )
