"""A run on three aspect buckets: compiled once a shape, killed and resumed bit for bit, on one rank and on two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.records.record_set import RecordSet
from t2ikit.records.writing import write_set
from t2ikit.shapes.dataset import build_shapes

SHAPES = {"1.00": (16, 16), "0.60": (12, 20), "1.67": (20, 12)}
EXPERIMENT = """
extends: [tiny.yaml]
model:
  init_args:
    denoiser: {init_args: {input_size: 16, other_sizes: [[12, 20], [20, 12]]}}
trainer: {max_steps: 9}
data:
  class_path: t2ikit.data.DataModule
  init_args: {root: DATA, num_workers: 0, batch_size: 8}
callbacks:
  geneval: null
  table: null
  cutmix: null
  val: {init_args: {every_n_steps: 4, metrics: []}}
  checkpoint: {init_args: {every_n_steps: 3}}
  stop: stop.Stop
"""
STOP = """
import os, signal
from lightning import Callback

class Stop(Callback):
    '''Kills every process of the run after the step in the variable KILL.'''

    def on_train_batch_end(self, trainer, *args):
        if os.environ.get("KILL") == str(trainer.global_step):
            os.killpg(0, signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of 20 x 20 pixels with their captions, cut to the middle of each shape."""
    folder = tmp_path_factory.mktemp("data")
    whole = build_shapes(folder / "whole", 20, count=48, val_count=12, settings=())
    for split in ("train", "val"):
        records = RecordSet(whole / split)
        for name, (height, width) in SHAPES.items():
            top, left = (20 - height) // 2, (20 - width) // 2
            rows, columns = slice(top, top + height), slice(left, left + width)
            cut = (
                replace(record, arrays={**record.arrays, "image": record.image[:, rows, columns].copy()})
                for record in records
            )
            manifest = replace(records.manifest, image_shape=(3, height, width), parts=())
            write_set(folder / split / name, cut, manifest, records.empty_prompt)
    (folder / "text_encoder").symlink_to(whole / "text_encoder")
    return folder


def enter(folder: Path, patch: pytest.MonkeyPatch, root: Path) -> Path:
    return tiny.enter(folder, patch, {"buckets.yaml": EXPERIMENT.replace("DATA", str(root)), "stop.py": STOP})


def run(ranks: int, *words: str, kill: str = "") -> int:
    """The experiment in a group of processes of its own, which a kill ends as a whole."""
    command = [sys.executable, "-m", "t2ikit", "run", "buckets.yaml", "--trainer.devices", str(ranks)]
    command += ["--trainer.strategy", "ddp_fork"] if ranks > 1 else []
    environment = {**os.environ, "KILL": kill, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *words], env=environment, capture_output=True, text=True, timeout=280, start_new_session=True
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (checkpoint,) = folder.glob("checkpoints/*step*9.ckpt")
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


@pytest.mark.fault("SIGKILL on aspect buckets", "bit for bit as one that nobody disturbed")
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.long
def test_a_killed_run_on_buckets_ends_as_an_undisturbed_one(
    ranks: int,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = enter(tmp_path, monkeypatch, root)
    assert run(ranks, "--run.name", "whole") == 0
    assert run(ranks, "--run.name", "killed", kill="5") == -signal.SIGKILL
    assert run(ranks, "--run.name", "killed", "--resume", "last") == 0
    whole, killed = (folder / "runs" / name / "version_0" for name in ("whole", "killed"))
    expected, found = weights(whole), weights(killed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    rows, rows_found = (read_metrics(path / "metrics.csv") for path in (whole, killed))
    assert rows["train/loss"] == rows_found["train/loss"] and len(rows["train/loss"]) == 9
    assert rows["val/loss_fixed_t"] == rows_found["val/loss_fixed_t"]
    if ranks == 1:
        words = ["sample", str(killed), "--prompt", "a red circle", "--steps", "2", "--method", "euler"]
        assert cli.main([*words, "--size", "12x20"]) == 0
        with Image.open("samples/00000.png") as image:
            assert image.size == (20, 12) and image.info["size"] == "12x20"
        assert cli.main([*words, "--size", "16x20"]) == 2
        assert "the denoiser takes 16x16, 12x20, 20x12" in capsys.readouterr().err


@pytest.mark.long
def test_each_shape_is_compiled_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(tmp_path, monkeypatch, root)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    words = ["--model.compile", "{backend: aot_eager}", "--data.length_bucket", "256", "--callbacks.val", "null"]
    assert cli.main(["run", "buckets.yaml", *words]) == 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(SHAPES)


def test_cutmix_refuses_buckets(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(tmp_path, monkeypatch, root)
    cutmix = "{class_path: t2ikit.callbacks.CutMix, init_args: {setting: cmall}}"
    assert cli.main(["run", "buckets.yaml", "--callbacks.cutmix", cutmix]) != 0
    assert "the data has aspect buckets, and the settings of CutMix are defined on square" in capsys.readouterr().err


def test_a_denoiser_of_one_size_refuses_the_buckets(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(tmp_path, monkeypatch, root)
    assert cli.main(["run", "buckets.yaml", "--model.denoiser.other_sizes", "[[12, 20]]"]) != 0
    error = capsys.readouterr().err
    assert "the prepared images are (3, 20, 12) [C, H, W], the denoiser takes (3, 16, 16) and (3, 12, 20)" in error
    assert "other_sizes" in error
