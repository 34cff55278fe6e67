"""ImageClassifier under ``lightning run``: callbacks, results, and a killed run that goes on bit for bit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

import tiny
from t2ikit import cli, rng
from t2ikit.classify import ClassFolders, ImageClassifier
from t2ikit.classify.results import read_results

Options = Callable[..., dict[str, object]]
SMALL = """
extends: [synthreal/rgb.yaml]
model: {init_args: {network: test_resnet}}
data:
  init_args:
    train: train
    tests: {real: test, again: train_test}
    classes: classes.tsv
    size: 16
    batch_size: 5
    held_out: 0.25
    num_workers: 0
trainer: {accelerator: cpu, devices: 1, max_epochs: 6, log_every_n_steps: 1}
callbacks:
  ema: {class_path: t2ikit.callbacks.EMA, init_args: {decay: 0.5}}
  checkpoint: {init_args: {every_n_steps: 2}}
"""


@pytest.fixture
def folder(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with small.yaml, whose epochs have four steps."""
    (folders / "train_test").symlink_to(folders / "test")
    return tiny.enter(folders, monkeypatch, {"small.yaml": SMALL, "stop.py": tiny.STOP})


def run(*words: str) -> int:
    return cli.main(["run", "small.yaml", *words])


def checkpoint(folder: Path) -> dict[str, Any]:
    newest = max((folder / "checkpoints").glob("step-*.ckpt"))
    content: dict[str, Any] = torch.load(newest, weights_only=True)
    return content


def test_a_run_is_tested_with_the_selected_weights(folder: Path) -> None:
    assert run("--model.select", "last") == 0
    version = folder / "runs/small/version_0"
    results = read_results(version)
    assert results.selected == {"rule": "last", "step": 24, "epoch": 6}
    assert set(results.tests) == {"real", "again"} and results.tests["real"] == results.tests["again"]
    assert results.tests["real"].images == 12 and results.validation["images"] == 6
    assert results.fingerprint["train"]["images"] == 18 and results.fingerprint["recipe"]["ema"] == 0.5
    rows = (version / "metrics.csv").read_text().splitlines()
    assert sum(",val/loss," in row for row in rows) == 6 and sum(",test/real/accuracy," in row for row in rows) == 1
    assert sum(",train/loss," in row for row in rows) == 24


