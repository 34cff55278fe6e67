"""What callbacks may ask of any module of ours, so that they need not know which one it is, nor each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import t2ikit
from t2ikit.batch import StepOutput
from t2ikit.config.origins import Origins
from t2ikit.optim import LearningRate, OptimizerFactory
from t2ikit.optim.precision import wide_dtype, widened


class Averages:
    """One or several averages of the trainable floating-point weights of a network, which keeps its own weights.

    ema <- decay_k * ema + (1 - decay_k) * weights, with decay_k = min(decay, (1 + k) / (10 + k)) in the warm-up.

    Args:
        network: whose weights are averaged; averages start at its present ones.
        decays: weight of the past, one a profile, each in [0, 1); the first is the one that is evaluated by default.
        warmup: start with shorter averages, ``min(decay, (1 + k) / (10 + k))`` at update k.
    """

    def __init__(self, network: nn.Module, decays: Sequence[float], warmup: bool = True) -> None:
        self.network, self.decays, self.warmup = network, list(decays), warmup
        self.step = 0
        self.applied_now = False
        pairs = [(n, p) for n, p in network.named_parameters() if p.requires_grad and p.is_floating_point()]
        self._names, self._weights = [name for name, _ in pairs], [parameter for _, parameter in pairs]
        self._narrow = any(w.dtype.itemsize < torch.float32.itemsize for w in self._weights)
        self._averages = {
            decay: [w.detach().to(wide_dtype(w), copy=True) for w in self._weights] for decay in self.decays
        }

    def state(self) -> dict[str, Any]:
        """Updates done, and the averages by profile and name, for a checkpoint."""
        profiles = {
            str(decay): dict(zip(self._names, tensors, strict=True)) for decay, tensors in self._averages.items()
        }
        return {"step": self.step, "profiles": profiles}

    def restore(self, state: dict[str, Any], begin_new: bool = False) -> list[float]:
        """Takes back what :meth:`state` gave.

        Args:
            state: of the checkpoint.
            begin_new: a decay that it lacks begins at the present weights, without a warm-up of its own.

        Returns:
            The decays that begin.

        Raises:
            ValueError: another decay without ``begin_new``, or the averages of another network.
        """
        begun = []
        for decay, averages in self._averages.items():
            stored = state["profiles"].get(str(decay))
            if stored is None and begin_new:
                for average, weight in zip(averages, self._weights, strict=True):
                    average.copy_(weight.detach())
                begun.append(decay)
                continue
            if stored is None:
                raise ValueError(
                    f"the checkpoint has no average of decay {decay} (it has {', '.join(state['profiles'])}): "
                    "set callbacks.ema.init_args.decay as it was"
                )
            if set(stored) != set(self._names):
                raise ValueError("the averages of the checkpoint belong to another denoiser: set it as it was")
            for name, average in zip(self._names, averages, strict=True):
                average.copy_(stored[name])
        self.step = int(state["step"])
        return begun

    def decay_at(self, step: int, decay: float) -> float:
        """The decay of update ``step``, counted from 0."""
        return min(decay, (1 + step) / (10 + step)) if self.warmup else decay

    @torch.no_grad()
    def update(self) -> None:
        """One update of every profile from the present weights; no host sync."""
        weights = [w.detach() for w in self._weights]
        weights = widened(weights) if self._narrow else weights
        for decay, averages in self._averages.items():
            torch._foreach_lerp_(averages, weights, 1.0 - self.decay_at(self.step, decay))
        self.step += 1

    @contextmanager
    def applied(self, decay: float | None = None) -> Iterator[None]:
        """The network carries the averages inside the block, and its own weights again after it, bit for bit.

        Args:
            decay: which profile; default the first.

        Raises:
            ValueError: no profile of that decay.
            RuntimeError: nested use.
        """
        decay = self.decays[0] if decay is None else decay
        if decay not in self._averages:
            raise ValueError(f"no EMA profile of decay {decay}; there are {self.decays}")
        if self.applied_now:
            raise RuntimeError("the averaged weights are applied already")
        with torch.no_grad():
            raw = [w.detach().clone() for w in self._weights]
            torch._foreach_copy_([w.data for w in self._weights], self._averages[decay])
        self.applied_now = True
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([w.data for w in self._weights], raw)
            self.applied_now = False


@dataclass
class RunLog:
    """What has been logged in this process, for whoever shows it or acts on it.

    Attributes:
        latest: the last value of every name.
        steps: optimizer steps that were done when each was logged last.
        evaluation_seconds: time spent on evaluation, which is no training time.
        scores: scores by snapshot, step and name.
    """

    latest: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
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
        self.steps.update(dict.fromkeys(values, step))
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)


class Learner:
    """A base beside ``LightningModule``: ``class MyModule(Learner, LightningModule)``.

    ``training_step`` returns :meth:`step_result`.

    Attributes:
        averages: of the weights of ``network``; set by the EMA callback.
        run_log: what has been logged.
        step_outputs: of every micro-batch since a callback that reads them before the update has set it to []; None
            keeps none.
        skipped_step: the last step of which no update was made, since its loss or gradient was not finite.
        optimizer_factory: builds the optimizer.
        learning_rate: schedule of its rate.
        experiment: the resolved experiment that it is a part of; a checkpoint holds it, so that it explains itself.
        origins: which modules class paths may name, also those in the checkpoint of a weaker network.
    """

    optimizer_factory: OptimizerFactory
    learning_rate: LearningRate
    averages: Averages | None = None
    experiment: dict[str, Any] | None = None
    origins: Origins | None = None

    def __init__(self) -> None:
        super().__init__()
        self.run_log = RunLog()
        self.step_outputs: list[StepOutput] | None = None
        self.skipped_step: int | None = None

    def step_result(self, loss: Tensor, output: StepOutput) -> dict[str, Any]:
        """What a training step returns: the loss that is minimised, and the output for callbacks."""
        if self.step_outputs is not None:
            self.step_outputs.append(output)
        return {"loss": loss, "step": output}

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

    def scheduled(self, total_steps: float) -> dict[str, Any]:
        """The optimizer of :attr:`optimized` with its schedule, as ``configure_optimizers`` returns them.

        Args:
            total_steps: of the run; infinite where only a clock ends it.
        """
        optimizer = self.optimizer_factory.build(self.optimized)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.learning_rate.factor(step + 1, total_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def renew_rates(self) -> None:
        """What the experiment says of the optimizer holds after a resume too, not what the checkpoint remembers."""
        trainer = self.trainer  # type: ignore[attr-defined]  # of the LightningModule
        schedule = trainer.lr_scheduler_configs[0].scheduler
        fresh = self.optimizer_factory.build(self.optimized).param_groups
        schedule.base_lrs = [group["lr"] for group in fresh]
        for group, new, factor in zip(trainer.optimizers[0].param_groups, fresh, schedule.lr_lambdas, strict=True):
            group.update({key: value for key, value in new.items() if key != "params"})
            group["initial_lr"], group["lr"] = new["lr"], new["lr"] * factor(schedule.last_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the experiment and the version of the code."""
        checkpoint["t2ikit"] = t2ikit.__version__
        if self.experiment is not None:
            checkpoint["experiment"] = self.experiment

    def evaluation_kit(self) -> Any | None:
        """What snapshots sample images with; None for a module that makes none."""
        return None
