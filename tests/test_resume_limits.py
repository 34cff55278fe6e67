"""Limits of a run beside --resume: epochs, time, a trial of one step, and no log of the training."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics

EXPERIMENT = """
extends: [tiny.yaml]
trainer: {max_steps: -1}
callbacks:
  val: null
  geneval: null
  table: null
  cutmix: null
  checkpoint: {init_args: {every_n_steps: 3}}
data: {init_args: {count: 32, settings: []}}
"""  # 4 steps an epoch
RESUME = ("--resume", "last")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tiny.enter(tmp_path, monkeypatch, {"short.yaml": EXPERIMENT})


def trained(*words: str, name: str = "short") -> list[tuple[int, float]]:
    """Runs the experiment; step and training loss of all steps of its first version."""
    assert cli.main(["run", "short.yaml", "--run.name", name, *words]) == 0
    return read_metrics(f"runs/{name}/version_0/metrics.csv")["train/loss"]


@pytest.mark.long
def test_a_resumed_run_ends_where_max_epochs_ends_an_undisturbed_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = "--trainer.max_epochs"
    whole = trained(epochs, "3", name="whole")
    assert [step for step, _ in whole] == list(range(1, 13))
    assert trained(epochs, "1") == whole[:4]
    assert trained(epochs, "2", *RESUME) == whole[:8]  # from the end of an epoch
    capsys.readouterr()
    assert trained(epochs, "2", *RESUME) == whole[:8]
    assert "No step was made: the checkpoint has made all 8 steps" in capsys.readouterr().out
    assert trained("--trainer.max_steps", "10", *RESUME) == whole[:10]
    assert trained(epochs, "3", *RESUME) == whole  # from the middle of one
    checkpoint = "runs/whole/version_0/checkpoints/step-00000009.ckpt"
    assert trained(epochs, "3", "--resume", checkpoint, name="whole") == whole


def test_max_time_counts_from_this_start(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = len(trained("--trainer.max_steps", "100000", "--trainer.max_time", "00:00:00:01"))
    assert 0 < steps < 100000
    assert len(trained("--trainer.max_steps", "100000", "--trainer.max_time", "00:00:00:01", *RESUME)) > steps
    assert "No step was made" not in capsys.readouterr().out


def test_a_new_run_that_makes_no_step_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, why in (
        (["--trainer.max_steps", "0"], "trainer.max_steps or trainer.max_epochs is 0"),
        (["--trainer.max_steps", "9", "--trainer.max_time", "00:00:00:00"], "a limit of time (trainer.max_time)"),
    ):
        assert cli.main(["run", "short.yaml", *words]) == 0
        assert f"No step was made: {why}" in capsys.readouterr().out


def test_max_steps_max_epochs_and_max_time_beside_a_resume(folder: Path) -> None:
    """4 steps an epoch; the limit that comes first ends the run, as in one that nobody stopped."""
    steps, epochs, minutes = "--trainer.max_steps", "--trainer.max_epochs", ["--trainer.max_time", "00:00:10:00"]
    assert len(trained(steps, "3")) == 3
    assert len(trained(steps, "100", epochs, "1", *minutes, *RESUME)) == 4
    assert len(trained(steps, "6", epochs, "3", *RESUME)) == 6
    assert len(trained(epochs, "2", *minutes, *RESUME)) == 8


def test_a_timer_that_counts_all_starts_says_why_no_step_is_made(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = "{class_path: lightning.pytorch.callbacks.Timer, init_args: {duration: '00:00:00:01'}}"
    steps = len(trained("--trainer.max_steps", "100000", "--callbacks.timer", node))
    assert len(trained("--trainer.max_steps", "100000", "--callbacks.timer", node, *RESUME)) == steps
    assert f"ended the run at step {steps}" in capsys.readouterr().out


def test_fast_dev_run_leaves_no_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "short.yaml", "--trainer.fast_dev_run", "true"]) == 0
    assert not list(folder.glob("runs/**/*.ckpt"))
    assert cli.main(["run", "short.yaml", "--trainer.max_steps", "2", *RESUME]) == 2
    assert "no version in runs/short holds a complete checkpoint" in capsys.readouterr().err


def test_no_step_is_logged_where_log_every_n_steps_is_0(folder: Path) -> None:
    assert cli.main(["run", "short.yaml", "--trainer.max_steps", "2", "--trainer.log_every_n_steps", "0"]) == 0
    assert (folder / "runs/short/version_0/checkpoints/step-00000002.ckpt").is_file()
    assert not (folder / "runs/short/version_0/metrics.csv").exists()
