"""Snapshots of real runs: training is left as it was, an interrupt costs a batch, two ranks score as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
from t2ikit import cli
from t2ikit.callbacks import Snapshot
from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.evaluation.image_store import ImageStore
from t2ikit.evaluation.validation import SCORES
from t2ikit.metrics.fingerprint import read_scores
from t2ikit.prompts import PromptFile

EXPERIMENT = """
extends: [tiny.yaml]
model: {init_args: {optimizer: {init_args: {lr: 0.05}}}}
trainer: {max_steps: 4}
callbacks:
  progress: null
  geneval: null
  val:
    init_args:
      prompts: {init_args: {limit: 10}}
      metrics: [{class_path: noisy.Noisy}]
      batch_size: 4
      steps: 2
      grid: 4
      every_n_steps: 2
  checkpoint: {init_args: {every_n_steps: 1, keep: 9}}
"""
NOISY = '''
import random
from pathlib import Path
import numpy as np
import torch
from t2ikit.metrics.base import Metric, Result


class Noisy(Metric):
    """The mean pixel; reseeds every global generator, and fails at its second call if the file `fail` is there."""

    def __init__(self, add: float = 0.0) -> None:
        self.add, self.calls = add, 0

    def score(self, samples, rows):
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        self.calls += 1
        if self.calls == 2 and Path("fail").exists():
            raise ValueError("a metric that fails")
        values = {"mean": float(samples.images[:].double().mean()) + self.add}
        return Result(values, files={"calls.json": str(self.calls).encode()})

    def fingerprint(self):
        return {"add": self.add}
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with small.yaml and noisy.py."""
    monkeypatch.delitem(sys.modules, "noisy", raising=False)
    return tiny.enter(tmp_path, monkeypatch, {"small.yaml": EXPERIMENT, "noisy.py": NOISY})


def run(*words: str) -> Path:
    """The run folder of a run that ends well."""
    name = words[words.index("--run.name") + 1] if "--run.name" in words else "small"
    assert cli.main(["run", "small.yaml", *words]) == 0
    return Path("runs") / name / "version_0"


def losses(run_folder: Path) -> list[tuple[int, float]]:
    return read_metrics(run_folder / "metrics.csv")["train/loss"]


def test_training_does_not_notice_a_snapshot(folder: Path) -> None:
    """With dropout, self-conditioning and the validation loss on, every loss and weight is the same, bit for bit."""
    dropout = ["--model.denoiser.dropout", "0.2"]
    plain = run("--run.name", "plain", *dropout, "--callbacks.val", "null", "--callbacks.table", "null")
    noticed = run("--run.name", "with", *dropout, "--callbacks.val.every_n_steps", "1")
    assert losses(noticed) == losses(plain) and len(losses(plain)) == 4
    assert [step for step, _ in read_metrics(noticed / "metrics.csv")["val/loss"]] == [0, 1, 2, 3, 4]
    first, second = (
        torch.load(each / "checkpoints" / "step-00000004.ckpt", weights_only=True)["state_dict"]
        for each in (plain, noticed)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = run("--callbacks.val.keep_images", "true") / "samples" / "val"
    steps = [f"step-{step:08d}" for step in (0, 2, 4)]
    files = {"prompts.txt", "newest.json", "scores", "details", *steps, *(f"{step}.png" for step in steps)}
    assert {path.name for path in samples.iterdir()} == files
    assert (samples / "details" / "step-00000004" / "calls.json").read_text() == "3"
    scores = read_scores(samples / "scores" / "step-00000004")
    assert set(scores) == {*SCORES, "mean"} and scores["mean"].step == 4
    assert scores["mean"].fingerprint.extra["weights"] == "ema 0.995"
    assert scores["loss"].fingerprint.num_reference == 16
    logged = read_metrics(samples.parent.parent / "metrics.csv")
    assert dict(logged["val/mean"])[4] == scores["mean"].value
    assert all(logged[f"val/seconds/{what}"] for what in ("sampling", "Noisy", "loss"))
    images = sorted((samples / "step-00000004").iterdir())
    assert len(images) == 10
    with Image.open(images[3]) as image:
        assert image.text["index"] == "3" and image.text["weights"] == "ema 0.995"  # type: ignore[attr-defined]
        assert image.text["steps"] == "2"  # type: ignore[attr-defined]
        assert image.text["prompt"] == (samples / "prompts.txt").read_text().splitlines()[3]  # type: ignore[attr-defined]
    assert "val: Noisy: " in capsys.readouterr().out


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


@pytest.mark.parametrize("resumed_at", [pytest.param(1, marks=pytest.mark.long), 2])
def test_an_interrupted_snapshot_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch, resumed_at: int) -> None:
    """Killed in the snapshot of step 2, training goes on from a checkpoint before it, or from one at it."""
    straight = run("--run.name", "straight")
    add, files = ImageStore.add, list[str]()

    def killed(self: ImageStore, first: int, images: torch.Tensor) -> None:
        if self.folder.name == "step-00000002.sampling" and len(files) == 2:
            raise Killed
        if self.folder.name == "step-00000002.sampling":
            files.append(self.folder.name)
        add(self, first, images)

    with monkeypatch.context() as patch:
        patch.setattr(ImageStore, "add", killed)
        with pytest.raises(Killed):
            run("--run.name", "cut")
    cut = Path("runs/cut/version_0")
    assert len(list((cut / "samples" / "val" / "step-00000002.sampling").glob("*.npy"))) == 2
    checkpoint = cut / "checkpoints" / f"step-{resumed_at:08d}.ckpt"
    drawn: list[tuple[str, int]] = []

    def counted(self: ImageStore, first: int, images: torch.Tensor) -> None:
        drawn.append((self.folder.name, first))
        add(self, first, images)

    monkeypatch.setattr(ImageStore, "add", counted)
    assert cli.main(["run", "small.yaml", "--run.name", "cut", "--resume", str(checkpoint)]) == 0
    assert [first for name, first in drawn if name == "step-00000002.sampling"] == [8]  # the third batch alone
    assert [first for name, first in drawn if name == "step-00000004.sampling"] == [0, 4, 8]
    assert not list((cut / "samples" / "val").glob("*.sampling"))
    for step in (2, 4):
        ours, theirs = (read_scores(each / "samples/val/scores" / f"step-{step:08d}") for each in (cut, straight))
        assert {name: score.value for name, score in ours.items()} == {n: s.value for n, s in theirs.items()}
        assert ours["mean"].fingerprint == theirs["mean"].fingerprint


