"""Writes the records, the loss of each and the learning rate of every step, to compare two runs with each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L

from t2ikit.batch import StepOutput
from t2ikit.files import parse_json, write_whole

FOLDER = "steps"


class StepRecords(L.Callback):
    """Appends one line for every micro-batch to ``steps/rank-0.jsonl`` of the run folder; each rank has its own file.

    A line is JSON: ``step`` (1 is the first), ``micro_batch`` (0 is the first of its step), ``records``
    (``source[index]``), ``loss`` of each with all its digits, and ``rate``, the learning rate. A resumed run removes
    the lines of the steps that it makes again. Every line waits for the device: this is for tests of a run and not
    for a long one: ``t2ikit verify-resume`` adds it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._path = Path()
        self._step = 0
        self._micro_batch = 0
        self._rate: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._path = Path(trainer.default_root_dir) / FOLDER / f"rank-{trainer.global_rank}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            text = self._path.read_text()
            lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)  # a kill may have torn the last one
            kept = [line for line in lines if parse_json(line)["step"] <= trainer.global_step]
            write_whole(self._path, "".join(kept))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step + 1
        self._micro_batch = self._micro_batch + 1 if step == self._step else 0
        self._step = step
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        line: dict[str, Any] = {"step": self._step, "micro_batch": self._micro_batch, "rate": self._rate}
        output = outputs.get("step") if isinstance(outputs, dict) else None
        if isinstance(output, StepOutput):
            names = trainer.datamodule.source_names
            pairs = zip(output.source.tolist(), output.index.tolist(), strict=True)
            line["records"] = [f"{names[source]}[{index}]" for source, index in pairs]
            line["loss"] = output.loss.tolist()
        elif isinstance(outputs, dict) and "loss" in outputs:
            line["loss"] = [float(outputs["loss"])]
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")


def read_steps(run: Path) -> dict[int, list[dict[str, Any]]]:
    """The lines of a run folder by step: micro-batch by micro-batch, in each the ranks in their order."""
    lines = []
    for rank, path in enumerate(sorted((run / FOLDER).glob("rank-*.jsonl"), key=lambda path: int(path.stem[5:]))):
        lines += [{**parse_json(line), "rank": rank} for line in path.read_text().splitlines()]
    steps: dict[int, list[dict[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: (line["step"], line["micro_batch"], line["rank"])):
        steps.setdefault(line["step"], []).append(line)
    return steps
