"""Trains a checked experiment in its run folder, and prints where the results are."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.trainer.states import TrainerStatus

import t2ikit
from t2ikit.checkpoints.runs import finish, latest_config, newest_checkpoint, step_of
from t2ikit.config.compose import ConfigError, flatten
from t2ikit.launch import first_rank
from t2ikit.run.experiment import USER_ERRORS, Experiment, Plan, build
from t2ikit.run.folder import RunFolder, contents, tell_ranks, write_config
from t2ikit.run.lock import lock, unlock
from t2ikit.run.loggers import quiet

INTERRUPTED = 130
"""Exit status of an interrupt, as the shell counts it."""


class _Started(Callback):
    """Hands the experiment to the loggers when nothing refuses the run any more, and knows whether a step is made.

    Until then a ValueError is a mistake of the user.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.seen, self._parameters = False, dict(flatten(config))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a resumed run at the step where ``trainer.max_epochs`` ends an undisturbed one.

        Lightning counts an epoch as done that a run left in its middle, and one as not done whose last step was saved.
        """
        if trainer.ckpt_path is not None and trainer.max_epochs not in (None, -1):
            trainer.fit_loop.epoch_loop.max_steps = int(trainer.estimated_stepping_batches)
            trainer.fit_loop.max_epochs = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
        again: the command that goes on after an interrupt; by default ``command`` with --resume.

    Returns:
        The exit status.

    Raises:
        ConfigError: what the run cannot do, and which option to change; or another process trains in its folder.
    """
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
        step = step_of(folder.checkpoint) if folder.checkpoint is not None else 0
        experiment = build(plan, folder.path, step)
        _allow(experiment, allow)
        if 0 < experiment.trainer.max_steps <= step:
            print(f"{folder.checkpoint} has made {step} of {experiment.trainer.max_steps} steps: nothing left to train")
            _discard(folder)
            return 0
        if first_rank():
            if folder.checkpoint is not None:
                print(f"Resuming from {folder.checkpoint}")
                _print_changes(plan.config, latest_config(folder.path))
            head = f"# t2ikit {t2ikit.__version__}: {' '.join(command.split())}\n"
            written.append(write_config(folder.path, head + text, resumed=not folder.created))
        status = _fit(experiment, folder, again or f"{command} --resume", plan.config)
    if first_rank() and status == 0:
        if folder.checkpoint is not None and experiment.trainer.global_step == step:
            print(f"No step was made: {_end(experiment.trainer, step)}")
        print(f"Run folder: {folder.path}")
        for line in contents(folder.path):
            print(f"  {line}")
        print(f"Curves and images: tensorboard --logdir {folder.path.parent}")
    return status


def _end(trainer: Trainer, step: int) -> str:
    """Why a resumed run has made no step."""
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
        for path in written:  # the last config is what `evaluate` reads and the next resume is compared with
            path.unlink()
        _discard(folder)
        raise


def _discard(folder: RunFolder) -> None:
    """Removes the folder that this process made for a run that is refused."""
    if folder.created:
        shutil.rmtree(folder.path)
        with contextlib.suppress(OSError):  # it holds other versions
            folder.path.parent.rmdir()


def _allow(experiment: Experiment, keys: Sequence[str]) -> None:
    if not keys:
        return
    allow = getattr(experiment.data, "allow", None)
    if allow is None:
        raise ConfigError(f"--allow {keys[0]}: {type(experiment.data).__name__} compares nothing with the checkpoint")
    try:
        allow(keys)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _fit(experiment: Experiment, folder: RunFolder, again: str, config: dict[str, Any]) -> int:
    """Trains to the end or an interrupt; the exit status. ``again`` ends with --resume where it wants a checkpoint."""
    started, trainer = _Started(config), experiment.trainer
    trainer.callbacks.append(started)  # type: ignore[attr-defined]
    interrupt = signal.getsignal(signal.SIGINT)
    path = None if folder.checkpoint is None else str(folder.checkpoint)
    try:
        with tell_ranks(folder):
            # Plain types only, so that a checkpoint from elsewhere can run no code.
            trainer.fit(experiment.model, datamodule=experiment.data, ckpt_path=path, weights_only=True)
    except Exception as error:
        refusal = None if started.seen else _refusal(error, path)
        if refusal is None:
            raise
        raise refusal from error
    except SystemExit:  # Lightning turns an interrupt into status 1
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        newest = newest_checkpoint(folder.path)
        resume = f"{again} {newest}" if again.endswith("--resume") else again
        hint = f"Resume with: {resume}" if newest else "There is no checkpoint yet to resume from."
        print(f"\nInterrupted at step {trainer.global_step}. {hint}", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, interrupt)
    return 0


def _refusal(error: Exception, checkpoint: str | None) -> ConfigError | None:
    """The user's mistake behind an error before the first step; None for a defect."""
    if isinstance(error, USER_ERRORS):
        return ConfigError(str(error))
    lines = str(error).splitlines()
    if not isinstance(error, RuntimeError) or not lines or "loading state_dict" not in lines[0]:
        return None
    return ConfigError(
        f"--resume {checkpoint}: its weights are those of another network ({lines[1].strip()}). Set "
        "model.init_args.denoiser as it was, or leave out --resume"
    )


def _print_changes(config: dict[str, Any], path: Path) -> None:
    """Prints what differs from the experiment as it was kept at ``path``."""
    if not path.is_file():
        return
    before, now = dict(flatten(yaml.safe_load(path.read_text()))), dict(flatten(config))
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            print(f"  changed: {key}: {before.get(key)!r} -> {now.get(key)!r}")
