"""When a checkpoint is written and which ones stay: by step, by time, by score; what is said of a small disk."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.demos.boring_classes import BoringModel

import tiny
from t2ikit import cli
from t2ikit.callbacks import Checkpoint, Snapshot
from t2ikit.callbacks.checkpoint import expected_bytes
from t2ikit.callbacks.checkpoint_rules import BestScores, StepClock, seconds_of
from t2ikit.evaluation import CaptionPrompts, Overfitting
from t2ikit.metrics import DistributionMetrics
from t2ikit.metrics.features.features import RandomConvFeatures

EXPERIMENT = """
extends: [tiny.yaml]
trainer: {max_steps: 6}
callbacks:
  val: {init_args: {steps: 1, grid: 1, every_n_steps: 1, prompts: {init_args: {limit: 16}}}}
  geneval: null
  cutmix: null
  checkpoint: {init_args: {every_n_steps: 4, keep: 1, monitor: val/loss, keep_best: 2}}
data: {init_args: {settings: []}}
"""
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


def steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in (folder / "checkpoints").glob("*.ckpt"))


def trained(folder: Path, checkpoint: Checkpoint, *others: L.Callback, **options: Any) -> L.Trainer:
    trainer = L.Trainer(default_root_dir=folder, callbacks=[*others, checkpoint], **QUIET, **options)
    trainer.fit(BoringModel())
    return trainer


class Clock(L.Callback):
    """A second passes at every micro-batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.asked = 100.0, 0
        monkeypatch.setattr("t2ikit.callbacks.checkpoint_rules.time.monotonic", self.read)

    def read(self) -> float:
        self.asked += 1
        return self.now

    def on_train_batch_start(self, *args: Any) -> None:
        self.now += 1


@pytest.mark.parametrize(("text", "seconds"), [("30 min", 1800), ("45s", 45), ("0.5 h", 1800), ("2 d", 172800)])
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["30", "min", "0 min", "-1 h", "3 weeks", "00:30:00"])
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="every must be a time such as 30 min"):
        Checkpoint(every=text)


def test_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path, Checkpoint(None, keep=9, every="5 s"), Clock(monkeypatch), max_steps=13)
    assert steps(tmp_path) == [5, 10, 13]
    trained(tmp_path / "both", Checkpoint(4, keep=9, every="5 s"), Clock(monkeypatch), max_steps=9)
    assert steps(tmp_path / "both") == [4, 8, 9]  # the time counts from the last one, whatever it was written for


def test_by_time_in_the_middle_of_an_accumulated_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(None, keep=9, every="5 s")
    trained(tmp_path, checkpoint, Clock(monkeypatch), max_steps=4, accumulate_grad_batches=4)
    assert steps(tmp_path) == [2, 4]


def test_the_ranks_seldom_ask_for_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,800 steps of a second: as many exchanges as halvings; every rank asks at the same steps."""
    clock, asked = Clock(monkeypatch), list[int]()
    rule = StepClock(1800)
    rule.start(0)
    monkeypatch.setattr("t2ikit.callbacks.checkpoint_rules.ranks.from_first", lambda work: (asked.append(1), work())[1])
    due = []
    for step in range(1, 1802):
        clock.now += 1
        if rule.is_due(step):
            due.append(step)
            rule.start(step)
    assert due == [1800] and len(asked) < 20


def test_best_scores() -> None:
    best = BestScores("loss", "min", 2)
    best.scores = {1: 3.0, 2: 1.0, 3: float("nan"), 4: 2.0, 5: 0.5}
    assert best.steps([1, 2, 3, 4, 6]) == {2, 4}
    best.mode = "max"
    assert best.steps([1, 2, 3, 4]) == {1, 4}


@pytest.mark.parametrize(
    "score", ["frechet_distance", "overfitting/copies", "overfitting/gap", "overfitting/gap_cutmix"]
)
def test_fewer_copies_and_smaller_gaps_are_better(score: str) -> None:
    """It is asked before the snapshot has read its data."""
    metrics = [DistributionMetrics(RandomConvFeatures())]
    snapshot = Snapshot(CaptionPrompts(), metrics, name="val", reference="val", overfitting=Overfitting())
    best = BestScores(f"val/{score}", None, 1)
    best.find([snapshot])
    best.scores = {100: 0.0, 200: 0.9}
    assert best.steps([100, 200]) == {100}


def test_the_best_by_a_score_of_lightnings_validation(tmp_path: Path) -> None:
    class Scored(BoringModel):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("score", (self.global_step - 4.0) ** 2)

    checkpoint = Checkpoint(1, keep=1, monitor="score", mode="min", keep_best=2)
    options: dict[str, Any] = {"max_steps": 8, "val_check_interval": 1, "limit_val_batches": 1}
    trainer = L.Trainer(default_root_dir=tmp_path, callbacks=[checkpoint], **QUIET, **options)
    trainer.fit(Scored())
    assert steps(tmp_path)[:2] == [3, 4] and steps(tmp_path)[-1] == 8 and len(steps(tmp_path)) == 3
    state = torch.load(tmp_path / "checkpoints/step-00000008.ckpt", weights_only=True)
    assert 4 in next(value for key, value in state["callbacks"].items() if "Checkpoint" in key)["scores"]


def test_the_best_by_a_score_of_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint is written at every snapshot; the metric says that less is better."""
    folder = tiny.enter(tmp_path, monkeypatch, {"best.yaml": EXPERIMENT})
    for name, text in (
        ("val/los", "has no score los; monitor one of .*val/loss"),
        ("vall/loss", "nothing gives the score vall/loss"),
    ):
        assert cli.main(["run", "best.yaml", "--callbacks.checkpoint.monitor", name]) == 2
        assert re.search(text, capsys.readouterr().err)
    assert cli.main(["run", "best.yaml", "--trainer.max_steps", "4"]) == 0
    assert cli.main(["run", "best.yaml", "--resume", "last"]) == 0
    run = folder / "runs" / "best" / "version_0"
    losses = {
        int(path.parent.name.removeprefix("step-")): json.loads(path.read_text())["value"]
        for path in run.glob("samples/val/scores/*/loss.json")
    }
    assert losses.pop(0) and sorted(losses) == [1, 2, 3, 4, 5, 6]
    assert steps(run) == sorted({6, *sorted(losses, key=losses.__getitem__)[:2]})