def test_the_best_checkpoints_by_the_validation_loss_stay(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = ["--callbacks.checkpoint.mode", "min", "--callbacks.checkpoint.keep", "1"]
    assert run(*best, "--callbacks.checkpoint.monitor", "val/los") == 2
    assert "nothing gives the score val/los " in capsys.readouterr().err
    assert run(*best, "--callbacks.checkpoint.monitor", "val/loss", "--callbacks.checkpoint.keep_best", "2") == 0
    version = folder / "runs/small/version_0"
    rows = [row.split(",") for row in (version / "metrics.csv").read_text().splitlines()]
    losses = {int(step): float(loss) for step, name, loss in rows if name == "val/loss"}
    kept = sorted(int(path.stem.removeprefix("step-")) for path in (version / "checkpoints").glob("*.ckpt"))
    assert len(losses) == 6 and kept == sorted({24, *sorted(losses, key=losses.__getitem__)[:2]})


def test_accumulated_steps_are_validated_once_an_epoch_and_never_before_the_first(folder: Path) -> None:
    words = ["--data.batch_size", "6", "--trainer.accumulate_grad_batches", "2", "--trainer.max_epochs", "2"]
    assert run(*words) == 0
    version = folder / "runs/small/version_0"
    rows = [row.split(",") for row in (version / "metrics.csv").read_text().splitlines()]
    assert [step for step, name, _ in rows if name == "val/loss"] == ["3", "6"]
    assert read_results(version).selected["step"] in (3, 6)


@pytest.mark.fault("SIGKILL in the training of a classifier", "goes on bit for bit")
@pytest.mark.long
def test_a_killed_run_goes_on_bit_for_bit(folder: Path) -> None:
    """In the middle of an epoch, at its end before its validation, and at the end of the run before its tests."""
    assert run() == 0
    words = ["run", "small.yaml", "--run.name", "killed", "--callbacks.stop", "stop.Stop", "--resume", "auto"]
    for step in (6, 8, 24):
        tiny.killed(str(step), *words)
    assert run("--run.name", "killed", "--resume", "last") == 0
    straight, killed = folder / "runs/small/version_0", folder / "runs/killed/version_0"
    assert read_results(straight) == read_results(killed)
    first, second = checkpoint(straight), checkpoint(killed)
    for key in ("state_dict", "optimizer_states", "selection", "judged", "global_step"):
        tiny.assert_same(tiny.leaves(first[key]), tiny.leaves(second[key]), key)
    tiny.assert_same(tiny.leaves(first["callbacks"]["EMA"]), tiny.leaves(second["callbacks"]["EMA"]), "EMA")


def test_other_pictures_are_refused_on_resume(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--trainer.max_steps", "8") == 0
    (folder / "train/n01443537/0.png").rename(folder / "train/n01629819/other.png")
    assert run("--resume", "last") == 2
    assert "the pictures of data.train and data.val are not those" in capsys.readouterr().err


def module_and_batch(options: Options, **others: Any) -> tuple[ImageClassifier, Any]:
    data = ClassFolders(**options())  # type: ignore[arg-type]
    torch.manual_seed(0)
    module = ImageClassifier("test_resnet", str(options()["classes"]), 16, **others)
    return module, data.training_stream()[1]


def test_cutmix_is_torchvision_s_keyed_by_seed_and_step(options: Options) -> None:
    module, batch = module_and_batch(options)
    seen: list[Any] = []
    module.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    first = module.training_step(batch, 0)
    torch.manual_seed(99)
    again = module.training_step(batch, 3)
    assert torch.equal(seen[0], seen[1]) and torch.equal(first["step"].loss, again["step"].loss)
    torch.manual_seed(rng.derived_seed(0, "classifier step", batch.position))
    mixed, labels = v2.CutMix(num_classes=3)(batch.images, batch.labels)
    assert torch.equal(seen[0], mixed) and not torch.equal(mixed, batch.images)
    rolled = batch.images.roll(1, 0)
    assert ((mixed == batch.images) | (mixed == rolled)).all()
    share = (labels * torch.nn.functional.one_hot(batch.labels, 3)).sum(1)
    assert (share <= 1).all() and torch.allclose(labels.sum(1), torch.ones(len(labels)))
    batch.position += 1
    module.training_step(batch, 0)
    assert not torch.equal(seen[2], seen[0])
    plain, _ = module_and_batch(options, cutmix=False)
    plain.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    plain.training_step(batch, 0)
    assert torch.equal(seen[3], batch.images)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.held_out", "0"], "select: lowest needs a validation set"),
        (["--data.batch_size", "17"], "the last of the steps of an epoch has 1 of the 18 training pictures"),
        (["--model.classes", "tiny200"], "classes are tiny200, those of the data are classes.tsv"),
        (["--model.network", "resnet49"], "nearest known: 'resnet50'"),
        (["--model.select", "best"], "select"),
        (["--data.tests.real", "nowhere"], "data.tests.real: there is no folder nowhere"),
        (
            [
                "--callbacks.val",
                "t2ikit.callbacks.Snapshot",
                "--callbacks.val.prompts",
                "t2ikit.shapes.ShapesGenEvalPrompts",
            ],
            "ImageClassifier samples no images",
        ),
    ],
)
def test_a_run_that_cannot_be_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(*words) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs/small").exists()


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--model.optimizer.lr", "1e30", "--callbacks.ema", "null") == 1
    assert re.search(r"error: .*not finite at optimizer step \d+", capsys.readouterr().err)


def test_the_released_rate_is_the_one_that_counts_too_few_steps(folder: Path) -> None:
    assert run("--data.compat", "released", "--run.name", "released", "--trainer.max_epochs", "5") == 0
    lines = (folder / "runs/released/version_0/metrics.csv").read_text().splitlines()
    rates = [float(line.split(",")[2]) for line in lines if ",train/learning_rate," in line]
    # 18 pictures in steps of 5: it counts 3 steps an epoch and makes 4, so the warm-up of 5 epochs ends after 15.
    assert len(rates) == 20 and rates[15] == 1e-3
    fingerprint = json.loads((folder / "runs/released/version_0/classification.json").read_text())["fingerprint"]
    assert fingerprint["compat"] == fingerprint["data_compat"] == "released"
