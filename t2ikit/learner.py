"""What callbacks may ask of any module of ours, so that they need not know which one it is, nor each other."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import t2ikit
from t2ikit.optim.averages import Averages


@dataclass
class RunLog:
    """What has been logged in this process, for whoever shows it or acts on it.

    Attributes:
        latest: the last value of every name.
        evaluation_seconds: time spent on evaluation, which is no training time.
        scores: scores by snapshot, step and name.
    """

    latest: dict[str, float] = field(default_factory=dict)
    evaluation_seconds: float = 0.0
    scores: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)

    def log(self, trainer: Any, values: dict[str, float], step: int) -> None:
        """Hands values to every logger, and to ``trainer.callback_metrics``, where Lightning's callbacks look.

        Args:
            trainer: of Lightning; every rank calls this with the same values.
            values: by name, as in metrics.csv.
            step: optimizer steps done.
        """
        self.latest.update(values)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)


class Learner:
    """A base beside ``LightningModule``: ``class MyModule(Learner, LightningModule)``.

    ``training_step`` returns ``{"loss": loss, "step": StepOutput(...)}``.

    Attributes:
        averages: of the weights of ``network``; set by the EMA callback.
        run_log: what has been logged.
        experiment: the resolved experiment that it is a part of; a checkpoint holds it, so that it explains itself.
    """

    averages: Averages | None = None
    experiment: dict[str, Any] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.run_log = RunLog()

    @property
    def network(self) -> nn.Module:
        """The network that is averaged, evaluated and exported."""
        raise NotImplementedError(f"{type(self).__name__} must say which is its `network`")

    @property
    def optimized(self) -> nn.Module:
        """What the optimizer sees; the network, unless something is trained beside it."""
        return self.network

    def averaged(self, decay: float | None = None) -> AbstractContextManager[None]:
        """The network carries its averages inside the block; where none are kept, its own weights.

        Args:
            decay: which profile; default the first.

        Raises:
            ValueError: no profile of that decay.
        """
        return nullcontext() if self.averages is None else self.averages.applied(decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the experiment and the version of the code."""
        checkpoint["t2ikit"] = t2ikit.__version__
        if self.experiment is not None:
            checkpoint["experiment"] = self.experiment

    def evaluation_kit(self) -> Any | None:
        """What snapshots sample images with; None for a module that makes none."""
        return None
