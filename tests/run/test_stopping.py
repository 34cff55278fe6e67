"""Runs that signals and errors stop: what is saved, where they go on, and that nobody sees a difference in the end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._utils import ExceptionWrapper

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.config.errors import ConfigError
from t2ikit.evaluation.image_store import ImageStore
from t2ikit.run.folder import choose
from t2ikit.run.train import _from_outside, _removed_if_refused

EXPERIMENT = """
extends: [tiny.yaml]
trainer: {max_steps: 6, accumulate_grad_batches: 2}
callbacks:
  progress: null
  geneval: null
  checkpoint: {init_args: {every_n_steps: 3, keep: 9}}
  val:
    init_args:
      prompts: {init_args: {limit: 6}}
      metrics: []
      reference: null
      batch_size: 2
      steps: 2
      grid: 2
      every_n_steps: 2
  strike: {class_path: strike.Strike}
"""
STRIKE = '''
"""Sends this process a signal, or breaks, at one moment; the moment is set by the test."""
import signal

from lightning import Callback
from lightning.pytorch.callbacks import Checkpoint

AT = {}


def strike(hook, step):
    how = AT.get((hook, step))
    if how is not None:
        del AT[hook, step]
        if isinstance(how, str):
            signal.raise_signal(signal.Signals[how])
        else:
            raise how


class Strike(Callback):
    def setup(self, trainer, pl_module, stage):
        strike("setup", trainer.global_step)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        strike("start", trainer.global_step)

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        strike("step", trainer.global_step)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        strike("end", trainer.global_step)

    def on_validation_end(self, trainer, pl_module):
        strike("snapshot", trainer.global_step)
'''
VARYING = ("seconds", "images_per_second")


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], Any]:
    """An empty working folder; moments of a run by (hook, steps made), and what happens there."""
    monkeypatch.delitem(sys.modules, "strike", raising=False)
    tiny.enter(tmp_path, monkeypatch, {"small.yaml": EXPERIMENT, "strike.py": STRIKE})
    monkeypatch.syspath_prepend(str(tmp_path))
    import strike  # type: ignore[import-not-found]

    moments: dict[tuple[str, int], Any] = strike.AT
    return moments


def run(*words: str) -> int:
    return cli.main(["run", "small.yaml", *words])


def rows(name: str) -> dict[str, list[tuple[int, float]]]:
    """metrics.csv of a run, without times."""
    values = read_metrics(Path("runs") / name / "version_0" / "metrics.csv")
    return {key: series for key, series in values.items() if not any(word in key for word in VARYING)}


def weights(name: str) -> dict[str, torch.Tensor]:
    path = Path("runs") / name / "version_0/checkpoints/step-00000006.ckpt"
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def steps(name: str) -> list[int]:
    return sorted(int(path.stem[5:]) for path in Path(f"runs/{name}/version_0/checkpoints").glob("*.ckpt"))


@pytest.mark.fault(
    "SIGTERM, SIGUSR1 or Ctrl+C in setup, steps, snapshot",
    "one checkpoint, status 75; resumed bit for bit",
)
@pytest.mark.long
def test_stopped_at_any_moment_a_run_ends_as_if_undisturbed(
    at: dict[tuple[str, int], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--run.name", "straight") == 0
    expected, expected_weights = rows("straight"), weights("straight")
    assert [step for step, _ in expected["val/loss"]] == [0, 2, 4, 6]
    sampled: list[tuple[str, int]] = []
    add = ImageStore.add

    def struck(self: ImageStore, first: int, images: torch.Tensor) -> None:
        add(self, first, images)
        sampled.append((self.folder.name[5:13], first))
        if at.pop(("image", int(self.folder.name[5:13]), first), None):  # type: ignore[call-overload]
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ImageStore, "add", struck)

    def stopped(name: str, *words: str) -> str:
        sampled.clear()
        assert run("--run.name", name, *words, "--resume", "auto") == 75
        return capsys.readouterr().err

    def ended(name: str, *words: str) -> None:
        sampled.clear()
        assert run("--run.name", name, *words, "--resume", "auto") == 0
        assert rows(name) == expected
        assert all(torch.equal(tensor, expected_weights[key]) for key, tensor in weights(name).items())
        assert not list(Path(f"runs/{name}/version_0/samples/val").glob("*.sampling"))

    # In a snapshot whose step has no checkpoint, in the last one, and between the micro-batches of a step.
    at["image", 2, 2] = True  # type: ignore[index]
    assert "Stopped by SIGTERM at step 2. Go on with: t2ikit run small.yaml --run.name cut --resume auto" in stopped(
        "cut"
    )
    assert steps("cut") == [2]
    assert sampled == [(f"{step:08d}", first) for step, first in [(0, 0), (0, 2), (0, 4), (2, 0), (2, 2)]]
    at["start", 2] = "SIGUSR1"
    assert "Stopped by SIGUSR1 at step 3." in stopped("cut")
    assert sampled == [("00000002", 4)] and steps("cut") == [2, 3]
    at["image", 6, 0] = True  # type: ignore[index]
    assert "Stopped by SIGTERM at step 6." in stopped("cut")
    ended("cut")
    assert sampled == [("00000006", 2), ("00000006", 4)]
    assert (Path("runs/cut/version_0") / "finished").is_file()

    # After a snapshot whose checkpoint was written before it: nothing is sampled again.
    every = ("--callbacks.checkpoint.every_n_steps", "1")
    at["snapshot", 4] = "SIGTERM"
    assert "Stopped by SIGTERM at step 5." in stopped("after", *every)
    (Path("runs/after/version_0/checkpoints") / "step-00000005.ckpt").unlink()
    ended("after", *every)
    assert {step for step, _ in sampled} == {"00000006"}

    # Before the first step.
    at["setup", 0] = "SIGTERM"
    assert "Stopped by SIGTERM at step 0. Nothing was saved." in stopped("setup")


@pytest.mark.fault("an exception in a callback", "the state is saved where it is that of a whole step")
@pytest.mark.long
def test_an_error_saves_where_the_state_is_whole(at: dict[tuple[str, int], Any]) -> None:
    for hook, step, saved in [("snapshot", 4, [3, 4]), ("step", 4, [3]), ("start", 4, [3]), ("end", 5, [3])]:
        name = f"{hook}{step}"
        at[hook, step] = RuntimeError("a defect")
        with pytest.raises(RuntimeError, match="a defect"):
            run("--run.name", name)
        assert steps(name) == saved, name
    assert run("--run.name", "snapshot4", "--resume", "auto") == 0
    assert run("--run.name", "straight") == 0
    assert rows("snapshot4") == rows("straight")


@pytest.mark.fault("a mistake of the user that shows after steps", "status 1, everything is kept, and how to go on")
def test_a_mistake_that_shows_late_removes_nothing(
    at: dict[tuple[str, int], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--callbacks.val", "null", "--trainer.accumulate_grad_batches", "1")
    at["start", 0] = ConfigError("no such folder")
    assert run("--run.name", "early", *few) == 2
    assert not Path("runs/early").exists()
    at["start", 4] = ConfigError("no such folder")
    capsys.readouterr()
    assert run("--run.name", "late", *few) == 1
    assert steps("late") == [3]
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "error: no such folder. The run ended at step 4; go on with: t2ikit run small.yaml --run.name"
    )
    at["start", 5] = ConfigError("no such folder")
    assert run("--run.name", "late", *few, "--resume", "auto") == 1
    assert Path("runs/late/version_0/config.resume-1.yaml").is_file()
    assert run("--run.name", "late", *few, "--resume", "auto") == 0
    assert steps("late") == [3, 6]


def test_a_refusal_removes_no_folder_that_holds_a_checkpoint(tmp_path: Path) -> None:
    run_folder = choose(str(tmp_path), "e", None)
    kept = run_folder.path / "checkpoints" / "step-00000000.ckpt"
    config = run_folder.path / "config.yaml"
    kept.parent.mkdir()
    for path in (kept, config):
        path.write_text("content")
    with pytest.raises(ConfigError), _removed_if_refused(run_folder) as written:
        written.append(config)
        raise ConfigError("refused")
    assert kept.is_file() and config.is_file()
    kept.unlink()
    with pytest.raises(ConfigError), _removed_if_refused(run_folder) as written:
        raise ConfigError("refused")
    assert not run_folder.path.exists()


def test_what_a_worker_of_the_loader_sends_is_read_as_the_mistake_that_it_is() -> None:
    try:
        raise ConfigError("data.root: no such folder")
    except ConfigError:
        sent = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(ConfigError) as raised:
        sent.reraise()
    assert str(raised.value).startswith("Caught ConfigError")
    assert _from_outside(raised.value) == "data.root: no such folder"


TWICE = """
import signal, time
from t2ikit import stopping

with stopping.handled():
    stopping.step_by_step()
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))  # a shell's background job ignores it
    for seconds in (0.0, 0.1, 1.1):
        time.sleep(seconds)
        signal.raise_signal(signal.SIGINT)
        print("goes on", flush=True)
"""


@pytest.mark.fault("Ctrl+C twice", "the run ends at once")
def test_a_second_interrupt_ends_the_run_at_once() -> None:
    """One that follows within a tenth of a second is the same one, passed on by a launcher."""
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and "ended at once" in done.stderr and done.stdout == "goes on\n" * 2
