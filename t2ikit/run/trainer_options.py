"""Options and callbacks of Lightning that a run refuses, since they would have no effect, or another than it seems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    Timer,
)
from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from t2ikit.config.errors import ConfigError

# Options of the Trainer for a validation loop, which a model without `validation_step` has not.
VALIDATION = ("val_check_interval", "check_val_every_n_epoch", "limit_val_batches", "num_sanity_val_steps")

# Options of the Trainer for loops that a run does not have.
OTHER_LOOPS = {"limit_test_batches": "tests", "limit_predict_batches": "predicts"}

# Callbacks of Lightning that change the samples of a step or the optimizer behind the experiment's back.
REFUSED_CALLBACKS: dict[type[Callback], str] = {
    GradientAccumulationScheduler: "would change how many samples a step has; data.init_args.batch_size says how many, "
    "in trainer.accumulate_grad_batches micro-batches",
    BatchSizeFinder: "would change how many samples a step has; set data.init_args.batch_size, and "
    "trainer.accumulate_grad_batches where they do not fit the memory at once",
    LearningRateFinder: "would replace the learning rate of the experiment; set that of model.init_args.optimizer",
}

# What the names of those strategies of Lightning begin with that a run refuses.
SHARDED, SPAWNING = ("fsdp", "deepspeed"), ("ddp_spawn",)


class StartTimer(Timer):
    """``trainer.max_time``: counts from this start of a run, not from its first one."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the time of earlier starts does not count."""


def count_from_this_start(
    trainer: Trainer, max_time: str | timedelta | dict[str, int] | None, named: Sequence[Callback]
) -> None:
    """Puts a timer of this start in the place of Lightning's, which goes on where the checkpoint of a resume was.

    Args:
        trainer: whose callbacks are changed.
        max_time: ``trainer.max_time``.
        named: callbacks of the experiment; a timer among them counts all starts.
    """
    if max_time is not None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [entry for entry in callbacks if not isinstance(entry, Timer) or entry in named]
        trainer.callbacks = [StartTimer(max_time, interval="step"), *others]  # type: ignore[attr-defined]


def refuse_option(name: str, value: Any) -> None:
    """Refuses an option of the Trainer that has no effect in a run, or a meaningless value.

    Raises:
        ConfigError: names the option.
    """
    if name in OTHER_LOOPS and value is not None:
        raise ConfigError(f"trainer.{name}: has no effect, since a run never {OTHER_LOOPS[name]}: leave it out")
    if name == "strategy" and isinstance(value, str):
        _refuse_strategy(value.startswith(SPAWNING), value.startswith(SHARDED), value)
    if name == "limit_train_batches" and value == 0:
        raise ConfigError(f"trainer.{name}: 0 would train nothing: leave it out, or set how much of an epoch is used")
    if name == "log_every_n_steps" and isinstance(value, int) and value < 0:
        raise ConfigError(f"trainer.{name}: must be at least 1, or 0 to log no training values, not {value}")


def refuse_ranks(trainer: Trainer) -> None:
    """Refuses a strategy that a run cannot use, and processes that would each train alone.

    Raises:
        ConfigError: names the option.
    """
    strategy, name = trainer.strategy, type(trainer.strategy).__name__
    method = strategy._start_method if isinstance(strategy, DDPStrategy) else None
    sharded = isinstance(strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy)
    _refuse_strategy(method in ("spawn", "forkserver"), sharded, name)
    launch = trainer._accelerator_connector.cluster_environment
    if isinstance(launch, LightningEnvironment) or not launch.creates_processes_externally:
        return
    if launch.world_size() > 1 and trainer.world_size == 1:
        raise ConfigError(
            f"trainer.devices: {launch.world_size()} processes were started, and each would train alone: set "
            "trainer.devices to the processes of a machine and trainer.num_nodes to the machines, or start one process"
        )


def _refuse_strategy(spawning: bool, sharded: bool, name: str) -> None:
    if spawning:
        raise ConfigError(
            f"trainer.strategy: {name} sends the whole run to new processes by pickle, which an experiment does not "
            "allow: write ddp (a process is started for each device), or ddp_fork where only CPUs are used"
        )
    if sharded:
        raise ConfigError(
            f"trainer.strategy: {name} gives each device a part of the weights; averages, checkpoints, hashes and "
            "snapshots of a run read whole ones: write ddp"
        )


def refuse_validation(options: Mapping[str, Any], model: LightningModule) -> None:
    """Refuses what would have no effect: snapshots validate a run, not Lightning's validation loop.

    Raises:
        ConfigError: names the option.
    """
    if is_overridden("validation_step", model):
        return
    for name in VALIDATION:
        if options.get(name) is not None:
            raise ConfigError(
                f"trainer.{name}: has no effect, since the model has no `validation_step`: snapshots validate this "
                "run; set every_n_steps, at_start and prompts.init_args.limit of a Snapshot in `callbacks`"
            )


def refuse_callbacks(callbacks: Mapping[str, Callback]) -> None:
    """Refuses the callbacks of Lightning in ``REFUSED_CALLBACKS``.

    Raises:
        ConfigError: names the callback of the experiment.
    """
    for name, callback in callbacks.items():
        for refused, reason in REFUSED_CALLBACKS.items():
            if isinstance(callback, refused):
                raise ConfigError(f"callbacks.{name}: {type(callback).__name__} {reason}")


def refuse_loggers(loggers: Mapping[str, Logger]) -> None:
    """Refuses MLflow's store of files, which cannot hold ``train/loss`` beside ``train/loss/<source>``.

    Raises:
        ConfigError: names the logger, and what to set.
    """
    for name, logger in loggers.items():
        if isinstance(logger, MLFlowLogger) and str(logger._tracking_uri).startswith("file:"):
            raise ConfigError(
                f"loggers.{name}: MLflow's store of files keeps train/loss as a file, where train/loss/raw needs a "
                f"folder: set loggers.{name}.init_args.tracking_uri, to sqlite:///mlflow.db or the address of a server"
            )
