"""Callbacks that look at a score by its name, ``monitor``: Lightning's EarlyStopping and ModelCheckpoint, and ours.

Before the first step a name that nothing in the run logs is refused. Where the experiment says nothing else, they look
when the value comes: after its snapshot, or when it is logged of the training.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from t2ikit.learner import Learner

OURS = ("t2ikit.", "lightning.", "pytorch_lightning.")


@dataclass(frozen=True)
class Names:
    """What a run logs, as far as it is known before the first step.

    A part of an experiment says by ``logged_names(experiment)`` what it logs.

    Attributes:
        snapshots: names of the snapshots, whose scores are ``NAME/SCORE``.
        training: names that callbacks log of the training.
        model: names that the model logs.
        anything: whether a plug-in may log further ones.
        missing: why nothing of the training is logged; empty where it is.
    """

    snapshots: tuple[str, ...]
    training: frozenset[str]
    model: frozenset[str]
    anything: bool
    missing: str

    @classmethod
    def of(cls, experiment: Any) -> Names:
        """Those of an experiment: its trainer, model, data and named callbacks."""
        trainer, model, callbacks = experiment.trainer, experiment.model, experiment.callbacks.values()
        parts = (model, getattr(model, "objective", model), *callbacks)
        training = frozenset(name for callback in callbacks for name in _logged(callback, experiment))
        return cls(
            tuple(callback.name for callback in callbacks if hasattr(callback, "evaluation")),
            training,
            frozenset(_logged(model, experiment)),
            any(not type(part).__module__.startswith(OURS) for part in parts),
            "" if training else _reason(trainer.log_every_n_steps, trainer.max_steps),
        )

    def refuse_unknown(self, monitor: str) -> None:
        """Refuses a score that nothing gives; only warns of a likely mistake where a plug-in may give it.

        Raises:
            ValueError: names the nearest scores that there are.
        """
        known = self.training | self.model
        if monitor in known or snapshot_of(monitor, self.snapshots) is not None:
            return
        cutoff = 0.8 if self.anything else 0.6
        before, _, score = monitor.partition("/")
        near = [f"{snapshot}/{score}" for snapshot in get_close_matches(before, self.snapshots, n=1, cutoff=cutoff)]
        near = near or get_close_matches(monitor, known, n=3, cutoff=cutoff)
        nearest = f"; nearest known: {', '.join(near)}" if near else ""
        if self.anything:
            if near:
                warnings.warn(
                    f"only a plug-in can give the score {monitor} that `monitor` names{nearest}", stacklevel=2
                )
            return
        scores = [*(f"{snapshot}/SCORE" for snapshot in self.snapshots), *sorted(self.model)]
        scores += [] if self.missing else ["train/loss"]
        given = f"{', '.join(scores)} and what else is in its metrics.csv" if scores else "none"
        missing = f" ({self.missing})" if monitor.startswith("train/") and self.missing else ""
        raise ValueError(f"nothing gives the score {monitor} that `monitor` names{missing}; a run has {given}{nearest}")


def check_monitors(experiment: Any) -> None:
    """Refuses what nothing gives, and has the callbacks of Lightning look when a value comes, by default.

    Their own default is the end of an epoch, where the score of a snapshot may be long past.

    Raises:
        ValueError: nothing in the experiment can give the score; names what does.
    """
    names = Names.of(experiment)
    for name, callback in experiment.callbacks.items():
        if not isinstance(callback, EarlyStopping | ModelCheckpoint) or callback.monitor in (None, "step", "epoch"):
            continue
        try:
            names.refuse_unknown(callback.monitor)
        except ValueError as error:
            raise ValueError(f"callbacks.{name}: {error}") from error
        of_snapshot = snapshot_of(callback.monitor, names.snapshots) is not None
        if isinstance(callback, ModelCheckpoint):
            if of_snapshot and callback._save_on_train_epoch_end is None:
                callback._save_on_train_epoch_end = False
        elif of_snapshot or callback.monitor in names.training | names.model:
            callback.strict = False  # the name is checked; at the end of an epoch its first value may still be to come
            if callback.monitor not in names.model and callback._check_on_train_epoch_end is None:
                callback._check_on_train_epoch_end = False


def look(
    trainer: L.Trainer, module: L.LightningModule, values: Mapping[str, float], snapshots: Collection[str]
) -> None:
    """After a snapshot, which is the validation of a run: calls those that watch one of its scores, or none.

    Args:
        trainer: of the run.
        module: which it trains.
        values: what the snapshot logged, by name.
        snapshots: names of all snapshots of the run.

    Raises:
        ValueError: before the first step, the snapshot has no score of the name; names those that it has.
    """
    logged = module.run_log.latest if isinstance(module, Learner) else {}
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None)
        if not isinstance(callback, EarlyStopping | ModelCheckpoint) or monitor is None or monitor in values:
            callback.on_validation_end(trainer, module)
            continue
        snapshot = snapshot_of(monitor, snapshots)
        if snapshot is None:
            # What is logged of the training has been looked at then, and counts once.
            seen = isinstance(callback, EarlyStopping) and monitor in logged
            if not seen and (monitor in trainer.callback_metrics or not monitor.startswith("train/")):
                callback.on_validation_end(trainer, module)
        elif any(value.startswith(f"{snapshot}/") for value in values):  # this one, not another one's time
            scores = ", ".join(value for value in values if "/seconds/" not in value)
            message = f"{type(callback).__name__}: the snapshot {snapshot} has no {monitor}; monitor one of {scores}"
            if trainer.global_step == 0:
                raise ValueError(message)
            warnings.warn(message, stacklevel=2)  # does not end a run that has been trained for so long


def look_at_training(trainer: L.Trainer, module: L.LightningModule, values: Collection[str]) -> None:
    """After something of the training was logged: has each EarlyStopping look that watches one of these names."""
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and callback.monitor in values:
            callback.on_validation_end(trainer, module)


def snapshot_of(monitor: str, snapshots: Collection[str]) -> str | None:
    """Which snapshot gives the score; the longest of the names that fit."""
    return max((name for name in snapshots if monitor.startswith(f"{name}/")), key=len, default=None)


def _logged(part: Any, experiment: Any) -> Collection[str]:
    names: Collection[str] = part.logged_names(experiment) if hasattr(part, "logged_names") else ()
    return names


def _reason(interval: int, steps: int) -> str:
    """Why nothing of the training is logged."""
    if interval == 0:
        return "trainer.log_every_n_steps is 0"
    if 0 < steps < interval:
        return f"trainer.log_every_n_steps is {interval}, and the run has {steps} steps"
    return "there is no t2ikit.callbacks.TrainingLog in `callbacks`"
