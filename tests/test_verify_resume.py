"""``t2ikit verify-resume``: equal for a run that loses nothing, and the first difference for one that does."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

import tiny
from t2ikit import cli
from t2ikit.callbacks.step_records import FOLDER, read_steps
from t2ikit.run.differences import Entry, first_difference
from t2ikit.run.kills import KINDS, Watch, moments

EXPERIMENT = """
extends: [tiny.yaml]
callbacks: {val: null, geneval: null, table: null}
"""
FAULTS = '''
import torch
from lightning import Callback


class GlobalNoise(Callback):
    """Takes numbers of torch's global generator."""

    def setup(self, trainer, pl_module, stage):
        def noisy(batch):
            batch.latents += 0.001 * torch.randn_like(batch.latents)
            return batch

        pl_module.add_batch_transform(noisy)


class Forgetful(Callback):
    """Counts steps, does not save the count, and trains by it."""

    def __init__(self):
        self.count = 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.count += 1
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.01 * self.count
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sys.modules.pop("faults", None)  # of an earlier test, from another folder
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tiny.enter(tmp_path, monkeypatch, {"small.yaml": EXPERIMENT, "faults.py": FAULTS})


def verify(*words: str) -> int:
    return cli.main(["verify-resume", "small.yaml", "--kills", "1", "--steps", "20", "--seed", "1", *words])


@pytest.mark.fault("SIGKILL at random moments (verify-resume)", "equal, or the first difference and status 1")
@pytest.mark.long
def test_a_killed_and_resumed_run_is_the_undisturbed_one(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert verify("--out", "both") == 0
    out = capfd.readouterr().out
    assert re.search(r"^kill 1 of 1: after step \d+, ", out, re.MULTILINE)
    assert re.search(r"^weights +\d+  equal$", out, re.MULTILINE) and "equal, bit for bit" in out
    straight, killed = (read_steps(folder / f"both/{name}/small/version_0") for name in ("straight", "killed"))
    assert list(straight) == list(range(1, 21)) and straight == killed
    ((line,),) = {len(line["records"]): [line] for lines in straight.values() for line in lines}.values()
    assert len(line["loss"]) == 8 and line["rate"] > 0


@pytest.mark.long
@pytest.mark.parametrize("fault", ["GlobalNoise", "Forgetful"])
def test_a_run_that_loses_something_is_found(folder: Path, capfd: pytest.CaptureFixture[str], fault: str) -> None:
    assert verify("--callbacks.fault", f"faults.{fault}") == 1
    out = capfd.readouterr().out
    assert re.search(r"^records of every step +20  equal$", out, re.MULTILINE)
    place = r"step \d+, loss \(rank 0, micro-batch 0\)\[\d\]"
    assert re.search(
        rf"^losses +20  differs, first at {place}: \d.* \(straight\), \d.* \(resumed\)$", out, re.MULTILINE
    )
    assert "\nnot equal\n" in out


def test_what_cannot_be_verified_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("--callbacks.checkpoint", "null") == 2
    assert "needs a checkpoint callback" in capsys.readouterr().err
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    assert verify("--out", "full") == 2
    assert "name a new folder" in capsys.readouterr().err


def test_the_first_difference_has_step_key_and_both_values() -> None:
    weights = [Entry(2, "w", torch.tensor([1.0, 2.0])), Entry(4, "w", torch.tensor([1.0, 3.0]))]
    assert first_difference(weights, list(weights)) is None
    other = [weights[0], Entry(4, "w", torch.tensor([1.0, 3.5]))]
    assert str(first_difference(weights, other)) == "step 4, w[1]: 3.0 (straight), 3.5 (resumed)"
    assert str(first_difference(weights, weights[:1])).endswith("(straight), 'missing' (resumed)")
    assert first_difference([Entry(1, "loss", float("nan"))], [Entry(1, "loss", float("nan"))]) is None
    assert first_difference([Entry(1, "loss", 0.0)], [Entry(1, "loss", -0.0)]) is not None
    assert first_difference([Entry(1, "x", torch.tensor(1.0))], [Entry(1, "x", torch.tensor(1))]) is not None


def test_kills_are_keyed_and_spread_over_the_run() -> None:
    chosen = moments(3, 6, 60)
    assert chosen == moments(3, 6, 60) != moments(4, 6, 60)
    assert sorted(moment.kind for moment in chosen) == sorted(KINDS * 2)
    assert all(10 * index - 1 <= moment.step <= 10 * index + 11 for index, moment in enumerate(chosen))


def test_the_newest_version_is_watched_stage_by_stage(tmp_path: Path) -> None:
    for stage, lines in (("a", 3), ("b", 2)):
        path = tmp_path / "version_1" / stage / FOLDER / "rank-0.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, lines + 1)) + '{"st')
    (tmp_path / "version_0").mkdir()
    watch = Watch(tmp_path, ["a", "b"])
    assert watch.step() == 5 and [folder.name for folder in watch.folders()] == ["a", "b"]
    (tmp_path / "version_1" / "b" / "samples" / "val" / "step-00000002.sampling").mkdir(parents=True)
    assert watch.sampling()
