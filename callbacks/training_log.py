"""Logs the training loss, by source and by noise level, the learning rate and images/s; no host sync in between."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import lightning as L
import torch
from torch import Tensor

from t2ikit import ranks
from t2ikit.batch import StepOutput
from t2ikit.callbacks.monitors import look_at_training
from t2ikit.diffusion.objectives.denoising import NAME as DENOISING

LOSS, SHARE = "train/loss", "train/share"
LEARNING_RATE, IMAGES_PER_SECOND = "train/learning_rate", "train/images_per_second"


class TrainingLog(L.Callback):
    """Sums the loss of every sample on the device, in a table [sources, noise bins], and logs its means.

    Logged every ``trainer.log_every_n_steps`` optimizer steps, means over the samples since the last time:
    ``train/loss``, ``train/loss/<source>``, ``train/loss_t/<bin>``, ``train/share/<source>`` (how often a source was
    used), ``train/learning_rate`` (that of this step) and ``train/images_per_second`` (evaluation time not counted).
    Where the objective has terms, also ``train/loss/<part>`` of the denoising loss and of each term.
    ``trainer.log_every_n_steps`` 0 logs nothing of it.

    Raises:
        ValueError: a part of the loss has the name of a source.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sums: Tensor | None = None
        self._parts: dict[str, Tensor] = {}
        self._loaded: list[dict[str, Any]] = []
        self._last_logged = -1
        self._rate = 0.0
        self._images = 0
        self._since = 0.0
        self._evaluated = 0.0

    @property
    def state_key(self) -> str:
        return "TrainingLog"

    def state_dict(self) -> dict[str, Any]:
        """The sums of this rank."""
        if self._sums is None:
            return {}
        parts = {"parts": {name: sums.cpu() for name, sums in self._parts.items()}} if self._parts else {}
        return {"sums": self._sums.cpu(), **parts}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the sums of the other ranks, each by itself: added in another order, the means would differ."""
        own = self.state_dict()
        _, *others = ranks.together(lambda: own)  # not in state_dict, which one rank may call alone
        if own and others:
            checkpoint["callbacks"][self.state_key] = {**own, "others": others}

    def logged_names(self, experiment: Any) -> Collection[str]:
        """What it may log in a run; nothing where the run is shorter than the interval."""
        trainer, model = experiment.trainer, experiment.model
        if not trainer.log_every_n_steps:
            return ()
        if 0 < trainer.max_steps < trainer.log_every_n_steps and not trainer.fast_dev_run:
            return ()
        sources = list(getattr(experiment.data, "source_names", ()))
        streams = [getattr(callback, "stream", None) for callback in experiment.callbacks.values()]
        sources += [stream for stream in streams if stream is not None]
        names = {LOSS, LEARNING_RATE, IMAGES_PER_SECOND}
        names.update(_bin_names(int(getattr(model, "noise_bins", 1))))
        if len(sources) > 1:
            names.update(f"{kind}/{source}" for source in sources for kind in (LOSS, SHARE))
        if terms := getattr(getattr(model, "objective", None), "terms", None):
            names.update(f"{LOSS}/{part}" for part in (DENOISING, *terms))
        return names

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = [state_dict, *state_dict.get("others", ())] if state_dict else []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rows, bins = len(trainer.datamodule.source_names), int(getattr(pl_module, "noise_bins", 1))
        self._sums = torch.zeros(2, rows, bins, dtype=torch.float64, device=pl_module.device)
        if len(self._loaded) == trainer.world_size:
            self._add(self._loaded[trainer.global_rank])
        elif trainer.is_global_zero:  # of another number of ranks
            for state in self._loaded:
                self._add(state)
        self._loaded = []
        self._last_logged = trainer.global_step
        self._restart_clock(pl_module)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._rate = optimizer.param_groups[0]["lr"]  # after the step it is that of the next one

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._sums is not None
        output: StepOutput = outputs["step"]
        loss_B, t, bins = output.loss, output.t, self._sums.shape[2]
        cell = output.source * bins
        if t is not None:
            cell = cell + (t * bins).long().clamp_(0, bins - 1)
        flat = self._sums.view(2, -1)
        flat[0].index_add_(0, cell, loss_B.double())
        flat[1].index_add_(0, cell, torch.ones_like(loss_B, dtype=torch.float64))
        self._images += loss_B.shape[0] * trainer.world_size
        if len(output.parts) > 1:
            self._sum_parts(output.parts)
        step, interval = trainer.global_step, trainer.log_every_n_steps
        if interval and step != self._last_logged and step % interval == 0:
            self._last_logged = step
            self._log(trainer, pl_module, step)

    def _add(self, state: dict[str, Any]) -> None:
        """Adds the stored sums of a rank, unless they are of other sources or bins."""
        assert self._sums is not None
        if state["sums"].shape == self._sums.shape:
            self._sums += state["sums"].to(self._sums.device)
            for name, sums in state.get("parts", {}).items():
                sums = sums.to(self._sums.device)
                self._parts[name] = sums if name not in self._parts else self._parts[name] + sums

    def _sum_parts(self, parts: dict[str, Tensor]) -> None:
        """Adds every part, [B], to its sum and count [2]; a part that is off is not there."""
        for name, values in parts.items():
            added = torch.stack([values.double().sum(), values.new_full((), len(values), dtype=torch.float64)])
            self._parts[name] = added if name not in self._parts else self._parts[name] + added

    def _part_means(self, trainer: L.Trainer) -> dict[str, float]:
        if not self._parts:
            return {}
        sums, counts = trainer.strategy.reduce(torch.stack(list(self._parts.values()), dim=1), reduce_op="sum").tolist()
        clash = sorted(self._parts.keys() & set(trainer.datamodule.source_names))
        if clash:
            raise ValueError(
                f"a part of the loss and a source of the data are both called {', '.join(clash)}: rename the term"
            )
        return {f"{LOSS}/{name}": sums[row] / counts[row] for row, name in enumerate(self._parts)}

    def _log(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        assert self._sums is not None
        table = trainer.strategy.reduce(self._sums, reduce_op="sum")
        seconds = time.perf_counter() - self._since - (pl_module.run_log.evaluation_seconds - self._evaluated)
        values = {
            **loss_means(table, trainer.datamodule.source_names),
            **self._part_means(trainer),
            LEARNING_RATE: self._rate,
            IMAGES_PER_SECOND: self._images / max(seconds, 1e-9),
        }
        pl_module.run_log.log(trainer, values, step)
        look_at_training(trainer, pl_module, values)
        self._sums.zero_()
        self._parts.clear()
        self._restart_clock(pl_module)

    def _restart_clock(self, pl_module: Any) -> None:
        self._images, self._since, self._evaluated = 0, time.perf_counter(), pl_module.run_log.evaluation_seconds


def loss_means(table: Tensor, source_names: list[str]) -> dict[str, float]:
    """Means of the losses summed in ``table``.

    Args:
        table: [2, sources, bins], sums of the loss and numbers of samples.
        source_names: one a row.

    Returns:
        ``train/loss``, ``train/loss/<source>``, ``train/share/<source>`` and ``train/loss_t/<low>-<high>``; cells
        without a sample are left out. One host sync.
    """
    sums, counts = table.cpu().numpy()
    metrics = {LOSS: float(sums.sum() / counts.sum())}
    if len(source_names) > 1:
        for row, name in enumerate(source_names):
            if counts[row].sum() > 0:
                metrics[f"{LOSS}/{name}"] = float(sums[row].sum() / counts[row].sum())
            metrics[f"{SHARE}/{name}"] = float(counts[row].sum() / counts.sum())
    for index, name in enumerate(_bin_names(counts.shape[1])):
        if counts[:, index].sum() > 0:
            metrics[name] = float(sums[:, index].sum() / counts[:, index].sum())
    return metrics


def _bin_names(bins: int) -> list[str]:
    return [f"{LOSS}_t/{index / bins:.2f}-{(index + 1) / bins:.2f}" for index in range(bins)]