def test_the_best_by_a_score_that_a_snapshot_gains_on_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """The snapshot of the step it goes on from is taken anew; steps of before have no score, and are not best."""
    folder = tiny.enter(tmp_path, monkeypatch, {"best.yaml": EXPERIMENT})
    before = ["--callbacks.val.validation_loss", "false", "--callbacks.checkpoint.monitor", "null"]
    keep = ["--callbacks.checkpoint.keep_best", "4", "--callbacks.checkpoint.keep", "1"]
    assert cli.main(["run", "best.yaml", "--trainer.max_steps", "4", *before]) == 0
    assert cli.main(["run", "best.yaml", "--trainer.max_steps", "10", "--resume", "last", *keep]) == 0
    assert not [str(warning.message) for warning in recwarn if "has no score" in str(warning.message)]
    run = folder / "runs" / "best" / "version_0"
    losses = {
        int(path.parent.name.removeprefix("step-")): json.loads(path.read_text())["value"]
        for path in run.glob("samples/val/scores/*/loss.json")
    }
    assert sorted(losses) == [4, 5, 6, 7, 8, 9, 10]
    assert steps(run) == sorted({10, *sorted(losses, key=losses.__getitem__)[:4]})


def test_a_file_that_is_cut_off_counts_for_none(tmp_path: Path) -> None:
    class Cut(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                path = tmp_path / "checkpoints" / "step-00000002.ckpt"
                path.write_bytes(path.read_bytes()[:-100])

    trained(tmp_path, Checkpoint(1, keep=2), Cut(), max_steps=4)
    assert steps(tmp_path) == [3, 4]


@pytest.mark.fault("a disk too small for the next checkpoint", "said before the first step")
def test_a_small_disk_is_told_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    free = 10**12
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free, 0, free))
    trainer = trained(tmp_path, Checkpoint(1), max_steps=2)
    size = (tmp_path / "checkpoints" / "step-00000002.ckpt").stat().st_size
    free = 100
    with pytest.warns(UserWarning, match="0 MB free; a checkpoint takes about .* 3 more are to lie there"):
        trained(tmp_path / "small", Checkpoint(1), max_steps=1)
    assert 0 < expected_bytes(trainer) < size


def test_what_the_module_logs_is_read_where_a_checkpoint_is_due() -> None:
    """Reading it waits for the device; a value that is no number stays what it was."""
    best = BestScores("own/loss", "min", 2)
    module = LightningModule()  # without a validation of its own
    trainer = SimpleNamespace(callback_metrics={"own/loss": torch.tensor(float("nan"))}, global_step=6)
    assert best.look_at_training(trainer, module, due=False) is None and not best.scores
    assert best.look_at_training(trainer, module, due=True) == 6
    assert best.look_at_training(trainer, module, due=True) is None
