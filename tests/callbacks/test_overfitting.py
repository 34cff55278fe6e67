"""A snapshot of a run that watches overfitting: its scores and files, its alarm, and that training does not notice."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.callbacks.overfitting_alarm import judge
from t2ikit.checkpoints.runs import is_finished
from t2ikit.evaluation import Overfitting
from t2ikit.metrics.features.features import RandomConvFeatures
from t2ikit.metrics.fingerprint import read_scores

EXPERIMENT = """
extends: [tiny.yaml]
model: {init_args: {optimizer: {init_args: {lr: 0.05}}}}
data: {init_args: {root: data}}
trainer: {max_steps: 4}
callbacks:
  progress: null
  geneval: null
  val:
    init_args:
      prompts: {init_args: {limit: 10}}
      batch_size: 4
      steps: 2
      grid: 4
      every_n_steps: 2
      overfitting: {class_path: t2ikit.evaluation.Overfitting, init_args: {patience: 1, pairs: 4}}
  checkpoint: {init_args: {every_n_steps: 1, keep: 9}}
"""
TURNING = '''
from t2ikit.metrics import Metric, Result


class Turning(Metric):
    """A distance that is 5, then 1, then 2."""

    calls = 0

    def score(self, samples, rows):
        self.calls += 1
        return Result({"frechet_distance": (5.0, 1.0, 2.0)[min(self.calls, 3) - 1]})

    def fingerprint(self):
        return {}
'''
OFF = ["--callbacks.val.overfitting", "null"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with small.yaml and runs/small/version_0, made by ``t2ikit run``."""
    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        tiny.enter(folder, patch, {"small.yaml": EXPERIMENT, "turning.py": TURNING})
        assert cli.main(["run", "small.yaml", "--model.denoiser.dropout", "0.2"]) == 0
    return folder


@pytest.fixture
def folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the current folder."""
    monkeypatch.delitem(sys.modules, "turning", raising=False)
    return tiny.current(trained, monkeypatch)


def state_of(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoints" / "step-00000004.ckpt", weights_only=True)
    return state


def equal(first: Any, second: Any) -> bool:
    """Whether two parts of checkpoints are the same, tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


@pytest.mark.slow
def test_training_does_not_notice(folder: Path) -> None:
    """Losses, weights, averages, optimizer and what other scores are: the same bit for bit, with dropout on."""
    assert cli.main(["run", "small.yaml", "--run.name", "off", "--model.denoiser.dropout", "0.2", *OFF]) == 0
    watched, off = Path("runs/small/version_0"), Path("runs/off/version_0")
    series, others = (read_metrics(run / "metrics.csv") for run in (watched, off))
    clocks = ("seconds", "images_per_second")
    assert not any("overfitting" in name for name in others)
    for name in others:
        if not any(clock in name for clock in clocks):
            assert series[name] == others[name], name
    first, second = (state_of(run) for run in (watched, off))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert equal(first[part], second[part]), part
    names = {path.name for path in (off / "samples" / "val").iterdir()}
    assert names == {path.name for path in (watched / "samples" / "val").iterdir()} - {"overfitting.png", "details"}


