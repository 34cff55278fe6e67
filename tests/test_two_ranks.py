"""Two processes train as one does, and stop together."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import signal_trials
import torch
import yaml

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics

EXPERIMENT = """
extends: [tiny.yaml]
trainer: {max_steps: 4}
callbacks: {val: null, geneval: null, table: null}
"""
POISON = '''
"""Breaks one image of the second rank, and notes why a rank stopped."""
import os
from pathlib import Path

import torch
from lightning import Callback


class Poison(Callback):
    def on_exception(self, trainer, pl_module, exception):
        Path(f"stopped-{os.getpid()}").write_text(f"{type(exception).__name__}: {exception}")

    def setup(self, trainer, pl_module, stage):
        def poison(batch):
            if trainer.global_rank == 1 and trainer.global_step == 1:
                batch.latents[2] = torch.nan
            return batch

        pl_module.add_batch_transform(poison)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path / "cache"))  # an empty one: the ranks render the shapes
    files = {"small.yaml": EXPERIMENT, "poison.py": POISON}
    return tiny.enter(tmp_path, monkeypatch, files)


def two_ranks(*words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which forks into two: forking this one would copy its threads' locks."""
    command = [sys.executable, "-m", "t2ikit", "run", "small.yaml", "--trainer.devices", "2"]
    command += ["--trainer.strategy", "ddp_fork", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_two_ranks_make_the_steps_of_one(folder: Path) -> None:
    assert cli.main(["run", "small.yaml", "--run.name", "one"]) == 0
    done = two_ranks("--run.name", "two")
    assert done.returncode == 0, done.stderr
    one, two = (read_metrics(folder / "runs" / name / "version_0" / "metrics.csv") for name in ("one", "two"))
    assert len(one["train/loss"]) == 4 and one.keys() == two.keys()
    for name in one:
        if name != "train/images_per_second":
            for (step, expected), (same, found) in zip(one[name], two[name], strict=True):
                assert step == same
                assert found == pytest.approx(expected, rel=1e-4), (name, step)


@pytest.mark.fault("a loss that is not finite on one of two ranks", "both stop before the update")
@pytest.mark.long
def test_both_ranks_stop_for_a_loss_of_one(folder: Path) -> None:
    done = two_ranks("--callbacks.poison", "poison.Poison")
    assert done.returncode == 1 and "error: the loss is not finite" in done.stderr and "Traceback" not in done.stderr
    # Whichever rank stops first may take the other one down before it can say so: the launcher passes one on.
    stopped = [path.read_text() for path in folder.glob("stopped-*")]
    assert stopped
    for message in stopped:
        assert re.search(r"Diverged: the loss is not finite at optimizer step 2; .*: \w+\[\d+\]\. ", message)


STAGES = """
extends: [small.yaml]
trainer: {max_steps: 2}
stages: {a: {}, b: {model: {init_args: {start: {checkpoint: stages.a@1}}}}}
"""
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "t2ikit"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "commands"),
    [
        pytest.param(["t2ikit"], [[]], id="started by Lightning"),
        pytest.param(TORCHRUN, [["--stage", "a"], []], id="started by torchrun"),
    ],
)
def test_two_ranks_train_one_stage_after_the_other_as_one_does(
    folder: Path, module: list[str], commands: list[list[str]]
) -> None:
    (folder / "stages.yaml").write_text(STAGES)
    assert cli.main(["run", "stages.yaml", "--run.name", "one"]) == 0
    options = ["--run.name", "two", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    for version, words in enumerate(commands):
        command = [sys.executable, "-m", *module, "run", "stages.yaml", *options, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-4000:]
        trained = sorted(folder.glob(f"runs/two/version_{version}/*"))
        assert [path.name for path in trained] == (["a"] if words else ["a", "b"])
        for stage in trained:
            one = read_metrics(folder / "runs/one/version_0" / stage.name / "metrics.csv")["train/loss"]
            two = read_metrics(stage / "metrics.csv")["train/loss"]
            assert [step for step, _ in two] == [1, 2] == [step for step, _ in one]
            assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-4)
            assert (stage / "finished").exists()
    assert len(list(folder.glob("runs/two/*"))) == len(commands)


