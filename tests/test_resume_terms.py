"""Runs with terms, frozen parts and two ranks: a resumed one ends with every number of a straight one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics

PARTS = f"""{tiny.STOP}{tiny.PROJECTED}

class Wide(Term):
    '''Reads the output in fp32 by parameters of its own, and does not ask for their dtype.'''

    def __init__(self, weight: float = 1.0, until: int | None = None):
        super().__init__(weight, until)
        self.layer = nn.Linear(3, 3)

    def forward(self, main):
        return self.layer(main.output.float().movedim(1, -1)).square().flatten(1).mean(1)
"""
EXPERIMENT = """
extends: [tiny.yaml]
model:
  init_args:
    objective:
      init_args:
        terms: {projected: {class_path: parts.Projected, init_args: {weight: 0.5, until: 3}}}
trainer: {max_steps: 6}
callbacks:
  val: null
  geneval: null
  table: null
  cutmix: null
  checkpoint: {init_args: {every_n_steps: 2, keep: 9}}
  stop: parts.Stop
data: {init_args: {settings: []}}
"""
TRAINABLE = "[core, '*.bias']"
END = "step-00000006.ckpt"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sys.modules.pop("parts", None)  # of an earlier test, from another folder
    return tiny.enter(tmp_path, monkeypatch, {"terms.yaml": EXPERIMENT, "parts.py": PARTS})


def end_of(run: Path) -> dict[str, Any]:
    """The last checkpoint."""
    content: dict[str, Any] = torch.load(run / "checkpoints" / END, weights_only=True)
    return content


def unequal(first: Any, second: Any, key: str = "") -> list[str]:
    """The keys of two nested values at which they differ by a bit."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = {*first, *second}
        return [k for name in keys for k in unequal(first.get(name), second.get(name), f"{key}/{name}")]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [k for index, (a, b) in pairs for k in unequal(a, b, f"{key}/{index}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) else [key]
    return [] if first == second else [key]


@pytest.mark.long
@pytest.mark.parametrize("trainable", ["null", TRAINABLE], ids=["all trained", "some trained"])
def test_a_run_killed_before_the_end_of_a_term_resumes_bit_for_bit(folder: Path, trainable: str) -> None:
    words = ["run", "terms.yaml", "--model.trainable", trainable]
    assert cli.main(words) == 0
    tiny.killed("3", *words)
    assert cli.main([*words, "--resume", "last"]) == 0  # from step 2, with the term; it ends after step 3
    straight, resumed = (folder / "runs" / "terms" / f"version_{index}" for index in (0, 1))
    assert unequal(end_of(straight), end_of(resumed)) == []
    before, after = (read_metrics(run / "metrics.csv") for run in (straight, resumed))
    assert [step for step, _ in before["train/loss/projected"]] == [1, 2, 3]
    for name in ("train/loss", "train/loss/projected", "train/loss/denoising"):
        assert before[name] == after[name]


def test_frozen_parameters_are_in_no_average_and_no_optimizer(folder: Path) -> None:
    assert cli.main(["run", "terms.yaml", "--model.trainable", TRAINABLE]) == 0
    run = folder / "runs" / "terms" / "version_0"
    before = torch.load(run / "checkpoints" / "step-00000002.ckpt", weights_only=True)["state_dict"]
    end = end_of(run)
    moved = {name for name, value in end["state_dict"].items() if not torch.equal(value, before[name])}
    averaged = {f"denoiser.{name}" for name in next(iter(end["callbacks"]["EMA"]["profiles"].values()))}
    terms = {name for name in before if name.startswith("objective.")}
    assert moved - terms == averaged and 0 < len(averaged) < len(before) - len(terms)
    (optimizer,) = end["optimizer_states"]
    assert len(optimizer["state"]) == len(averaged | terms)


@pytest.mark.long
def test_two_ranks_outlast_the_end_of_a_term_that_owns_parameters(folder: Path) -> None:
    def trained(*words: str) -> None:
        command = [sys.executable, "-m", "t2ikit", "run", "terms.yaml", "--trainer.devices", "2"]
        command += ["--trainer.strategy", "ddp", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-4000:]

    trained()
    run = folder / "runs" / "terms" / "version_0"
    resumed = shutil.copytree(run, folder / "resumed")
    for path in resumed.glob("checkpoints/*"):
        if path.name != "step-00000002.ckpt":
            path.unlink()
    trained("--resume", str(resumed))
    assert unequal(end_of(run)["state_dict"], end_of(resumed)["state_dict"]) == []
    assert unequal(end_of(run)["optimizer_states"], end_of(resumed)["optimizer_states"]) == []
    assert cli.main(["run", "terms.yaml", "--run.name", "one"]) == 0
    one, two = (read_metrics(path / "metrics.csv")["train/loss"] for path in (folder / "runs/one/version_0", run))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-4)


def test_two_micro_batches_make_the_step_of_one_of_twice_the_size(folder: Path) -> None:
    """In float64; 4 samples a micro-batch, so that each is self-conditioned by itself."""
    words = ["run", "terms.yaml", "--trainer.precision", "64-true", "--trainer.accumulate_grad_batches"]
    for accumulate in ("1", "2"):
        assert cli.main([*words, accumulate, "--run.name", f"by{accumulate}"]) == 0
    one, two = (folder / f"runs/by{accumulate}/version_0" for accumulate in (1, 2))
    losses = [read_metrics(run / "metrics.csv") for run in (one, two)]
    for name in ("train/loss", "train/loss/projected", "train/loss/denoising"):
        assert [value for _, value in losses[1][name]] == pytest.approx(
            [value for _, value in losses[0][name]], rel=1e-9
        )
    ends = [end_of(run) for run in (one, two)]
    for name, weight in ends[0]["state_dict"].items():
        torch.testing.assert_close(ends[1]["state_dict"][name], weight, rtol=1e-9, atol=1e-9)
    moments = [[state["exp_avg"] for state in end["optimizer_states"][0]["state"].values()] for end in ends]
    for first, second in zip(*moments, strict=True):  # running means of the gradients
        torch.testing.assert_close(second, first, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["AdamW", "Lamb", "Muon"])
def test_a_term_beside_weights_of_16_bits_trains_its_parameters_in_fp32_and_resumes(
    folder: Path, optimizer: str
) -> None:
    term = "{wide: {class_path: parts.Wide}}"
    words = ["run", "terms.yaml", "--trainer.precision", "bf16-true", "--model.optimizer", f"t2ikit.optim.{optimizer}"]
    words += ["--model.objective.terms", term]
    assert cli.main(words) == 0
    run = folder / "runs" / "terms" / "version_0"
    straight = end_of(run)
    dtypes = {name: value.dtype for name, value in straight["state_dict"].items() if value.is_floating_point()}
    assert all(
        dtype == (torch.float32 if name.startswith("objective.") else torch.bfloat16) for name, dtype in dtypes.items()
    )
    assert cli.main([*words, "--resume", str(run / "checkpoints" / "step-00000002.ckpt")]) == 0
    assert unequal(straight, end_of(run)) == []
