"""In float64, two ranks and two accumulated halves of a batch train as one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from t2ikit import cli

# At a learning rate of 0.01 training itself makes 3e-6 of one rounding of the first weights in 200 steps; here 1e-11.
EXPERIMENT = """
extends: [tiny.yaml]
model:
  init_args:
    denoiser: {init_args: {window_tokens: true}}
    optimizer: {class_path: t2ikit.optim.Lamb, init_args: {lr: 0.001}}
data: {init_args: {batch_size: 32, count: 256}}
trainer: {precision: 64-true}
callbacks: {val: null, geneval: null, table: null, cutmix: null}
"""
CROP = "extends: [plain.yaml]\ncallbacks: {crop: {class_path: t2ikit.callbacks.Crop}}\n"


def trained(name: str, steps: int) -> dict[str, Tensor]:
    """The weights of a run, and their averages, by name."""
    content = torch.load(f"runs/{name}/version_0/checkpoints/step-{steps:08d}.ckpt", weights_only=True)
    [averages] = content["callbacks"]["EMA"]["profiles"].values()
    return {**content["state_dict"], **{f"average of {key}": value for key, value in averages.items()}}


@pytest.mark.parametrize(
    ("experiment", "steps"),
    [
        ("crop.yaml", 20),
        pytest.param("crop.yaml", 200, marks=pytest.mark.long),
        pytest.param("plain.yaml", 200, marks=pytest.mark.long),
    ],
)
@pytest.mark.long
def test_the_split_of_a_batch_changes_nothing(
    experiment: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.enter(tmp_path, monkeypatch, {"plain.yaml": EXPERIMENT, "crop.yaml": CROP})
    words = ["run", experiment, "--trainer.max_steps", str(steps), "--run.name"]
    two_ranks = ["two ranks", "--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
    command = [sys.executable, "-m", "t2ikit", *words, *two_ranks]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert cli.main([*words, "one"]) == 0
    assert cli.main([*words, "halves", "--trainer.accumulate_grad_batches", "2"]) == 0
    one = trained("one", steps)
    assert {value.dtype for value in one.values()} == {torch.float64}
    for name in ("two ranks", "halves"):
        for key, value in trained(name, steps).items():
            torch.testing.assert_close(value, one[key], rtol=0.0, atol=1e-9, msg=f"{name}: {key}")
