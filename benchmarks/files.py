"""Which files of the package one training step and one snapshot enter, in the order of their first call.

``python -m benchmarks files``. A small run of base/shapes_pixels.yaml on a few shapes is traced: the step from the end
of one batch to the end of the next (record to optimizer and log), and a snapshot from its callback to the files that it
writes. What a reader has to open to follow either is counted here, and ``docs/flow.md`` walks the same way.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback

import t2ikit
from benchmarks.base import Benchmark, Measurement, Settings
from t2ikit import callbacks
from t2ikit.config.compose import compose
from t2ikit.config.merging import Override
from t2ikit.run.experiment import build, check

_EXPERIMENT = Path(__file__).parents[1] / "experiments" / "base" / "shapes_pixels.yaml"
_OPTIONS = {
    "data.count": "64",
    "data.val_count": "16",
    "data.batch_size": "8",
    "trainer.max_steps": "3",
    "trainer.accelerator": "cpu",
    "trainer.log_every_n_steps": "1",
    "callbacks.val.steps": "2",
    "callbacks.val.at_start": "false",
    "callbacks.val.prompts.limit": "8",
    "callbacks.val.metrics.0.k": "2",
    "callbacks.geneval": "null",
    "callbacks.checkpoint": "null",
    "callbacks.table": "null",
}


class Entered:
    """Traces calls while it is active: files in the order of first entry, and how often the way changed its file."""

    def __init__(self) -> None:
        package = Path(t2ikit.__file__).parent
        self._roots = {str(Path(callbacks.__file__).parent): "callbacks", str(package): "t2ikit"}
        self.files: dict[str, int] = {}
        self._last = ""

    def __enter__(self) -> Entered:
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        path = frame.f_code.co_filename
        for root, name in self._roots.items():
            if path.startswith(root):
                file = name + path.removeprefix(root)
                if file != self._last:
                    self.files[file] = self.files.get(file, 0) + 1
                    self._last = file
                return


class _TraceStep(Callback):
    """Traces from the end of the first batch to the end of the second one."""

    def __init__(self) -> None:
        self.entered = Entered()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.entered.__enter__()
        elif batch_idx == 1:
            self.entered.__exit__()


def step_and_snapshot() -> tuple[dict[str, int], dict[str, int]]:
    """Files of a training step and of a snapshot, each in the order of first entry, with the times it was entered."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [Override(key, value) for key, value in {**_OPTIONS, "data.root": f"{folder}/shapes"}.items()]
        experiment = build(check(compose(_EXPERIMENT, overrides)), Path(folder) / "run")
        step, snapshot = _TraceStep(), Entered()
        experiment.trainer.callbacks.append(step)  # type: ignore[attr-defined]
        taken = experiment.callbacks["val"]
        taken.run = _traced(taken.run, snapshot)  # type: ignore[attr-defined]
        experiment.trainer.fit(experiment.model, datamodule=experiment.data)
    return step.entered.files, snapshot.files


def _traced(run: Callable[..., Any], entered: Entered) -> Callable[..., Any]:
    def traced(*args: Any) -> Any:
        with entered:
            return run(*args)

    return traced


def _measure(settings: Settings) -> list[Measurement]:
    step, snapshot = step_and_snapshot()
    for name, files in (("one training step", step), ("one snapshot", snapshot)):
        print(f"\n{name}, in the order of first entry (times entered):")
        print(", ".join(f"{file} ({times})" for file, times in files.items()))
    return [
        Measurement("files of one training step", len(step), "files", goal="at most 26", reached=len(step) <= 26),
        Measurement("files of one snapshot", len(snapshot), "files", goal="fewer than 46", reached=len(snapshot) < 46),
    ]


BENCHMARKS = (Benchmark("files", "files that one training step and one snapshot enter", _measure),)