def test_what_is_given_and_written(folder: Path) -> None:
    run = Path("runs/small/version_0")
    samples = run / "samples" / "val"
    scores = read_scores(samples / "scores" / "step-00000004")
    gap = scores["overfitting/gap"]
    difference = scores["loss_fixed_t"].value - scores["loss_fixed_t_train"].value
    assert gap.value == pytest.approx(difference, rel=1e-6)  # two records at each of eight levels, in both sets
    assert gap.fingerprint.extra["weights"] == "ema 0.995" and gap.fingerprint.num_reference == 16
    copies = scores["overfitting/copies"]
    assert copies.value == 0.0 and copies.fingerprint.extra["num_training"] == 64
    assert copies.fingerprint.num_reference == 16 and copies.fingerprint.features == "random_conv_64_seed0"
    details = samples / "details" / "step-00000004"
    with (details / "overfitting_losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["t", "held_out", "train", "cmall"] and len(rows) == 8
    assert [row["cmall"] == "" for row in rows] == [float(row["t"]) < 0.4 for row in rows]  # tau of the gate
    means = [sum(float(row[name]) for row in rows) / 8 for name in ("held_out", "train")]
    assert means == pytest.approx([scores["loss_fixed_t"].value, scores["loss_fixed_t_train"].value], rel=1e-6)
    shown = [row for row in rows if row["cmall"]]
    of_stream = sum(float(row["held_out"]) - float(row["cmall"]) for row in shown) / len(shown)
    assert scores["overfitting/gap_cmall"].value == pytest.approx(of_stream, rel=1e-9)
    assert (details / "overfitting_nearest_pairs.png").is_file() and (details / "overfitting_nearest.csv").is_file()
    assert (samples / "overfitting.png").is_file() and not (samples / "overfitting.json").exists()
    assert dict(read_metrics(run / "metrics.csv")["val/overfitting/alarm"]) == {0: 0.0, 2: 0.0, 4: 0.0}
    events = EventAccumulator(str(run))
    events.Reload()
    assert {"val/grid", "val/overfitting", "val/nearest_pairs"} == set(events.Tags()["images"])


def test_the_training_set_is_looked_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By all runs on this data: a second one, and an evaluation, see only held-out and generated images."""
    seen: list[int] = []
    call = RandomConvFeatures.__call__

    def counted(self: RandomConvFeatures, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return call(self, images)

    monkeypatch.setattr(RandomConvFeatures, "__call__", counted)
    words = ["evaluate", "runs/small/version_0", "--snapshot", "val", "--out", "again"]
    assert cli.main(words) == 0
    assert seen == [16, 10]
    seen.clear()
    assert cli.main([*words, "--callbacks.val.overfitting.limit", "20", "--out", "some"]) == 0
    assert seen == [20, 16, 10]
    (scores,) = (read_scores(path) for path in Path("again").glob("*/scores"))
    kept = read_scores(Path("runs/small/version_0/samples/val/scores/step-00000004"))
    for name in ("overfitting/copies", "loss_fixed_t", "overfitting/gap"):
        assert scores[name].value == pytest.approx(kept[name].value, rel=1e-6)


@pytest.mark.long
def test_two_ranks_see_what_one_sees(folder: Path) -> None:
    command = [sys.executable, "-m", "t2ikit", "run", "small.yaml", "--run.name", "two", "--trainer.max_steps", "1"]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--model.denoiser.dropout", "0.2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "T2IKIT_CACHE": str(folder / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    one, two = (Path("runs") / name / "version_0/samples/val" for name in ("small", "two"))
    assert (two / "overfitting.png").is_file(), done.stderr[-3000:]
    label = "step-00000000"
    ours, theirs = (read_scores(run / "scores" / label) for run in (two, one))
    for name in ("overfitting/gap", "overfitting/gap_cmall", "overfitting/copies", "loss_fixed_t_train"):
        assert ours[name].value == pytest.approx(theirs[name].value, rel=1e-4, abs=1e-6)
        assert ours[name].fingerprint == theirs[name].fingerprint
    tables = []
    for run in (one, two):
        with (run / "details" / label / "overfitting_nearest.csv").open() as file:
            tables.append([(row["train_index"], row["held_out_index"]) for row in csv.DictReader(file)])
    assert tables[0] == tables[1] and len(tables[0]) == 10


@pytest.mark.long
def test_a_resumed_run_comes_to_the_same_curve_and_alarm(folder: Path) -> None:
    turning = ["--callbacks.val.metrics", "[turning.Turning]", "--callbacks.val.overfitting.features"]
    turning.append("t2ikit.metrics.RandomConvFeatures")
    assert cli.main(["run", "small.yaml", "--run.name", "straight", *turning]) == 0
    straight = Path("runs/straight/version_0/samples/val")
    alarm = json.loads((straight / "overfitting.json").read_text())
    assert alarm == {"step": 4, "signs": ["frechet_distance was 1 at step 2 and is 2 now, 1 snapshots later"]}
    logged = read_metrics(straight.parents[1] / "metrics.csv")
    assert [value for _, value in logged["val/overfitting/alarm"]] == [0.0, 0.0, 1.0]
    checkpoint = straight.parents[1] / "checkpoints" / "step-00000003.ckpt"
    curve = (straight / "overfitting.png").read_bytes()
    (straight / "overfitting.png").unlink()
    (straight / "overfitting.json").unlink()
    again = [*turning[:1], "[{class_path: turning.Turning}]", *turning[2:]]
    sys.modules["turning"].Turning.calls = 2  # type: ignore[attr-defined]  # a third look
    assert cli.main(["run", "small.yaml", "--run.name", "straight", *again, "--resume", str(checkpoint)]) == 0
    assert json.loads((straight / "overfitting.json").read_text()) == alarm
    assert (straight / "overfitting.png").read_bytes() == curve


@pytest.mark.slow
def test_it_ends_a_run_only_where_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--callbacks.val.metrics", "[turning.Turning]", "--callbacks.val.every_n_steps", "1"]
    words += ["--callbacks.val.overfitting.features", "t2ikit.metrics.RandomConvFeatures", "--run.name", "ended"]
    assert cli.main(["run", "small.yaml", *words, "--callbacks.val.overfitting.stop", "true"]) == 0
    run = Path("runs/ended/version_0")
    assert is_finished(run) and (run / "checkpoints" / "step-00000002.ckpt").is_file()
    assert not (run / "checkpoints" / "step-00000003.ckpt").exists()
    assert "the run ends, as overfitting.stop asks" in capsys.readouterr().out


def test_the_alarm_is_a_line_and_a_file_as_long_as_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer: Any = SimpleNamespace(loggers=[], should_stop=False)
    history = {step: {"frechet_distance": value} for step, value in enumerate((5.0, 1.0, 2.0))}
    watch = Overfitting(patience=1)
    assert judge(trainer, watch, "val", history, tmp_path) == {"val/overfitting/alarm": 1.0}
    assert "val: overfitting at step 2: frechet_distance was 1 at step 1" in capsys.readouterr().out
    assert (tmp_path / "overfitting.json").is_file() and not trainer.should_stop
    assert judge(trainer, watch, "val", {**history, 3: {"frechet_distance": 0.9}}, tmp_path) == {
        "val/overfitting/alarm": 0.0
    }
    assert not (tmp_path / "overfitting.json").exists() and capsys.readouterr().out == ""
    judge(trainer, Overfitting(patience=1, stop=True), "val", history, tmp_path)
    assert trainer.should_stop


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--callbacks.val.reference", "train"], "the reference is train: set reference to a split"),
        (["--callbacks.val.metrics", "[t2ikit.shapes.LargestColorShare]"], "set overfitting.init_args.features"),
    ],
)
def test_what_it_cannot_compare_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    assert cli.main(["run", "small.yaml", "--run.name", "refused", *change]) != 0
    assert message in capsys.readouterr().err and not Path("runs/refused").exists()
