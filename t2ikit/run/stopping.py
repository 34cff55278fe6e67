"""How a run stops before its end: all ranks after the same step, with a checkpoint of it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from t2ikit import ranks, stopping
from t2ikit.callbacks.checkpoint import Checkpoint, refuse_broken_weights
from t2ikit.callbacks.snapshot import Snapshot
from t2ikit.files import publish


class StopAtStep(Callback):
    """Stops the run at the end of a step once a signal has come to any rank; saves before the run leaves.

    The ranks tell each other in the background: what one learns during a step, all read at the end of the next one.

    Raises:
        Stopped: on every rank after the same step.
    """

    def __init__(self) -> None:
        self._asked = ranks.Largest()
        self._step = 0
        self._whole = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        stopping.step_by_step()

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._whole = False

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self._step:  # in the middle of a step of several micro-batches
            return
        self._step, self._whole = trainer.global_step, True
        number = self._asked.of(stopping.asked() or 0)
        if number:
            trainer._logger_connector.update_train_step_metrics()  # what the module logs, which Lightning writes later
            raise stopping.Stopped(signal.Signals(number).name)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._asked.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves if the state is that of a step's end: no step has begun since, and no batch was read for it.

        A rank alone cannot save; it says so, and the error goes on as it came.
        """
        batches = trainer.fit_loop._data_fetcher
        if not self._whole or batches is None or not ranks.failed_together(exception):
            return
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if batches.fetched != progress.processed:
            return
        try:
            save(trainer)
        except Exception as error:
            print(f"no checkpoint of step {trainer.global_step}: {error}", file=sys.stderr)


def save(trainer: Trainer) -> None:
    """Writes one checkpoint of this step by every checkpoint callback of the experiment; every rank must call it."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    writing = [callback for callback in callbacks if isinstance(callback, LightningCheckpoint)]
    ours = [callback for callback in writing if isinstance(callback, Checkpoint)]
    for callback in ours:
        callback.save(trainer)
    trial = trainer.fast_dev_run  # type: ignore[attr-defined]
    path = Path(trainer.default_root_dir) / "checkpoints" / f"step-{trainer.global_step:08d}.ckpt"
    if ours or not writing or trial or path.exists():
        return
    refuse_broken_weights(trainer)
    partial = path.with_name(path.name + ".partial")
    trainer.save_checkpoint(partial, weights_only=False)
    if trainer.is_global_zero:
        publish(partial, path)


def stop_by_ourselves(trainer: Trainer) -> StopAtStep:
    """Has the callback above stop a run in the place of Lightning's handlers, and puts callbacks in the order it needs.

    A checkpoint comes before the look at signals, and that before the snapshots, whatever the experiment's order: the
    checkpoint of a step is there before its snapshot begins, and a run that goes on from it takes that snapshot first.
    """
    stop = StopAtStep()
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    snapshots = [callback for callback in callbacks if isinstance(callback, Snapshot)]
    others = [callback for callback in callbacks if not isinstance(callback, Snapshot)]
    trainer.callbacks = [*others, stop, *snapshots]  # type: ignore[attr-defined]
    # Lightning's handlers exchange tensors while another exchange may be under way, and requeue jobs by themselves. Its
    # look at each batch waits for the accelerator.
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
    return stop


def _nothing() -> None:
    """In the place of a method of Lightning."""
