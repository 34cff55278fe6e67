"""Greedy growing as stages: what is taken, what is frozen, what averages and optimizer hold, kills and refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_stages import STOP

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics

pytestmark = pytest.mark.slow  # the module trains first

EXPERIMENT = """
extends: [shapes_growing.yaml]
model:
  init_args:
    denoiser:
      init_args:
        core: {width: 32, blocks: 1, heads: 2, noise_width: 16}
        shell: {init_args: {patch: 4, channels: [8], blocks: [1], head_channels: 8}}
    optimizer: {init_args: {lr: 0.02}}
data: {init_args: {count: 64, val_count: 16, batch_size: 8}}
trainer: {accelerator: cpu, max_steps: 4, log_every_n_steps: 1}
callbacks: {val: null, table: null, checkpoint: {init_args: {every_n_steps: 2}}}
stages:
  shallow:
    trainer: {max_steps: 3}
    model: {init_args: {denoiser: {init_args: {shell: {init_args: {factor: 4, channels: 8}}}}}}
    data: {init_args: {count: 64}}
    callbacks: {stop: {class_path: stop.Stop, init_args: {stage: shallow}}}
  frozen:
    callbacks: {stop: {class_path: stop.Stop, init_args: {stage: frozen}}}
  finetuned:
    model: {init_args: {optimizer: {init_args: {scale: {core: 0.1}}}}}
    callbacks: {stop: {class_path: stop.Stop, init_args: {stage: finetuned}}}
  scratch: {}
  thawed:
    model: {init_args: {start: {checkpoint: stages.frozen@2}}}
    callbacks: {stop: {class_path: stop.Stop, init_args: {stage: thawed}}}
"""
SHIFT = """
import torch
from lightning import Callback


class Shift(Callback):
    '''Changes a weight of the core.'''

    def on_train_batch_end(self, trainer, module, *args):
        with torch.no_grad():
            module.denoiser.core[0].mlp_in.weight[0, 0] += 1
"""
ENDS = {"shallow": 3, "frozen": 4, "finetuned": 4, "scratch": 4, "thawed": 4}
FROZEN = ("text.", "core.")


def enter(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    return tiny.enter(folder, patch, {"grow.yaml": EXPERIMENT, "stop.py": STOP})


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all stages are trained, in version_0."""
    folder = tmp_path_factory.mktemp("grown")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        assert cli.main(["run", "grow.yaml"]) == 0
    return folder


def end(folder: Path, stage: str, step: int | None = None, version: int = 0) -> dict[str, Any]:
    """The checkpoint of a stage."""
    path = folder / f"runs/grow/version_{version}/{stage}/checkpoints/step-{step or ENDS[stage]:08d}.ckpt"
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("denoiser."): value for name, value in checkpoint["state_dict"].items()}


