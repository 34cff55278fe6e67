"""Trains a checked experiment in its run folder, and prints where the results are."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

import t2ikit
from t2ikit import stopping
from t2ikit.callbacks.checkpoint_files import failure_of
from t2ikit.checkpoints.going_back import put_back, set_aside
from t2ikit.checkpoints.runs import finish, is_finished, newest_checkpoint, step_of
from t2ikit.checkpoints.saving import step_in_name
from t2ikit.config.errors import ConfigError
from t2ikit.config.merging import flatten
from t2ikit.launch import first_rank, loader_process_died
from t2ikit.learner import Learner
from t2ikit.lock import lock, unlock
from t2ikit.run.changes import Changes
from t2ikit.run.experiment import USER_ERRORS, Experiment, Plan, build
from t2ikit.run.folder import MARKER, RunFolder, contents, tell_ranks, write_config
from t2ikit.run.kept import KeepEncoder, keep
from t2ikit.run.loggers import quiet
from t2ikit.run.rank_processes import leave_with_parent, prepare_ranks, say_dead, say_dead_ranks, wait_for_ranks
from t2ikit.run.stopping import stop_by_ourselves
from t2ikit.run.what_next import what_next

NOT_SAVED = 1
"""Exit status of a run whose last checkpoint could not be written."""


class _Resumed(Callback):
    """Where a resumed run ends; the first of the callbacks.

    Args:
        step: at which it resumes; Lightning knows that only later.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self._last: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a resumed run at the step where ``trainer.max_epochs`` ends an undisturbed one.

        Lightning counts an epoch as done that a run left in its middle, and one as not done whose last step was saved.
        It enters no run that has made its last step; but what follows that step, such as a snapshot, may be missing.
        """
        if trainer.ckpt_path is None:
            return
        loop = trainer.fit_loop.epoch_loop
        if trainer.max_epochs not in (None, -1):
            loop.max_steps = int(trainer.estimated_stepping_batches)
            trainer.fit_loop.max_epochs = -1
        if 0 < loop.max_steps <= self._step:
            self._last, loop.max_steps = loop.max_steps, self._step + 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._last is not None:
            trainer.fit_loop.epoch_loop.max_steps = self._last


class _GoingBack(Callback):
    """Sets aside, before anything is written, what the folder has of later steps than that at which the run goes on.

    It is put back if an error, a refusal or a signal ends the run before its first step: by the rank that moved it,
    since the process that has forked that rank knows nothing of it.
    """

    def __init__(self) -> None:
        self._moved: list[tuple[Path, Path]] = []
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        if trainer.is_global_zero:
            self._moved = set_aside(Path(trainer.default_root_dir), self._step)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step > self._step:  # not in the middle of a step of several micro-batches
            self._moved = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        try:
            put_back(self._moved)
        except stopping.Stopped:  # from a launcher whose other rank has failed; it comes once
            put_back(self._moved)
            raise


class _Started(Callback):
    """Hands the experiment to the loggers when nothing refuses the run any more, and knows whether a step is made.

    Until then a ValueError is a mistake of the user.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.seen, self._parameters = False, dict(flatten(config))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:  # all ranks have found the folder; those of another launch must not
            (Path(trainer.default_root_dir) / MARKER).unlink(missing_ok=True)
        for logger in trainer.loggers:
            logger.log_hyperparams(self._parameters)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen = True


def train(plan: Plan, text: str, folder: RunFolder, allow: Sequence[str], command: str, again: str = "") -> int:
    """Builds the run and trains it; a run that is refused leaves no folder behind.

    Args:
        plan: the checked experiment.
        text: the same as YAML.
        folder: where it is trained, and from which checkpoint it goes on.
        allow: keys that may differ from the checkpoint that is resumed.
        command: as the user would type it again, without --resume.
        again: the command that goes on after a signal; by default ``command`` with --resume auto.

    Returns:
        The exit status.

    Raises:
        ConfigError: what the run cannot do, and which option to change; or another process trains in its folder.
        Failed: a full disk, a missing folder, a mistake of the user that shows late or a killed process ended it after
            its first step, or its loss was not finite.
    """
    stopping.before_first_step()
    leave_with_parent()
    if not first_rank():
        return _train(plan, text, folder, allow, command, again)
    lock(folder.path)
    try:
        status = _train(plan, text, folder, allow, command, again)
        if status == 0 and folder.path.exists():
            finish(folder.path, plan.config)
        return status
    finally:
        unlock(folder.path)


