"""Lightning's callbacks that look at a score, and guidance by a network out of a checkpoint, in runs of their own."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.callbacks.monitors import Names
from t2ikit.checkpoints import load_denoiser

BEST = """
extends: [tiny.yaml]
trainer: {max_steps: 6}
callbacks:
  geneval: null
  table: null
  cutmix: null
  val: {init_args: {every_n_steps: 2, steps: 2, reference: null, metrics: [], grid: 4, at_start: false}}
  checkpoint: {init_args: {every_n_steps: 100}}
  best:
    class_path: lightning.pytorch.callbacks.ModelCheckpoint
    init_args: {monitor: val/loss_fixed_t, save_top_k: 3, save_on_train_epoch_end: false}
data: {init_args: {settings: []}}
"""
WEAKER = """
extends: [best.yaml]
trainer: {max_steps: 2}
callbacks:
  best: null
  seen: seen.Seen
  val:
    init_args:
      guidance:
        class_path: t2ikit.diffusion.Guidance
        init_args: {weight: 2.0, weaker: {checkpoint: runs/best/version_0}}
"""
SEEN = """
import torch
from lightning import Callback

class Seen(Callback):
    '''Keeps the weights of the weaker network of a snapshot.'''

    def on_train_end(self, trainer, module):
        (snapshot,) = [callback for callback in trainer.callbacks if type(callback).__name__ == "Snapshot"]
        torch.save(snapshot.sampling.guidance.weaker.state_dict(), "weaker.pt")
"""


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run whose best checkpoints Lightning's ModelCheckpoint has kept."""
    with pytest.MonkeyPatch.context() as patch:
        files = {"best.yaml": BEST, "weaker.yaml": WEAKER, "seen.py": SEEN}
        folder = tiny.enter(tmp_path_factory.mktemp("best"), patch, files)
        assert cli.main(["run", "best.yaml"]) == 0
    return folder


