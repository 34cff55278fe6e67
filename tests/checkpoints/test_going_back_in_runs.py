"""Runs that go on from an earlier checkpoint and end early: what they had set aside, and what they make anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.metrics.fingerprint import read_scores

EXPERIMENT = """
extends: [tiny.yaml]
trainer: {max_steps: 4}
callbacks:
  geneval: null
  table: null
  end: end.End
  val: {init_args: {steps: 2, grid: 4, every_n_steps: 2}}
  checkpoint: {init_args: {every_n_steps: 1, keep: 9}}
"""
END = """
import os, signal
from lightning import Callback
from t2ikit.callbacks.snapshot import Snapshot


class End(Callback):
    '''Ends the run as the variable END says.'''

    def setup(self, trainer, pl_module, stage):
        if os.environ.get("END") == "before the snapshot of step 4":
            run = Snapshot.run

            def killed(snapshot, trainer, pl_module):
                if trainer.global_step == 4:
                    os.kill(os.getpid(), signal.SIGKILL)
                return run(snapshot, trainer, pl_module)

            Snapshot.run = killed

    def on_train_start(self, trainer, pl_module):
        how = os.environ.get("END")
        if how == "refusal":
            raise ValueError("refused by a callback")
        if how == "defect":
            raise RuntimeError("a defect of a callback")
        if how == "signal" and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_start(self, trainer, *args):
        if os.environ.get("END") == "defect in the second step" and trainer.global_step == 3:
            raise RuntimeError("a defect of a callback")
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of four steps that has ended, in the current folder."""
    folder = tiny.enter(tmp_path, monkeypatch, {"small.yaml": EXPERIMENT, "end.py": END})
    assert cli.main(["run", "small.yaml"]) == 0
    return folder / "runs" / "small" / "version_0"


def resumed(run: Path, end: str, *words: str, step: int = 2) -> subprocess.CompletedProcess[str]:
    """From the checkpoint of a step, in a process of its own that ends as END in end.py says."""
    environment = {**os.environ, "END": end, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    older = run / "checkpoints" / f"step-{step:08d}.ckpt"
    command = [sys.executable, "-m", "t2ikit", "run", "small.yaml", "--resume", str(older)]
    return subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=280)


def made(run: Path) -> set[str]:
    """Files of a run but for those of the evaluation and the settings."""
    paths = [*run.glob("checkpoints/**/*"), *run.glob("samples/**/*"), *run.glob("left-at-*"), run / "finished"]
    return {path.relative_to(run).as_posix() for path in paths if path.exists()}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize(("end", "status"), [("refusal", None), ("defect", 1), ("signal", 75)])
@pytest.mark.fault("an end before the first step after going back", "what was set aside is back in its place")
def test_a_run_without_a_step_leaves_nothing_aside(run: Path, end: str, status: int | None, ranks: int) -> None:
    before = made(run)
    forked = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"] if ranks == 2 else []
    done = resumed(run, end, *forked)
    assert done.returncode != 0 and status in (None, done.returncode), done.stderr[-3000:]
    assert "of later steps moved to" in done.stdout
    assert made(run) == before


@pytest.mark.slow
def test_a_run_that_has_made_a_step_keeps_what_it_left_aside(run: Path) -> None:
    done = resumed(run, "defect in the second step")
    assert done.returncode == 1 and "a defect of a callback" in done.stderr
    assert "checkpoints/left-at-00000002/step-00000004.ckpt" in made(run)
    assert "checkpoints/step-00000004.ckpt" not in made(run)


@pytest.mark.slow
@pytest.mark.fault("SIGKILL between a checkpoint and its snapshot, after going back", "the snapshot is made anew")
def test_a_snapshot_that_was_set_aside_is_made_anew(run: Path) -> None:
    samples, step = run / "samples" / "val", "step-00000004"
    first = read_scores(samples / "scores" / step)
    done = resumed(run, "before the snapshot of step 4", step=3)  # it makes no snapshot before that one
    assert done.returncode < 0 and not (samples / f"{step}.png").exists(), done.stderr[-3000:]
    assert (run / "checkpoints" / f"{step}.ckpt").exists()
    assert cli.main(["run", "small.yaml", "--resume", "last"]) == 0
    assert (samples / f"{step}.png").is_file()
    assert read_scores(samples / "scores" / step).keys() == first.keys()
    assert {at for at, _ in read_metrics(run / "metrics.csv")["val/loss"]} == {0, 2, 4}


@pytest.mark.slow
def test_scores_whose_files_are_gone_are_not_taken(run: Path) -> None:
    scores = run / "samples" / "val" / "scores" / "step-00000004"
    files = {path.name for path in scores.iterdir()}
    scores.rename(run / "elsewhere")
    assert cli.main(["run", "small.yaml", "--resume", "last", "--trainer.max_steps", "5"]) == 0
    assert {path.name for path in scores.iterdir()} == files