def _train(plan: Plan, text: str, folder: RunFolder, allow: Sequence[str], command: str, again: str) -> int:
    quiet()
    if plan.config["seed_everything"] is not None:
        seed_everything(plan.config["seed_everything"], workers=True, verbose=False)
    with _removed_if_refused(folder) as written:
        explained = issubclass(plan.model.cls, Learner)
        step = step_of(folder.checkpoint, explained) if folder.checkpoint is not None else 0
        experiment = build(plan, folder.path, step)
        changes = Changes(plan, folder.checkpoint, allow)
        experiment.trainer.callbacks.append(changes)  # type: ignore[attr-defined]
        if 0 < experiment.trainer.max_steps <= step and (folder.created or is_finished(folder.path)):
            print(f"{folder.checkpoint} has made {step} of {experiment.trainer.max_steps} steps: nothing left to train")
            _discard(folder)
            return 0
        if first_rank():
            if folder.checkpoint is not None:
                print(f"Resuming from {folder.checkpoint}")
                for change in changes.listed:
                    print(f"  changed: {change.key}: {change.before!r} -> {change.now!r}")
            head = f"# t2ikit {t2ikit.__version__}: {' '.join(command.split())}\n"
            written.append(write_config(folder.path, head + text, resumed=not folder.created))
            written += keep(folder.path, plan.config, command, folder.checkpoint, folder.created)
        status = _fit(experiment, folder, step, again or f"{command} --resume auto", plan.config)
    if first_rank() and status == 0:
        if experiment.trainer.global_step == step:
            print(f"No step was made: {_end(experiment.trainer, step)}")
        print(f"Run folder: {folder.path}")
        for line in contents(folder.path):
            print(f"  {line}")
        print(f"Curves and images: tensorboard --logdir {folder.path.parent}")
        part = bool(again) or folder.path.parent.name != plan.name  # of a sweep, or of an experiment with stages
        commands = list(what_next(plan, folder.path, None if part else command))
        if commands:
            print("\n  ".join(["Next:", *commands]))
    return status


def _end(trainer: Trainer, step: int) -> str:
    """Why a run has made no step."""
    if trainer.max_steps == 0 or trainer.max_epochs == 0:
        return "trainer.max_steps or trainer.max_epochs is 0"
    if 0 < trainer.max_steps <= step:
        return f"the checkpoint has made all {trainer.max_steps} steps of trainer.max_steps or trainer.max_epochs"
    return f"a limit of time (trainer.max_time) or a callback ended the run at step {step}"


@contextlib.contextmanager
def _removed_if_refused(folder: RunFolder) -> Iterator[list[Path]]:
    """Yields a list for the files that a refused run must not leave behind, beside the folder that was made for it."""
    written: list[Path] = []
    try:
        yield written
    except ConfigError:
        if not (folder.created and _holds_checkpoint(folder.path)):
            for path in written:  # the last config is what `evaluate` reads and the next resume is compared with
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            _discard(folder)
        raise


def _discard(folder: RunFolder) -> None:
    """Removes the folder that this process made for a run that is refused; never one that holds a checkpoint."""
    if folder.created and not _holds_checkpoint(folder.path):
        shutil.rmtree(folder.path)
        with contextlib.suppress(OSError):  # it holds other versions
            folder.path.parent.rmdir()


def _holds_checkpoint(folder: Path) -> bool:
    return next((folder / "checkpoints").glob("*.ckpt"), None) is not None