@pytest.fixture
def folder(best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``best``, which is the current folder."""
    sys.modules.pop("seen", None)  # of an earlier test, from another folder
    return tiny.current(shutil.copytree(best, tmp_path / "copy"), monkeypatch)


def test_a_run_resumes_bit_for_bit_from_what_modelcheckpoint_kept_for_a_score(folder: Path) -> None:
    run = folder / "runs/best/version_0"
    kept = {path.name: path for path in run.glob("checkpoints/epoch=*")}
    assert sorted(kept) == [f"epoch=0-step={step}.ckpt" for step in (2, 4, 6)]
    end = torch.load(run / "checkpoints/step-00000006.ckpt", weights_only=True)
    losses = read_metrics(run / "metrics.csv")
    assert cli.main(["run", "best.yaml", "--resume", str(kept["epoch=0-step=2.ckpt"])]) == 0
    again = torch.load(run / "checkpoints/step-00000006.ckpt", weights_only=True)
    for name, value in end["state_dict"].items():
        assert torch.equal(value, again["state_dict"][name]), name
    for name, value in end["callbacks"]["EMA"]["profiles"]["0.995"].items():
        assert torch.equal(value, again["callbacks"]["EMA"]["profiles"]["0.995"][name]), name
    for name in ("train/loss", "val/loss_fixed_t"):
        assert read_metrics(run / "metrics.csv")[name] == losses[name]


def test_the_denoiser_of_a_kept_checkpoint_has_its_averages(folder: Path) -> None:
    path = folder / "runs/best/version_0/checkpoints/epoch=0-step=4.ckpt"
    averages = torch.load(path, weights_only=True)["callbacks"]["EMA"]["profiles"]["0.995"]
    weights = load_denoiser(path).state_dict()
    assert averages and all(torch.equal(weights[name], value) for name, value in averages.items())


@pytest.mark.parametrize(("monitor", "last"), [("val/loss_fixed_t", 4), ("val/loss", 4)])
def test_a_score_that_does_not_fall_stops_the_run(folder: Path, monitor: str, last: int) -> None:
    stop = f"{{monitor: {monitor}, patience: 1, min_delta: 1000, check_on_train_epoch_end: false}}"
    node = f"{{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {stop}}}"
    assert cli.main(["run", "best.yaml", "--run.name", "stopped", "--callbacks.stop", node]) == 0
    steps = [step for step, _ in read_metrics(folder / "runs/stopped/version_0/metrics.csv")["train/loss"]]
    assert steps[-1] == last


STOP, OURS = "lightning.pytorch.callbacks.EarlyStopping", "t2ikit.callbacks.Checkpoint"
SECOND = """
extends: [best.yaml]
callbacks:
  best: {init_args: {monitor: other/loss_fixed_t, save_on_train_epoch_end: null}}
  other:
    class_path: t2ikit.callbacks.Snapshot
    init_args:
      prompts: {class_path: t2ikit.evaluation.CaptionPrompts, init_args: {split: val, limit: 4}}
      validation_loss: true
      every_n_steps: 4
      steps: 2
      at_start: false
  stop:
    class_path: lightning.pytorch.callbacks.EarlyStopping
    init_args: {monitor: other/loss_fixed_t, patience: 1, min_delta: 1000}
"""


def test_a_monitor_looks_after_its_own_snapshot_alone(folder: Path) -> None:
    """By default it looks after its snapshot, not at the end of an epoch, and not after another snapshot."""
    (folder / "second.yaml").write_text(SECOND)
    assert cli.main(["run", "second.yaml", "--trainer.max_steps", "8", "--run.name", "second"]) == 0
    run = folder / "runs/second/version_0"
    assert sorted(path.name for path in run.glob("checkpoints/epoch=*")) == [
        f"epoch=0-step={step}.ckpt" for step in (4, 8)
    ]
    assert [step for step, _ in read_metrics(run / "metrics.csv")["other/loss_fixed_t"]] == [4, 8]


@pytest.mark.parametrize("kind", [STOP, "lightning.pytorch.callbacks.ModelCheckpoint"])
@pytest.mark.parametrize(
    ("monitor", "message"), [("val/los", "monitor one of val/loss"), ("fid", "a run has val/SCORE, train/loss and")]
)
def test_a_monitor_that_no_score_has_is_refused_with_those_that_exist(
    folder: Path, kind: str, monitor: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    node = f"{{class_path: {kind}, init_args: {{monitor: {monitor}}}}}"
    words = ["--callbacks.best", "null", "--callbacks.watch", node, "--callbacks.val.at_start", "true"]
    assert cli.main(["run", "best.yaml", "--run.name", "watched", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs/watched").exists()


def watching(kind: str, monitor: str, **options: Any) -> list[str]:
    """Words that have one callback watch a score, in a run of its own name."""
    given = json.dumps({"monitor": monitor, **options})
    if kind == OURS:
        return ["--run.name", "watched", "--callbacks.best", "null", "--callbacks.checkpoint.init_args", given]
    node = json.dumps({"class_path": kind, "init_args": {"monitor": monitor, **options}})
    return ["--run.name", "watched", "--callbacks.best", "null", "--callbacks.watch", node]


def steps_of(run: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*.ckpt"))


@pytest.mark.parametrize("kind", [STOP, "lightning.pytorch.callbacks.ModelCheckpoint", OURS])
@pytest.mark.parametrize(
    ("monitor", "words", "message"),
    [
        ("train/los", (), "nothing gives the score train/los .*nearest known: train/loss"),
        ("train/share/raw", (), "nothing gives the score train/share/raw"),  # there is one source
        ("vall/loss_fixed_t", (), "nothing gives the score vall/loss_fixed_t .*nearest known: val/loss_fixed_t"),
        ("train/loss", ("--trainer.log_every_n_steps", "7"), "trainer.log_every_n_steps is 7, and the run has 6"),
        ("train/loss", ("--trainer.log_every_n_steps", "0"), "trainer.log_every_n_steps is 0"),
        ("train/loss", ("--callbacks.training_log", "null"), "no t2ikit.callbacks.TrainingLog"),
    ],
)
def test_a_name_that_nothing_logs_is_refused_where_it_is_written(
    folder: Path, kind: str, monitor: str, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where ``mode`` says whether less is better, and before a step is made."""
    assert cli.main(["run", "best.yaml", *watching(kind, monitor, mode="min"), *words]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and ("callbacks.checkpoint" if kind == OURS else "callbacks.watch") in error
    assert not (folder / "runs/watched").exists()


def test_a_likely_mistake_beside_a_plug_in_is_told() -> None:
    """A plug-in may log any name, so nothing is refused."""
    names = Names(("val",), frozenset({"train/loss"}), frozenset(), anything=True, missing="")
    for monitor, near in (("train/los", "train/loss"), ("vall/loss_fixed_t", "val/loss_fixed_t")):
        with pytest.warns(UserWarning, match=f"only a plug-in can give the score {monitor} .*nearest known: {near}"):
            names.refuse_unknown(monitor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for monitor in ("train/loss", "val/any", "train/gradient_norm"):
            names.refuse_unknown(monitor)
    with pytest.raises(ValueError, match="nothing gives the score train/gradient_norm"):
        replace(names, anything=False).refuse_unknown("train/gradient_norm")


def test_a_trial_of_an_experiment_that_watches_the_training_is_made(folder: Path) -> None:
    words = ["--trainer.log_every_n_steps", "5", "--trainer.fast_dev_run", "true"]
    assert cli.main(["run", "best.yaml", *watching(STOP, "train/loss"), *words]) == 0


def test_the_best_by_the_training_loss_stay(folder: Path) -> None:
    """Of the checkpoints, those of the least loss; over a resume too, and where it is logged more often."""
    words = watching(OURS, "train/loss", mode="min", keep=1, keep_best=3, every_n_steps=2)
    assert cli.main(["run", "best.yaml", *words, "--trainer.max_steps", "10"]) == 0
    assert cli.main(["run", "best.yaml", *words, "--trainer.max_steps", "20", "--resume", "last"]) == 0
    run = folder / "runs/watched/version_0"
    losses = {step: loss for step, loss in read_metrics(run / "metrics.csv")["train/loss"] if step % 2 == 0}
    best = sorted(losses, key=losses.__getitem__)[:3]
    assert len(losses) == 10 and min(best) < 18
    assert steps_of(run) == sorted({20, *best})
    content = torch.load(run / "checkpoints/step-00000020.ckpt", weights_only=True)
    kept = next(state for key, state in content["callbacks"].items() if "scores" in state)["scores"]
    assert len(kept) <= 6 and kept[20] == losses[20]


def test_a_checkpoint_at_steps_without_the_value_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = watching(OURS, "train/loss", mode="min", every_n_steps=3)
    assert cli.main(["run", "best.yaml", *words, "--trainer.log_every_n_steps", "2"]) == 2
    assert re.search(r"every_n_steps is 3; .*multiple of trainer\.log_every_n_steps \(2\)", capsys.readouterr().err)


@pytest.mark.parametrize("options", [{}, {"check_on_train_epoch_end": True}])
def test_the_training_loss_stops_a_run_when_it_is_logged(folder: Path, options: dict[str, Any]) -> None:
    """An epoch has 8 steps: it is logged after the second, and every snapshot is before it is logged again."""
    words = watching(STOP, "train/loss", patience=1, min_delta=1000, **options)
    assert cli.main(["run", "best.yaml", *words, "--trainer.max_steps", "60", "--trainer.log_every_n_steps", "20"]) == 0
    logged = [step for step, _ in read_metrics(folder / "runs/watched/version_0/metrics.csv")["train/loss"]]
    last = steps_of(folder / "runs/watched/version_0")[-1]
    assert (logged, last) == (([20, 40], 40) if not options else ([20], 32))


def test_a_snapshot_is_guided_by_the_averages_of_a_checkpoint(folder: Path) -> None:
    assert cli.main(["run", "weaker.yaml"]) == 0
    used = torch.load(folder / "weaker.pt", weights_only=True)
    content = torch.load(folder / "runs/best/version_0/checkpoints/step-00000006.ckpt", weights_only=True)
    averages = content["callbacks"]["EMA"]["profiles"]["0.995"]
    assert averages and all(torch.equal(used[name], value) for name, value in averages.items())
    raw = {name.removeprefix("denoiser."): value for name, value in content["state_dict"].items()}
    assert any(not torch.equal(used[name], raw[name]) for name in averages)
    samples = [folder / f"runs/{name}/version_0/samples/val/step-00000002.png" for name in ("best", "weaker")]
    assert samples[0].read_bytes() != samples[1].read_bytes()


def test_a_weaker_network_that_is_missing_is_refused_before_the_first_step(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--callbacks.val.guidance.weaker.checkpoint", "runs/nowhere/step-00000001.ckpt"]
    assert cli.main(["run", "weaker.yaml", *words]) == 2
    assert "runs/nowhere/step-00000001.ckpt: no such file" in capsys.readouterr().err
    assert not (folder / "runs/weaker").exists()
