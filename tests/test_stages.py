"""Stages: a tree of runs, killed inside each of them and between two, against one that nothing disturbs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    return tiny.enter(tmp_path, monkeypatch, {"tree.yaml": EXPERIMENT, "stop.py": STOP})


@pytest.mark.long
@pytest.mark.fault("SIGKILL in each stage and between two", "bit for bit as one that nobody disturbed")
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
    assert "stage first is not finished in runs/chain" in capsys.readouterr().err
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


TWO = """
a: {trainer: {max_steps: 4}, callbacks: {stop: {class_path: stop.Stop, init_args: {stage: a}}}}
b: {trainer: {max_steps: 2}, model: {init_args: {start: {checkpoint: stages.a@2}}}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment of two stages, b from step 2 of a, and a version in which both are trained."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        experiment = {**yaml.safe_load(EXPERIMENT), "stages": yaml.safe_load(TWO)}
        tiny.enter(folder, patch, {"two.yaml": yaml.safe_dump(experiment, sort_keys=False), "stop.py": STOP})
        assert cli.main(["run", "two.yaml"]) == 0
    return folder


@pytest.fixture
def two(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``finished``, which is the current folder."""
    return tiny.current(shutil.copytree(finished, tmp_path / "two"), monkeypatch)


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the stages of the experiment."""
    experiment = yaml.safe_load((folder / "two.yaml").read_text())
    change(experiment["stages"])
    (folder / "two.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))


def files(folder: Path) -> dict[str, bytes]:
    """Every file of the runs."""
    return {str(path): path.read_bytes() for path in sorted(folder.glob("runs/**/*")) if path.is_file()}


def rename_a(stages: dict[str, Any]) -> None:
    items = [
        ("c", stages["a"]),
        ("b", {**stages["b"], "model": {"init_args": {"start": {"checkpoint": "stages.c@2"}}}}),
    ]
    stages.clear()
    stages.update(items)


def reorder(stages: dict[str, Any]) -> None:
    items = [("b", {"trainer": {"max_steps": 2}}), ("a", stages["a"])]
    stages.clear()
    stages.update(items)


A_STEP = "runs/two/version_0/a/checkpoints/step-0000000{}.ckpt"
CHANGES: list[tuple[str, Callable[[dict[str, Any]], object], list[str], list[str]]] = [
    (
        "another rate",
        lambda stages: stages["a"].update(seed_everything=9),
        ["last"],
        ["stage a", "seed_everything", "9"],
    ),
    (
        "another rate of the stage that another starts from",
        lambda stages: stages["a"].update(seed_everything=9),
        ["last", "--stage", "b"],
        ["finished stage a", "seed_everything was 0, now 9", "--allow stages.a"],
    ),
    (
        "what decides the data and the averages",
        lambda stages: stages["a"].update(
            data={"init_args": {"seed": 3, "num_workers": 0}},
            callbacks={**stages["a"]["callbacks"], "ema": {"init_args": {"warmup": False}}},
        ),
        ["last"],
        ["callbacks.ema.warmup was True, now False", "data.seed was 0, now 3"],
    ),
    ("fewer steps", lambda stages: stages["a"]["trainer"].update(max_steps=3), ["last"], ["was 4, now 3"]),
    ("renamed", rename_a, ["last"], ["has a stage a, which two.yaml lacks", "--allow stages.a"]),
    ("reordered", reorder, ["last"], ["finished stage b", "a/checkpoints/step-00000002.ckpt"]),
    (
        "another start",
        lambda stages: stages["b"]["model"]["init_args"]["start"].update(checkpoint="stages.a@4"),
        ["last"],
        ["begun stage b from", "step-00000002.ckpt"],
    ),
    (
        "back before another's start",
        lambda stages: None,
        [A_STEP.format(1)],
        ["stage b from stages.a@2", "from step 1"],
    ),
    (
        "a checkpoint of another stage",
        lambda stages: None,
        [A_STEP.format(4), "--stage", "b"],
        ["of stage a", "names b"],
    ),
]


@pytest.mark.parametrize(("change", "words", "said"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_a_trained_stage_that_the_experiment_no_longer_describes_is_refused_and_nothing_changes(
    two: Path,
    change: Callable[[dict[str, Any]], object],
    words: list[str],
    said: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    edited(two, change)
    checkpoint = two / A_STEP.format(1)
    torch.save({**torch.load(two / A_STEP.format(2), weights_only=True), "global_step": 1}, checkpoint)
    before = files(two)
    assert cli.main(["run", "two.yaml", "--resume", *words]) == 2
    message = capsys.readouterr().err
    assert all(text in message for text in said), message
    assert files(two) == before


@pytest.mark.long
def test_a_finished_stage_goes_on_to_more_steps_and_what_started_from_its_end_is_refused(
    two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = files(two / "runs" / "two" / "version_0" / "b")
    edited(two, lambda stages: stages["a"]["trainer"].update(max_steps=6))
    assert cli.main(["run", "two.yaml", "--resume", "last"]) == 0  # b started from step 2, which stays
    said = capsys.readouterr().out
    assert "step-00000004.ckpt" in said and "stage b: finished before" in said
    losses = read_metrics(two / "runs/two/version_0/a/metrics.csv")["train/loss"]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    assert files(two / "runs" / "two" / "version_0" / "b") == kept
    assert cli.main(["run", "two.yaml", "--resume", "last"]) == 0
    assert "stage a: finished before" in capsys.readouterr().out

    edited(two, lambda stages: stages["b"]["model"]["init_args"]["start"].update(checkpoint="stages.a"))
    edited(two, lambda stages: stages["a"]["trainer"].update(max_steps=8))
    assert cli.main(["run", "two.yaml", "--resume", "last"]) == 2
    assert "begun stage b from stages.a, which this command would train again from step 6" in capsys.readouterr().err
    assert cli.main(["run", "two.yaml", "--resume", "last", "--allow", "stages.b"]) == 0
    assert "stage b: finished before" in capsys.readouterr().out
    assert (two / "runs/two/version_0/a/checkpoints/step-00000008.ckpt").exists()


def test_what_decides_nothing_may_change_about_a_finished_stage(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(two / "runs" / "two")
    free = ["--callbacks.checkpoint.keep", "5", "--callbacks.guard.policy", "skip"]
    free += ["--data.num_workers", "0", "--trainer.log_every_n_steps", "2", "--trainer.accumulate_grad_batches", "2"]
    assert cli.main(["run", "two.yaml", "--resume", "last", *free]) == 0
    said = capsys.readouterr().out
    assert "stage a: finished before" in said and "stage b: finished before" in said
    assert files(two / "runs" / "two") == before


@pytest.mark.long
def test_a_stage_that_was_killed_after_its_extension_began_is_not_taken_for_finished(two: Path) -> None:
    edited(two, lambda stages: stages["a"]["trainer"].update(max_steps=6))
    shutil.rmtree(two / "runs/two/version_0/b")
    tiny.killed("a@5", "run", "two.yaml", "--resume", "last")
    (two / "runs/two/version_0/a/checkpoints/step-00000004.ckpt").stat()  # the newest one: step 5 has none
    assert cli.main(["run", "two.yaml", "--resume", "last"]) == 0
    assert (two / "runs/two/version_0/a/checkpoints/step-00000006.ckpt").exists()


def test_a_stage_that_is_trained_already_says_where(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "two.yaml", "--stage", "b"]) == 2
    said = capsys.readouterr().err
    assert "finished in runs/two/version_0" in said and "--resume last" in said and "version_1" not in said
    assert [path.name for path in (two / "runs/two").iterdir()] == ["version_0"]
    assert cli.main(["run", "two.yaml", "--stage", "b", "--resume", "last"]) == 0
    (two / "runs/two/version_0/b").rename(two / "runs/two/version_0/b.old")
    assert cli.main(["run", "two.yaml", "--stage", "b"]) == 0
    assert (two / "runs/two/version_0/b/finished").exists()


@pytest.mark.long
def test_auto_goes_on_with_a_version_that_has_not_ended(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version = two / "runs/two/version_0"
    (version / "b/finished").unlink()
    assert cli.main(["run", "two.yaml", "--resume", "auto"]) == 0
    assert (version / "b/finished").exists() and "stage a: finished before" in capsys.readouterr().out
    shutil.rmtree(version / "b")
    assert cli.main(["run", "two.yaml"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("runs/two/version_0 has not ended") and first.endswith("--resume auto")
    assert cli.main(["run", "two.yaml", "--resume", "auto", "--stage", "b"]) == 0
    assert (version / "b/finished").exists()
    assert sorted(path.name for path in (two / "runs/two").iterdir()) == ["version_0", "version_1"]


def test_a_stage_that_another_process_trains_is_left_alone(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = two / "runs/two/version_0/b"
    shutil.rmtree(stage / "checkpoints")  # without one, a stage that nobody trains is set aside
    with tiny.locked(stage):
        for resume in ("last", "auto"):
            assert cli.main(["run", "two.yaml", "--resume", resume]) == 2
            assert "version_0/b: another process trains in this run folder" in capsys.readouterr().err
    assert sorted(path.name for path in stage.parent.iterdir()) == ["a", "b"]


def test_stages_go_on_under_their_name_only(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(two / "runs")
    for given in ("runs/two/version_0", "runs/two/version_0/b/checkpoints/step-00000002.ckpt"):
        assert cli.main(["run", "two.yaml", "--resume", given, "--run.name", "fork"]) == 2
        assert "Add --fork" in capsys.readouterr().err
    assert cli.main(["run", "two.yaml", "--resume", "last", "--fork"]) == 2
    assert "copy its version" in capsys.readouterr().err
    assert files(two / "runs") == before


def test_steps_that_others_start_from_are_kept_beside_those_of_the_user(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = yaml.safe_load(EXPERIMENT)
    experiment["callbacks"]["checkpoint"] = {"init_args": {"every_n_steps": 9, "keep": 1, "keep_steps": [1]}}
    experiment["stages"] = {"a": {}, "b": {"trainer": {"max_steps": 1}}}
    (folder / "kept.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    start = ["--stages.b.model.start", "{checkpoint: stages.a@3}"]
    assert cli.main(["run", "kept.yaml", *start, "--callbacks.checkpoint.keep_steps", "[1, 2]"]) == 0
    kept = sorted(path.name for path in folder.glob("runs/kept/version_0/a/checkpoints/*"))
    assert kept == [f"step-0000000{step}.ckpt" for step in (1, 2, 3, 4)]


MISTAKES = [
    (["--stage", "huge"], "has no such stage"),
    (["--stages.large.model.start.checkpoint", "stages.scratch"], "is no stage before it"),
    (["--stages.large.model.start.checkpoint", "stages.small@0"], "is no stage before it"),
    (["--stages.large.model.start.checkpoint", "stages.small@99"], "stage small ends at step 4"),
    (["--stages.large.model.start.fit", "bend"], "start"),
    (["--stages.large.model.start.fit", "strict"], "data_pos_embedding"),
    (["--stages.large.run.name", "x"], "expected keys of an experiment"),
    (["--resume", "last"], "no version in"),
    (["--resume", "last", "--allow", "stages.a-b"], "expected stages.NAME"),
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