def _fit(experiment: Experiment, folder: RunFolder, step: int, again: str, config: dict[str, Any]) -> int:
    """Trains to the end or until it is stopped; the exit status. ``again`` is the command that goes on."""
    back, started, trainer = _GoingBack(), _Started(config), experiment.trainer
    stop = stop_by_ourselves(trainer)
    trainer.callbacks = [_Resumed(step), back, *trainer.callbacks, started, KeepEncoder()]  # type: ignore[attr-defined]

    def of_forked_rank(error: BaseException) -> None:
        for callback in (back, stop):
            callback.on_exception(trainer, experiment.model, error)

    prepare_ranks(trainer, of_forked_rank)
    path = None if folder.checkpoint is None else str(folder.checkpoint)
    try:
        with tell_ranks(folder):
            # Plain types only, so that a checkpoint from elsewhere can run no code.
            trainer.fit(experiment.model, datamodule=experiment.data, ckpt_path=path, weights_only=True)
    except stopping.Stopped as error:
        return _stopped(error.reason, experiment, folder, again)
    except ProcessExitedException as error:  # a rank that was forked
        if error.exit_code == stopping.STATUS:
            return _stopped(getattr(stopping.asked(), "name", "a signal"), experiment, folder, again)
        say_dead(f"rank {error.error_index} of this machine", int(error.exit_code))
        return 1
    except Exception as error:
        signal = stopping.asked()
        if signal is not None and not started.seen:  # another rank has left before the first step
            return _stopped(signal.name, experiment, folder, again)
        if diverged := _diverged(error):
            raise stopping.Failed(diverged) from error
        say_dead_ranks(trainer)
        reason = _from_outside(error)
        if started.seen and reason is not None:
            at = f"The run ended at step {trainer.global_step}"
            raise stopping.Failed(f"{reason}. {at}; go on with: {again}") from error
        refusal = None if started.seen else _refusal(error, path) or (reason and ConfigError(reason))
        if not refusal:
            raise
        raise refusal from error
    wait_for_ranks(trainer, kill=False)  # so that their CPU-seconds count among those of this process
    failure = failure_of(trainer)
    if failure is not None:
        print(f"The run came to its end, but {failure}. Make room, then: {again}", file=sys.stderr)
    return 0 if failure is None else NOT_SAVED


def _stopped(reason: str, experiment: Experiment, folder: RunFolder, again: str) -> int:
    """Says after which step the run has stopped and how to go on; the exit status."""
    wait_for_ranks(experiment.trainer, kill=True)
    if first_rank():
        newest = newest_checkpoint(folder.path)
        saved = 0 if newest is None else step_in_name(newest)
        step = max(experiment.trainer.global_step, saved)
        said = f"Stopped by {reason} at step {step}."
        if newest is not None:
            older = "" if saved == step else f" (its newest checkpoint is of step {saved})"
            print(f"\n{said} Go on with: {again}{older}", file=sys.stderr)
        else:
            writing = any(isinstance(callback, Checkpoint) for callback in experiment.callbacks.values())
            why = "" if step == 0 or writing else ": the experiment has no checkpoint callback"
            print(f"\n{said} Nothing was saved{why}.", file=sys.stderr)
    return stopping.STATUS


def _diverged(error: Exception) -> str:
    """What the guard says of a loss, a gradient or a weight that is not finite; nothing of another error."""
    if isinstance(error, stopping.Diverged):
        return str(error)
    if not isinstance(error, ProcessRaisedException):  # the traceback of a rank that was forked
        return ""
    before, _, said = str(error).rpartition(f"{stopping.Diverged.__name__}: ")
    return said.strip() if before else ""


def _from_outside(error: Exception) -> str | None:
    """What a disk, a folder, the system or a late mistake of the user did to a run; None for a defect of a program."""
    if isinstance(error, OSError):
        return " ".join(_said(error).split()) or type(error).__name__
    if isinstance(error, ConfigError):
        return _said(error)
    if isinstance(error, RuntimeError) and loader_process_died(error):
        return (
            "a process that reads the data was killed, often by the system for lack of memory: lower data.num_workers "
            f"({str(error).strip()})"
        )
    return None


def _said(error: Exception) -> str:
    """The message of an error; a loader's worker sends its traceback, which ends with the name of the error."""
    said = str(error)
    if not said.startswith("Caught "):
        return said
    return re.split(rf"\n(?:\w+\.)*{type(error).__name__}: ", said)[-1].strip()


def _refusal(error: Exception, checkpoint: str | None) -> ConfigError | None:
    """The user's mistake behind an error before the first step; None for a defect."""
    if isinstance(error, USER_ERRORS):
        return ConfigError(_said(error))
    lines = str(error).splitlines()
    if not isinstance(error, RuntimeError) or not lines or "loading state_dict" not in lines[0]:
        return None
    return ConfigError(
        f"--resume {checkpoint}: its weights are those of another network ({_shortened(lines[1].strip())}). Set "
        "model.init_args.denoiser as it was, or leave out --resume"
    )


def _shortened(names: str) -> str:
    """The first of the names of weights that torch lists, and how many there are."""
    listed = names.split(", ")
    return names if len(listed) <= 4 else f"{', '.join(listed[:4])}, ... {len(listed)} in all"
