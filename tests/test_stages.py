"""Stages: a tree of runs, killed inside each of them and between two, against one that nothing disturbs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics

STOP = """
import os, signal
from lightning import Callback

class Stop(Callback):
    '''Kills the process at STAGE@STEP of the variable KILL, or when that stage begins, at STAGE@start.'''

    def __init__(self, stage: str):
        self.stage = stage

    def at(self, what):
        if os.environ.get("KILL") == f"{self.stage}@{what}":
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_start(self, trainer, module):
        self.at("start")

    def on_train_batch_end(self, trainer, *args):
        self.at(trainer.global_step)

    def on_fit_end(self, trainer, module):
        self.at("end")
"""
# 16 pixels; 32 pixels from its end, with resized positions; 32 pixels from scratch.
EXPERIMENT = """
extends: [tiny.yaml]
trainer: {max_steps: 4}
callbacks:
  val: null
  geneval: null
  table: null
  cutmix: null
  checkpoint: {init_args: {every_n_steps: 2}}
data: {init_args: {settings: []}}
stages:
  small:
    callbacks: {stop: {class_path: stop.Stop, init_args: {stage: small}}}
  large:
    model: {init_args: {denoiser: {init_args: {input_size: 32}}, start: {checkpoint: stages.small@3, fit: resize}}}
    data: {init_args: {size: 32}}
    callbacks: {stop: {class_path: stop.Stop, init_args: {stage: large}}}
  scratch:
    model: {init_args: {denoiser: {init_args: {input_size: 32}}, start: null}}
    data: {init_args: {size: 32}}
    callbacks: {stop: {class_path: stop.Stop, init_args: {stage: scratch}}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sys.modules.pop("stop", None)  # of an earlier test, from another folder
    return tiny.enter(tmp_path, monkeypatch, {"tree.yaml": EXPERIMENT, "stop.py": STOP})


def test_a_tree_killed_in_each_stage_and_between_two_ends_as_an_undisturbed_one(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "tree.yaml"]) == 0
    tiny.killed("small@3", "run", "tree.yaml")
    tiny.killed("large@start", "run", "tree.yaml", "--resume", "last")  # between two stages
    tiny.killed("large@3", "run", "tree.yaml", "--resume", "last")
    tiny.killed("scratch@1", "run", "tree.yaml", "--resume", "last")  # before its first checkpoint
    capfd.readouterr()
    assert cli.main(["run", "tree.yaml", "--resume", "last"]) == 0
    assert "stage small: finished before" in capfd.readouterr().out
    straight, broken = (folder / "runs" / "tree" / f"version_{number}" for number in (0, 1))
    for stage in ("small", "large", "scratch"):
        whole, resumed = (read_metrics(version / stage / "metrics.csv")["train/loss"] for version in (straight, broken))
        assert [step for step, _ in whole] == [1, 2, 3, 4] and whole == resumed
        ends = [
            torch.load(version / stage / "checkpoints" / "step-00000004.ckpt", weights_only=True)
            for version in (straight, broken)
        ]
        for name, weight in ends[0]["state_dict"].items():
            assert torch.equal(weight, ends[1]["state_dict"][name])
        assert (broken / stage / "finished").exists()
    assert len(list(broken.glob("*.left-*"))) == 2  # begun without a checkpoint: kept aside, not written over

    start = torch.load(straight / "large" / "checkpoints" / "step-00000004.ckpt", weights_only=True)["start"]
    assert (
        start["checkpoint"].endswith("small/checkpoints/step-00000003.ckpt")
        and "data_pos_embedding" in start["changes"]
    )
    assert "start" not in torch.load(straight / "scratch" / "checkpoints" / "step-00000004.ckpt", weights_only=True)
    assert (
        straight / "small" / "checkpoints" / "step-00000003.ckpt"
    ).exists()  # kept for the stage that starts from it


def test_one_stage_and_a_stage_that_says_nothing_starts_from_the_one_before(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = yaml.safe_load(EXPERIMENT)
    experiment["stages"] = {"first": {}, "second": {"trainer": {"max_steps": 2}}}
    (folder / "chain.yaml").write_text(yaml.safe_dump(experiment))
    assert cli.main(["run", "chain.yaml", "--stage", "second"]) == 2
    assert "stage first is not finished" in capsys.readouterr().err
    assert not list(folder.glob("runs/chain/*"))
    assert cli.main(["run", "chain.yaml", "--stage", "first"]) == 0
    assert cli.main(["run", "chain.yaml", "--stage", "second"]) == 0
    end, kept = (
        torch.load(folder / f"runs/chain/version_0/{stage}/checkpoints/step-0000000{step}.ckpt", weights_only=True)
        for stage, step in (("first", 4), ("second", 2))
    )
    assert kept["start"]["weights"].startswith("ema")
    averages = next(iter(end["callbacks"]["EMA"]["profiles"].values()))
    assert kept["start"]["sha256"] and averages.keys() <= {
        name.removeprefix("denoiser.") for name in kept["state_dict"] if name.startswith("denoiser.")
    }


MISTAKES = [
    (["--stage", "huge"], "has no such stage"),
    (["--stages.large.model.start.checkpoint", "stages.scratch"], "is no stage before it"),
    (["--stages.large.model.start.fit", "bend"], "start"),
    (["--stages.large.model.start.fit", "strict"], "data_pos_embedding"),
    (["--stages.large.run.name", "x"], "expected keys of an experiment"),
    (["--resume", "last"], "no version in"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_mistakes(folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "tree.yaml", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model.start.checkpoint", "stages.a"],
            "stages.a is the end of a stage, but the experiment has no",
        ),
        (["--model.start.checkpoint", "~/nowhere.ckpt"], "home/nowhere.ckpt: no such file"),
        (["--model.trainable", "[]"], "model.init_args.trainable: names nothing to train; null trains all"),
        (
            ["--callbacks.val.guidance", "{weaker: {checkpoint: nowhere.ckpt}}"],
            "weaker.checkpoint nowhere.ckpt: no such",
        ),
    ],
)
def test_a_missing_checkpoint_is_refused_before_anything_is_read(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setattr("lightning.pytorch.Trainer.fit", None)
    assert cli.main(["run", "tiny.yaml", *words]) == 2
    assert message in capsys.readouterr().err


def test_an_experiment_without_stages_has_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "tiny.yaml", "--stage", "small"]) == 2
    assert "has no stages" in capsys.readouterr().err
