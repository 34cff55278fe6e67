"""Experiments on the embedded data set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import lightning as L

from benchmarks.base import Measurement, Settings

SHAPES: dict[str, Any] = {"data.count": 512, "data.val_count": 64, "data.num_workers": 0}
"""Few images, which are rendered in seconds."""
TRAINING_SECONDS = 120.0
SCORING_SECONDS = 30.0
ROWS = 256


class Clock(L.Callback):
    """Times the steps after the first ``warm_up``, evaluations left out, and ends the run after its time."""

    def __init__(self, warm_up: int, limit: float, until: float) -> None:
        self.warm_up, self.limit, self.until = warm_up, limit, until
        self.steps, self.seconds, self._started = 0, 0.0, 0.0

    @property
    def rate(self) -> float:
        """Steps a second; 0 before there are any."""
        return max(self.steps - self.warm_up, 0) / self.seconds if self.seconds else 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.steps = trainer.global_step
        if self.steps <= self.warm_up:  # kernels are loaded, workers started: no part of the time
            self._started = time.perf_counter()
        else:
            self.seconds = time.perf_counter() - self._started
        if self.seconds > self.limit or time.monotonic() > self.until:
            trainer.should_stop = True


def run(settings: Settings) -> Iterator[Measurement]:
    """``shapes_cad_i_cmall`` with a batch of 256: its speed, then a run of two minutes and its scores."""
    from benchmarks.gpu.experiments import on_device, plan, start

    small = settings.small
    rows = 16 if small else ROWS
    values: dict[str, Any] = {
        **on_device(settings),
        "data.batch_size": rows,
        "data.count": 256 if small else 6000,
        "data.val_count": 64 if small else 500,
        "data.num_workers": 0 if small else 2,
        "callbacks.val.at_start": False,
        "callbacks.geneval.at_start": False,
        "callbacks.val.every_n_steps": None,
        "callbacks.geneval.every_n_steps": None,
        "callbacks.geneval_original": None,
        "callbacks.by_text_length": None,  # for CPU cores
    }
    if small:
        values |= {"callbacks.val.steps": 2, "callbacks.geneval.steps": 2, "callbacks.geneval.prompts.per_task": 1}
        values |= {"callbacks.val.prompts.limit": 16, "model.denoiser.num_blocks": 1, "model.learning_rate.warmup": 1}
    silent = dict.fromkeys(("callbacks.val", "callbacks.geneval", "callbacks.table"))
    started = time.perf_counter()
    trial = Clock(2 if small else 30, 0.3 if small else 4.0, settings.until)
    plan_of_trial = plan("shapes_cad_i_cmall", {**values, **silent, "trainer.max_steps": 13000})
    start(plan_of_trial, settings.work / "runs" / "shapes-trial", trial)
    whole = time.perf_counter() - started
    rate = trial.rate
    yield Measurement(f"shapes_cad_i_cmall, B={rows}, trial", rate * rows, "samples/s", note=f"{rate:.1f} steps/s")
    yield Measurement("rendering, captions and set-up of it", whole - trial.seconds, "s")
    limit = 1.0 if small else min(TRAINING_SECONDS, settings.left - SCORING_SECONDS)
    if limit < 1.0 or not rate:
        return
    steps = max(int(rate * limit), 3)
    clock = Clock(1, limit + 10, settings.until - 2)
    if not small:
        values["model.learning_rate.warmup"] = max(steps // 20, 1)
    experiment = start(
        plan("shapes_cad_i_cmall", {**values, "trainer.max_steps": steps}), settings.work / "runs" / "shapes", clock
    )
    label = f"shapes_cad_i_cmall, {clock.steps} steps of {rows} in {clock.seconds:.0f} s"
    yield Measurement(label, clock.rate * rows, "samples/s")
    path = settings.work / "runs" / "shapes" / "metrics.csv"
    last = {line.split(",")[1]: line.split(",")[2] for line in path.read_text().splitlines()[1:]}
    for name, value in last.items():
        if name == "train/loss" or (name.startswith(("val/", "geneval/")) and "/seconds" not in name):
            yield Measurement(f"{label}: {name}", float(value), "")
    del experiment
