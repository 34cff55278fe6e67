"""Callbacks of Lightning that look at a score by its name, ``monitor``: EarlyStopping and ModelCheckpoint."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint


def look_at_snapshots(model: L.LightningModule, callbacks: Mapping[str, Callback], snapshots: Collection[str]) -> None:
    """Has those that watch a score of a snapshot look after each snapshot, where the experiment says nothing else.

    By default they look at the end of an epoch, at the score of a snapshot that may be long past.

    Args:
        model: of the experiment.
        callbacks: of the experiment, by name.
        snapshots: names of its snapshots.

    Raises:
        ValueError: nothing in the experiment can give the score; names what does.
    """
    ours = ("t2ikit.", "lightning.", "pytorch_lightning.")
    plugins = any(not type(part).__module__.startswith(ours) for part in (model, *callbacks.values()))
    for name, callback in callbacks.items():
        if not isinstance(callback, EarlyStopping | ModelCheckpoint) or callback.monitor is None:
            continue
        if _snapshot_of(callback.monitor, snapshots) is not None:
            if isinstance(callback, EarlyStopping) and callback._check_on_train_epoch_end is None:
                callback._check_on_train_epoch_end = False
            if isinstance(callback, ModelCheckpoint) and callback._save_on_train_epoch_end is None:
                callback._save_on_train_epoch_end = False
        elif not callback.monitor.startswith("train/") and callback.monitor not in ("step", "epoch") and not plugins:
            scores = "".join(f"{snapshot}/SCORE, " for snapshot in snapshots)
            raise ValueError(
                f"callbacks.{name}: nothing gives the score {callback.monitor} that `monitor` names; a run has {scores}"
                "train/loss and what else is in its metrics.csv"
            )


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
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None)
        if not isinstance(callback, EarlyStopping | ModelCheckpoint) or monitor is None or monitor in values:
            callback.on_validation_end(trainer, module)
            continue
        snapshot = _snapshot_of(monitor, snapshots)
        if snapshot is None:
            if monitor in trainer.callback_metrics or not monitor.startswith("train/"):
                callback.on_validation_end(trainer, module)
        elif any(value.startswith(f"{snapshot}/") for value in values):  # this one, not another one's time
            scores = ", ".join(value for value in values if "/seconds/" not in value)
            message = f"{type(callback).__name__}: the snapshot {snapshot} has no {monitor}; monitor one of {scores}"
            if trainer.global_step == 0:
                raise ValueError(message)
            warnings.warn(message, stacklevel=2)  # does not end a run that has been trained for so long


def _snapshot_of(monitor: str, snapshots: Collection[str]) -> str | None:
    """Which snapshot gives the score; the longest of the names that fit."""
    return max((name for name in snapshots if monitor.startswith(f"{name}/")), key=len, default=None)
