"""What is kept of a step that was refused, so that it can be made again.

debug/step-00001234/before.ckpt    a checkpoint of before the step
debug/step-00001234/report.json    records, t and loss of every sample; norms of weights and gradients by name
debug/step-00001234/report.txt     the same to read
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from t2ikit import ranks
from t2ikit.files import write_whole

FOLDER = "debug"
CHECKPOINT, REPORT = "before.ckpt", "report.json"


class StepFacts:
    """What the present step has met on this rank: nothing is read from the device until a report is made.

    Args:
        module: whose training step is made.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.step = -1
        self.micro_batches = 0
        self.gradient_norms: Tensor | None = None  # of trained parameters, in the order of the optimizer

    def begin(self, step: int) -> None:
        """Forgets the step before."""
        self.step, self.micro_batches, self.gradient_norms = step, 0, None
        self.module.step_outputs = []

    def report(self, trainer: L.Trainer) -> dict[str, Any]:
        """Records of every rank, and norms; every rank must call it."""
        names = trainer.datamodule.source_names
        return {
            "step": self.step,
            "records": ranks.together(lambda: self._rows(names)),
            "norms": self._norms(trainer.optimizers[0]),
        }

    def _rows(self, names: list[str]) -> list[dict[str, Any]]:
        rows = []
        for micro_batch, output in enumerate(self.module.step_outputs):
            t = output.t
            times = [None] * len(output.loss) if t is None else t.tolist()
            columns = zip(output.source.tolist(), output.index.tolist(), times, output.loss.tolist(), strict=True)
            for source, index, time, loss in columns:
                row = {"record": f"{names[source]}[{index}]", "source": names[source], "t": time, "loss": repr(loss)}
                rows.append({"micro_batch": micro_batch, **row, "finite": math.isfinite(loss)})
        return rows

    def _norms(self, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
        """Norms by the name of the parameter, in the order of the module."""
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [] if self.gradient_norms is None else self.gradient_norms.tolist()
        of_gradient = dict(zip(map(id, trained), gradients, strict=True))
        parameters: list[tuple[str, Tensor]] = list(self.module.named_parameters())
        weights = torch.stack(torch._foreach_norm([p.detach().float() for _, p in parameters])).tolist()
        norms = {}
        for (name, parameter), weight in zip(parameters, weights, strict=True):
            gradient = of_gradient.get(id(parameter))
            finite = gradient is None or math.isfinite(gradient)
            norms[name] = {"weight": repr(weight), "gradient": repr(gradient), "gradient_is_finite": finite}
        return norms


def write_bundle(trainer: L.Trainer, facts: StepFacts, report: dict[str, Any]) -> Path | None:
    """Writes the bundle of a step before its update; every rank must call it. None for ``trainer.fast_dev_run``."""
    if trainer.fast_dev_run:
        return None
    folder = Path(trainer.default_root_dir) / FOLDER / f"step-{facts.step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    with _before_the_step(trainer, facts.micro_batches):
        trainer.save_checkpoint(folder / CHECKPOINT, weights_only=False)
    if trainer.is_global_zero:
        write_whole(folder / REPORT, json.dumps(report, indent=1) + "\n")
        write_whole(folder / "report.txt", _readable(report))
    return folder


@contextmanager
def _before_the_step(trainer: L.Trainer, micro_batches: int) -> Iterator[None]:
    """Position of the data and counters of Lightning as they were before the step, inside the block."""
    loader = getattr(trainer.datamodule, "train_loader", None)
    loop = trainer.fit_loop.epoch_loop
    optimizer = loop.automatic_optimization.optim_progress.optimizer.step
    counters = [loop.batch_progress.total, loop.batch_progress.current, optimizer.total, optimizer.current]
    before = [dict(vars(counter)) for counter in counters]
    for counter in counters[:2]:
        done = counter.ready - micro_batches
        counter.ready = counter.started = counter.processed = done
        counter.completed = max(0, done - 1)  # as in any checkpoint: a batch is completed after its callbacks
    for counter in counters[2:]:
        counter.ready = counter.completed
    if loader is not None:
        loader.move(-micro_batches)
    try:
        yield
    finally:
        for counter, values in zip(counters, before, strict=True):
            vars(counter).update(values)
        if loader is not None:
            loader.move(micro_batches)


def _readable(report: dict[str, Any]) -> str:
    lines = [f"step {report['step']}", "", f"{'rank':>4} {'micro':>5}  {'record':<24}{'t':>8}  loss"]
    for rank, rows in enumerate(report["records"]):
        for row in rows:
            t = "" if row["t"] is None else f"{row['t']:.4f}"
            lines.append(f"{rank:>4} {row['micro_batch']:>5}  {row['record']:<24}{t:>8}  {row['loss']}")
    lines += ["", f"{'weight norm':>14} {'gradient norm':>14}  parameter"]
    for name, norms in report["norms"].items():
        weight, gradient = (None if norms[key] == "None" else float(norms[key]) for key in ("weight", "gradient"))
        shown = [f"{'-' if value is None else f'{value:.6g}':>14}" for value in (weight, gradient)]
        lines.append(f"{' '.join(shown)}  {name}")
    return "\n".join(lines) + "\n"
