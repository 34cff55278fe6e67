"""A loss or gradient that is not finite makes no update: stop with a bundle that can be replayed, or skip and count."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics

EXPERIMENT = """
extends: [tiny.yaml]
trainer: {max_steps: 6}
callbacks: {val: null, geneval: null, table: null, checkpoint: {init_args: {every_n_steps: 1, keep: 9}}}
"""
POISON = '''
import torch
from lightning import Callback


class Image(Callback):
    """Breaks an image of some steps, on the last rank."""

    def __init__(self, steps: list[int]):
        self.steps = steps

    def setup(self, trainer, pl_module, stage):
        def poison(batch):
            if trainer.global_step + 1 in self.steps and trainer.global_rank == trainer.world_size - 1:
                batch.latents[-1] = torch.nan
            return batch

        pl_module.add_batch_transform(poison)


class Gradient(Callback):
    """Breaks one gradient of a step; its loss stays finite."""

    def __init__(self, steps: list[int]):
        self.steps = steps

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step + 1 in self.steps:
            next(pl_module.denoiser.parameters()).grad[0] = torch.inf
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sys.modules.pop("poison", None)  # of an earlier test, from another folder
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tiny.enter(tmp_path, monkeypatch, {"small.yaml": EXPERIMENT, "poison.py": POISON})


def words(kind: str, steps: list[int], *others: str) -> list[str]:
    return [
        "run",
        "small.yaml",
        "--callbacks.poison",
        f"{{class_path: poison.{kind}, init_args: {{steps: {steps}}}}}",
        *others,
    ]


def content(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else bool(first == second)


@pytest.mark.parametrize(("kind", "accumulate"), [("Image", 1), ("Image", 2), ("Gradient", 1)])
def test_a_bad_step_stops_before_its_update_and_can_be_made_again(
    folder: Path, capsys: pytest.CaptureFixture[str], kind: str, accumulate: int
) -> None:
    assert cli.main(words(kind, [4], "--trainer.accumulate_grad_batches", str(accumulate))) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    [said] = re.findall(r"^error: (.* is not finite at optimizer step 4;.* No update was made.*)$", error, re.MULTILINE)
    run = folder / "runs/small/version_0"
    bundle = run / "debug/step-00000004"
    assert f"`t2ikit replay {bundle.relative_to(folder)}`" in said
    before, checkpoint = content(bundle / "before.ckpt"), content(run / "checkpoints/step-00000003.ckpt")
    assert before["global_step"] == 3
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "DataModule"):
        if key in checkpoint:
            assert same(before[key], checkpoint[key]), key
    assert same(before["callbacks"]["EMA"], checkpoint["callbacks"]["EMA"])
    report = json.loads((bundle / "report.json").read_text())
    ((rows),) = report["records"]
    assert len(rows) == 8 and all(0 <= row["t"] <= 1 for row in rows)
    bad = [row["record"] for row in rows if not row["finite"]]
    assert len(bad) == (accumulate if kind == "Image" else 0) and all(name in said for name in bad)
    assert bad == [] or bad[0] in (bundle / "report.txt").read_text()
    capsys.readouterr()
    assert cli.main(["replay", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert "step 4: 8 records on 1 rank" in out and "equal to the bundle, bit for bit" in out
    if kind == "Image":
        assert f"not finite, forward: the batch: the image of {bad[0]}, then" in out
    else:
        assert "forward: all values are finite" in out
        assert re.search(r"not finite, backward: denoiser\.\S+ \(gradient of a weight\)", out)


def test_skipped_steps_change_nothing_and_are_counted_over_a_resume(folder: Path) -> None:
    skip = ["--callbacks.guard.policy", "skip"]
    assert cli.main(words("Image", [3, 5], *skip)) == 0
    run = folder / "runs/small/version_0"
    second, third = (content(run / f"checkpoints/step-0000000{step}.ckpt") for step in (2, 3))
    assert same(second["state_dict"], third["state_dict"])
    assert same(second["callbacks"]["EMA"], third["callbacks"]["EMA"])
    assert same(second["optimizer_states"][0]["state"], third["optimizer_states"][0]["state"])
    assert read_metrics(run / "metrics.csv")["train/skipped_steps"] == [(3, 1.0), (5, 2.0)]
    end = content(run / "checkpoints/step-00000006.ckpt")
    assert end["callbacks"]["NonFiniteGuard"] == {"skipped": 2, "in_a_row": 0}
    for step in (4, 5, 6):
        (run / f"checkpoints/step-0000000{step}.ckpt").unlink()
    (run / "finished").unlink()
    assert cli.main(words("Image", [3, 5], *skip, "--resume", "last")) == 0
    resumed = content(run / "checkpoints/step-00000006.ckpt")
    assert same(end["state_dict"], resumed["state_dict"]) and same(end["callbacks"], resumed["callbacks"])
    assert read_metrics(run / "metrics.csv")["train/skipped_steps"] == [(3, 1.0), (5, 2.0)]


@pytest.mark.parametrize(("bound", "steps", "last"), [("max_skipped", [2, 4, 6], 6), ("max_in_a_row", [2, 3, 4], 4)])
def test_more_skipped_steps_than_the_bounds_stop(
    folder: Path, capsys: pytest.CaptureFixture[str], bound: str, steps: list[int], last: int
) -> None:
    options = ["--callbacks.guard.policy", "skip", f"--callbacks.guard.{bound}", "2"]
    assert cli.main(words("Image", steps, *options)) == 1
    assert re.search(rf"step {last};.* 2 steps were skipped before", capsys.readouterr().err)


def test_the_number_of_skipped_steps_may_end_a_run(folder: Path) -> None:
    """EarlyStopping looks when a step is skipped: the second one is the second value, which is no less."""
    stop = "{monitor: train/skipped_steps, mode: min, patience: 1}"
    node = f"{{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {stop}}}"
    skip = ["--callbacks.guard.policy", "skip", "--callbacks.stop", node]
    assert cli.main(words("Image", [2, 4], *skip)) == 0
    run = folder / "runs/small/version_0"
    assert read_metrics(run / "metrics.csv")["train/skipped_steps"] == [(2, 1.0), (4, 2.0)]
    assert max(step for step, _ in read_metrics(run / "metrics.csv")["train/loss"]) == 4


def test_the_guard_changes_no_digit(folder: Path) -> None:
    for name, options in (("on", []), ("off", ["--callbacks.guard", "null"])):
        assert cli.main(["run", "small.yaml", "--run.name", name, *options]) == 0
    on, off = (content(folder / f"runs/{name}/version_0/checkpoints/step-00000006.ckpt") for name in ("on", "off"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(on[key], off[key]), key


@pytest.mark.long
def test_two_ranks_stop_together_and_replay(folder: Path) -> None:
    options = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accumulate_grad_batches", "2"]
    command = [sys.executable, "-m", "t2ikit", *words("Image", [2], *options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode != 0 and "is not finite at optimizer step 2" in done.stderr
    bundle = folder / "runs/small/version_0/debug/step-00000002"
    report = json.loads((bundle / "report.json").read_text())
    assert [sum(not row["finite"] for row in rows) for rows in report["records"]] == [0, 2]
    command = [sys.executable, "-m", "t2ikit", "replay", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and "step 2: 8 records on 2 ranks" in done.stdout, done.stderr[-3000:]