def averages(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    (profile,) = checkpoint["callbacks"]["EMA"]["profiles"].values()
    return dict(profile)


def test_a_frozen_stage_keeps_text_and_core_and_holds_states_of_the_rest_only(grown: Path) -> None:
    source, frozen = averages(end(grown, "shallow")), end(grown, "frozen")
    after = weights(frozen)
    for name, tensor in after.items():
        if name.startswith(FROZEN):
            assert torch.equal(tensor, source[name]), name
    assert any(not torch.equal(after[name], source[name]) for name in after if name.startswith("time."))
    trained = {name for name in after if not name.startswith(FROZEN)}
    assert set(averages(frozen)) == trained
    (optimizer,) = frozen["optimizer_states"]
    assert len(optimizer["state"]) == len(trained)
    assert sum(state["exp_avg"].numel() for state in optimizer["state"].values()) == sum(
        after[name].numel() for name in trained
    )
    start = frozen["start"]
    assert start["fit"] == "grow" and start["weights"].startswith("ema") and "stay fresh" in start["changes"]


def test_every_other_stage_trains_all_and_starts_where_it_says(grown: Path) -> None:
    for stage in ("finetuned", "scratch", "thawed"):
        checkpoint = end(grown, stage)
        assert set(averages(checkpoint)) == set(weights(checkpoint))
    assert "start" not in end(grown, "scratch")
    assert end(grown, "thawed")["start"]["checkpoint"].endswith("frozen/checkpoints/step-00000002.ckpt")
    moved = {
        part: max(
            float((value - weights(end(grown, "frozen", 2))[name]).abs().max())
            for name, value in weights(end(grown, "thawed")).items()
            if name.startswith(part)
        )
        for part in ("time.", "text.", "core.", "shell.")
    }
    assert all(moved.values())
    core, rest = (
        {group["lr"] for group in end(grown, stage)["optimizer_states"][0]["param_groups"]}
        for stage in ("finetuned", "scratch")
    )
    assert {round(rate / max(core), 6) for rate in core} == {0.1, 1.0} and len(rest) == 1


@pytest.mark.long
@pytest.mark.fault("SIGKILL in stages that grow, and between two", "bit for bit as one that nobody disturbed")
def test_stages_that_grow_killed_inside_and_between_end_as_undisturbed_ones(
    grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(tmp_path, monkeypatch)
    tiny.killed("frozen@3", "run", "grow.yaml")
    tiny.killed("finetuned@start", "run", "grow.yaml", "--resume", "last")
    tiny.killed("thawed@3", "run", "grow.yaml", "--resume", "last")
    assert cli.main(["run", "grow.yaml", "--resume", "last"]) == 0
    for stage in ENDS:
        whole, resumed = end(grown, stage), end(tmp_path, stage)
        tiny.assert_same(whole["state_dict"], resumed["state_dict"], stage)
        tiny.assert_same(averages(whole), averages(resumed), stage)
        losses = [
            read_metrics(folder / f"runs/grow/version_0/{stage}/metrics.csv")["train/loss"]
            for folder in (grown, tmp_path)
        ]
        assert losses[0] == losses[1] and len(losses[0]) == ENDS[stage]


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["start.take", "[time, text, body]"], ["UViT has no part body; it has time, text, core"]),
        pytest.param(
            ["denoiser.init_args.core.width", "64"],
            ["of another shape (text.projections.0.weight: [32, 64] given"],
            marks=pytest.mark.long,
        ),
        pytest.param(["denoiser.init_args.core.blocks", "2"], ["missing (core.1."], marks=pytest.mark.long),
        (["start", "{fit: strict, take: []}"], ["missing (shell.", "unknown (shell.", "of another shape"]),
        (["trainable", "[time, body]"], ["'body' is no part of UViT"]),
        (["optimizer.init_args.scale", "{core: 0.1}"], ["the part core is not trained"]),
    ],
)
def test_names_and_shapes_that_do_not_fit_are_refused(
    grown: Path,
    tmp_path: Path,
    words: list[str],
    messages: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    enter(tmp_path, monkeypatch)
    shutil.copytree(grown / "runs/grow/version_0/shallow", tmp_path / "runs/grow/version_0/shallow")
    key, value = words
    assert cli.main(["run", "grow.yaml", "--stage", "frozen", f"--stages.frozen.model.init_args.{key}", value]) == 2
    said = capsys.readouterr().err
    assert all(text in said for text in messages) and "Traceback" not in said, said


def test_a_frozen_weight_that_changes_gives_no_checkpoint(
    grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(tmp_path, monkeypatch)
    (tmp_path / "shift.py").write_text(SHIFT)
    experiment = yaml.safe_load(EXPERIMENT)
    shallow = str(grown / "runs/grow/version_0/shallow")
    experiment["stages"] = None
    experiment["callbacks"]["shift"] = "shift.Shift"
    start = {"checkpoint": shallow, "fit": "grow", "take": ["time", "text", "core"]}
    experiment["model"]["init_args"] |= {"trainable": ["time", "shell"], "start": start}
    (tmp_path / "shifted.yaml").write_text(yaml.safe_dump(experiment))
    with pytest.raises(RuntimeError, match=r"trainable. freezes has changed"):
        cli.main(["run", "shifted.yaml"])