def test_the_table_sets_only_like_beside_like(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--trainer.max_steps", "2")
    capsys.readouterr()
    metrics = "[{class_path: noisy.Noisy, init_args: {add: 5.0}}]"
    run("--trainer.max_steps", "4", "--resume", "last", "--callbacks.val.metrics", metrics)
    printed = " ".join(capsys.readouterr().out.split())
    assert "val/mean: the first score is not shown: these scores cannot be compared" in printed
    assert "they differ in extra.add: 0.0 and 5.0" in printed and "val/loss:" not in printed


@pytest.mark.long
def test_two_ranks_score_as_one_and_fail_together(folder: Path) -> None:
    """Processes of their own, through the real Trainer, which starts rank 1; a metric fails in the second snapshot."""
    kept = ["--trainer.max_steps", "2", "--callbacks.val.keep_images", "true"]
    one = run(*kept, "--run.name", "one")
    Path("fail").touch()
    command = [sys.executable, "-m", "t2ikit", "run", "small.yaml", *kept, "--run.name", "two"]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280
    )
    folders = [each / "samples" / "val" for each in (one, Path("runs/two/version_0"))]
    first, second = (read_scores(each / "scores" / "step-00000000") for each in folders)
    assert second.keys() == {*SCORES, "mean"}, done.stderr[-3000:]
    assert first["mean"].value == pytest.approx(second["mean"].value, abs=0.01)
    assert first["loss"].value == pytest.approx(second["loss"].value, rel=1e-5)
    assert {n: s.fingerprint for n, s in first.items()} == {n: s.fingerprint for n, s in second.items()}
    for number in range(10):
        pictures = [Image.open(each / "step-00000000" / f"{number:05d}.png") for each in folders]
        a, b = (torch.tensor(list(picture.tobytes())) for picture in pictures)
        assert (a - b).abs().max() <= 1
    assert done.returncode != 0 and "ValueError: a metric that fails" in done.stderr
    assert "OtherRankFailed: rank 0 failed: ValueError: a metric that fails" in done.stderr
    assert not (folders[1] / "scores" / "step-00000002").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("validation_loss", "false"),
        ("reference_limit", "8"),
        ("metrics", "[{class_path: noisy.Noisy, init_args: {add: 1.0}}]"),
    ],
)
def test_a_resume_scores_anew_what_other_settings_decide(folder: Path, option: str, value: str) -> None:
    """The snapshot of the last step is finished; one of the same settings is not made again."""
    samples = run() / "samples" / "val"
    before = (samples / "newest.json").read_text()
    for path in (samples / "scores" / "step-00000004").iterdir():
        path.unlink()
    again = ["--resume", "last", "--trainer.max_steps", "5", "--callbacks.val.at_end", "false"]
    assert cli.main(["run", "small.yaml", *again]) == 0
    assert not list((samples / "scores" / "step-00000004").iterdir())
    assert (samples / "newest.json").read_text() == before
    last = ["--resume", str(samples.parent.parent / "checkpoints" / "step-00000004.ckpt"), *again[2:]]
    assert cli.main(["run", "small.yaml", *last, f"--callbacks.val.{option}", value]) == 0
    assert "mean.json" in {path.name for path in (samples / "scores" / "step-00000004").iterdir()}


def test_weights_without_memory_are_named_so(folder: Path) -> None:
    samples = run("--callbacks.ema.decay", "[0.995, 0.0]", "--callbacks.val.ema_decay", "0.0") / "samples" / "val"
    scores = read_scores(samples / "scores" / "step-00000004")
    assert scores["mean"].fingerprint.extra["weights"] == "ema 0.0"


@pytest.mark.parametrize("name", ["../val", "/tmp/val", "a/../b", ""])
def test_a_name_that_leads_out_of_the_run_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no plain name of a file below samples"):
        Snapshot(PromptFile("prompts.txt"), name=name)
