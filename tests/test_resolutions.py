"""256, 512 and 1024 pixels in small: 16, 32, 64 on shapes, three aspect buckets in the last, killed in each stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_stages import STOP

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.records.record_set import RecordSet
from t2ikit.shapes import ShapesData
from t2ikit.shapes.buckets import in_shape
from t2ikit.shapes.scenes import render, scenes

pytestmark = pytest.mark.slow  # the module trains first

# Every part of experiments/shapes_resolutions.yaml in the smallest size that has it.
EXPERIMENT = """
extends: [shapes_resolutions.yaml]
model: {init_args: {denoiser: {init_args: {hidden_size: 16, depth: 1, num_heads: 2}}}}
data: {init_args: {count: 96, val_count: 24, batch_size: 8}}
trainer: {accelerator: cpu, log_every_n_steps: 1, max_steps: 4}
callbacks:
  val: {init_args: {steps: 1, prompts: {init_args: {limit: 4}}, metrics: [], every_n_steps: 3}}
  geneval: null
  table: null
  checkpoint: {init_args: {every_n_steps: 2}}
stages:
  at16: {callbacks: {stop: {class_path: stop.Stop, init_args: {stage: at16}}}}
  at32: {trainer: {max_steps: 4}, callbacks: {stop: {class_path: stop.Stop, init_args: {stage: at32}}}}
  at64: {trainer: {max_steps: 6}, callbacks: {stop: {class_path: stop.Stop, init_args: {stage: at64}}}}
"""
ENDS = {"at16": 4, "at32": 4, "at64": 6}
SHAPES = {"1.00": (64, 64), "1.67": (48, 80), "0.60": (80, 48)}


def enter(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    return tiny.enter(folder, patch, {"small.yaml": EXPERIMENT, "stop.py": STOP})


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the three stages are trained, undisturbed."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        assert cli.main(["run", "small.yaml"]) == 0
    return folder


def end(folder: Path, stage: str) -> dict[str, Any]:
    path = folder / f"runs/small/version_0/{stage}/checkpoints/step-{ENDS[stage]:08d}.ckpt"
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


@pytest.mark.long
def test_each_stage_starts_from_the_averages_of_the_one_before(straight: Path) -> None:
    for stage, before in (("at32", "at16"), ("at64", "at32")):
        start = end(straight, stage)["start"]
        assert start["weights"].startswith("ema") and f"/{before}/checkpoints/" in start["checkpoint"]
    assert tuple(end(straight, "at64")["ShapesData"]["buckets"]) == tuple(SHAPES)


@pytest.mark.long
def test_an_image_of_any_bucket_is_sampled(
    straight: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.current(straight, monkeypatch)
    words = ["sample", "runs/small/version_0/at64", "--prompt", "a red circle", "--steps", "1", "--out", str(tmp_path)]
    assert cli.main([*words, "--size", "48x80"]) == 0
    with Image.open(tmp_path / "00000.png") as image:
        assert image.size == (80, 48)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.fault(
    "SIGKILL in stages of three resolutions, and between two", "bit for bit as one that nobody disturbed"
)
def test_stages_killed_inside_and_between_end_as_undisturbed_ones(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(tmp_path, monkeypatch)
    tiny.killed("at16@3", "run", "small.yaml")
    tiny.killed("at32@start", "run", "small.yaml", "--resume", "last")  # between two stages
    tiny.killed("at32@3", "run", "small.yaml", "--resume", "last")
    tiny.killed("at64@start", "run", "small.yaml", "--resume", "last")
    tiny.killed("at64@5", "run", "small.yaml", "--resume", "last")  # inside the buckets
    assert cli.main(["run", "small.yaml", "--resume", "last"]) == 0
    for stage, steps in ENDS.items():
        whole, resumed = end(straight, stage), end(tmp_path, stage)
        tiny.assert_same(whole["state_dict"], resumed["state_dict"], stage)
        tiny.assert_same(whole["callbacks"]["EMA"], resumed["callbacks"]["EMA"], stage)
        rows = [read_metrics(folder / f"runs/small/version_0/{stage}/metrics.csv") for folder in (straight, tmp_path)]
        for column in ("train/loss", "val/loss_fixed_t"):
            assert rows[0][column] == rows[1][column], (stage, column)
        assert len(rows[0]["train/loss"]) == steps


def test_scenes_in_buckets_are_whole_and_dealt_out_evenly(tmp_path: Path) -> None:
    options: dict[str, Any] = {"count": 30, "val_count": 9, "settings": (), "batch_size": 4}
    data = ShapesData(root=str(tmp_path / "data"), bucket_sizes=("64x64", "48x80", "80x48"), **options)
    for _ in range(2):
        data.prepare_data()  # the second time it is kept
    data.setup("fit")
    assert data.bucket_names == tuple(SHAPES)
    train = scenes(0, "train", 0, 30, "simple")
    seen = set()
    for bucket, (name, shape) in enumerate(SHAPES.items()):
        records = RecordSet(tmp_path / "data" / "train" / name)
        assert len(records) == 10 and records.manifest.image_shape == (3, *shape)
        for record in records:
            index = int(record.metadata["key"].rpartition("/")[2])
            seen.add(index)
            assert index % 3 == bucket
            assert np.array_equal(record.image, in_shape(train[index], shape))
            side, (height, width) = min(shape), shape
            top, left = (height - side) // 2, (width - side) // 2
            middle = record.image[:, top : top + side, left : left + side]
            assert np.array_equal(middle, render(train[index], side))
    assert seen == set(range(30))
    assert {tuple(batch.image.shape[2:]) for batch in data.train_dataloader()} == set(SHAPES.values())
    modified = (tmp_path / "data/train/1.00/manifest.json").stat().st_mtime_ns
    ShapesData(root=str(tmp_path / "data"), bucket_sizes=("64x64", "48x80", "80x48"), **options).prepare_data()
    assert (tmp_path / "data/train/1.00/manifest.json").stat().st_mtime_ns == modified


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": ("cmall",)}, "without CutMix"),
        ({"settings": (), "autoencoder": "embedded:shapes-full"}, "data.autoencoder null"),
        ({"settings": (), "bucket_sizes": ("64",)}, "data.bucket_sizes expects HEIGHTxWIDTH"),
    ],
)
def test_what_buckets_of_shapes_cannot_be_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ShapesData(root=str(tmp_path / "data"), **{"bucket_sizes": ("64x64", "48x80"), **options})


def test_a_folder_of_one_size_takes_no_buckets(tmp_path: Path) -> None:
    ShapesData(root=str(tmp_path / "data"), count=4, val_count=2, settings=()).prepare_data()
    with pytest.raises(ValueError, match="holds a set without buckets"):
        ShapesData(
            root=str(tmp_path / "data"), count=4, val_count=2, settings=(), bucket_sizes=("64x64",)
        ).prepare_data()