@pytest.mark.long
def test_a_stage_for_another_number_of_ranks_is_refused(folder: Path) -> None:
    (folder / "stages.yaml").write_text(STAGES)
    command = [sys.executable, "-m", *TORCHRUN, "run", "stages.yaml", "--stages.a.trainer.devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode != 0 and "stages.b: 2 ranks are started" in done.stderr and "--stage b" in done.stderr
    assert not (folder / "runs").exists()


@pytest.mark.fault("a signal to one of two ranks", "both stop after the same step, status 75")
@pytest.mark.parametrize(
    ("launch", "target", "name", "phase"),
    [
        ("ddp", "rank 1", "SIGTERM", "snapshot"),
        ("ddp", "all", "SIGUSR1", "steps"),
        ("ddp_fork", "launcher", "SIGINT", "snapshot"),
        ("torchrun", "all", "SIGTERM", "steps"),
    ],
)
@pytest.mark.long
def test_a_signal_to_any_rank_stops_both(tmp_path: Path, launch: str, target: str, name: str, phase: str) -> None:
    """More tries, at random moments: ``nox -s signals``."""
    assert signal_trials.attempt(tmp_path / "try", launch, target, name, 0.3, phase).failure == ""


@pytest.mark.long
@pytest.mark.fault("a rank is killed", "the other ends, and the message says which")
@pytest.mark.parametrize("target", ["rank 1", pytest.param("launcher", marks=pytest.mark.long)])
def test_a_dead_rank_ends_the_other(tmp_path: Path, target: str) -> None:
    done = signal_trials.attempt(tmp_path / "try", "ddp", target, "SIGKILL", 0.5, "steps")
    assert done.seconds < 60
    if target == "rank 1":
        assert done.status == 1 and "rank 1 of this machine was killed by SIGKILL" in done.said
    else:
        assert "rank 0 of this machine is gone" in done.said or "Connection" in done.said


@pytest.mark.fault("torchrun is killed", "its ranks stop after the same step, status 75")
@pytest.mark.parametrize("phase", ["steps", pytest.param("snapshot", marks=pytest.mark.long)])
@pytest.mark.long
def test_ranks_notice_that_torchrun_is_gone(tmp_path: Path, phase: str) -> None:
    done = signal_trials.attempt(tmp_path / "try", "torchrun", "launcher", "SIGKILL", 0.3, phase)
    assert done.seconds < signal_trials.LIMIT_SECONDS and "torchrun is gone" in done.said, done.said[-3000:]
    stopped = re.search(r"Stopped by SIGTERM at step (\d+)", done.said)
    assert stopped and int(stopped[1]) in done.saved and "Traceback" not in done.said, done.said[-3000:]


@pytest.mark.long
def test_the_file_for_skypilot_goes_on_by_the_same_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command on one machine with two processes: torchrun and its ranks are killed, the command is given again."""
    job = yaml.safe_load((Path(__file__).parents[1] / "docs/launch/skypilot.yaml").read_text())
    (folder / "torchrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    (folder / "torchrun").chmod(0o755)
    node = {"NUM_NODES": "1", "NODE_RANK": "0", "NUM_GPUS_PER_NODE": "2", "NODE_IPS": "127.0.0.1"}
    for name, value in {**{f"SKYPILOT_{key}": value for key, value in node.items()}, **job["envs"]}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EXPERIMENT", "slow.yaml")
    monkeypatch.setenv("RUNS", "runs")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    often = "callbacks: {checkpoint: {init_args: {every_n_steps: 1}}}"
    (folder / "slow.yaml").write_text(f"extends: [small.yaml]\ntrainer: {{max_steps: 60}}\n{often}\n")
    version = folder / "runs/slow/version_0"

    def launched() -> subprocess.Popen[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            command = job["run"].replace("29500", str(free.getsockname()[1]))
        pipe = subprocess.PIPE
        return subprocess.Popen(
            ["bash", "-c", command], start_new_session=True, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )

    process, end = launched(), time.monotonic() + 200
    while not list(version.glob("checkpoints/*.ckpt")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, ranks)):  # as when the machine is lost: ranks outlive a torchrun that is killed
        os.kill(pid, signal.SIGKILL)
    said = process.communicate()[0]
    assert len(ranks) == 2 and not (version / "finished").exists(), said[-3000:]
    process = launched()
    try:
        said = process.communicate(timeout=200)[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0 and "Resuming from" in said, said[-3000:]
    assert [step for step, _ in read_metrics(version / "metrics.csv")["train/loss"]] == list(range(1, 61))
    assert [path.name for path in version.parent.iterdir()] == ["version_0"] and (version / "finished").exists()
    newest = torch.load(version / "checkpoints/step-00000060.ckpt", weights_only=True)
    assert newest["global_step"] == 60


@pytest.mark.long
def test_processes_that_would_train_alone_are_refused(folder: Path) -> None:
    command = [sys.executable, "-m", *TORCHRUN, "run", "small.yaml", "--trainer.devices", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode != 0 and "trainer.devices: 2 processes were started, and each would train" in done.stderr
    assert not list(folder.glob("runs/*/*"))
