"""Bad days: what a run meets that is nobody's mistake, and what is left of it then."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics

PLUGIN = """
import os, shutil, signal
from lightning.pytorch import Callback


class At(Callback):
    def __init__(self, step: int, what: str, path: str = "") -> None:
        self.step, self.what, self.path = step, what, path

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step != self.step:
            return
        if self.what == "kill a worker":
            children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
            names = {child: open(f"/proc/{child}/cmdline").read() for child in children}
            for child, name in names.items():
                if "resource_tracker" not in name:
                    os.kill(int(child), signal.SIGKILL)
        elif self.what == "rename":
            os.rename(self.path, self.path + ".gone")
        elif self.what == "fill":
            with open(self.path, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
        elif self.what == "raise":
            raise RuntimeError("a defect of a plug-in")
"""


def at(step: int, what: str, path: str = "") -> list[str]:
    return ["--callbacks.at", f"{{class_path: faulty.At, init_args: {{step: {step}, what: {what}, path: '{path}'}}}}"]


def losses(name: str = "short") -> list[tuple[int, float]]:
    return read_metrics(f"runs/{name}/version_0/metrics.csv")["train/loss"]


@pytest.fixture
def faulty(folder: Path) -> Path:
    (folder / "faulty.py").write_text(PLUGIN)
    return folder


@pytest.fixture
def photos(faulty: Path) -> Path:
    """A root of 24 training and 3 validation photos at 16 pixels, ready to train."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 12), ("val", 2)):
        for wnid in ("n02012849", "n03126707"):
            (faulty / "photos" / split / wnid).mkdir(parents=True)
            for k in range(number):
                pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(faulty / "photos" / split / wnid / f"{split}{k}.png")
    where = ["--out", "root"]
    assert cli.main(["prepare", "images", "--source", "photos", "--size", "16", *where]) == 0
    assert cli.main(["prepare", "captions", *where]) == 0
    assert cli.main(["prepare", "encode", "--autoencoder", "pixels", "--text-encoder", "small", *where]) == 0
    (faulty / "photo.yaml").write_text("""
extends: [photos_cad_i_cmall.yaml]
model:
  init_args:
    denoiser:
      init_args:
        {data_dim: 16, num_latents: 4, latent_dim: 16, num_blocks: 1, num_layers: 1, patch_size: 4, input_size: 16}
data: {init_args: {root: root, batch_size: 8, num_workers: 0}}
trainer: {accelerator: cpu, max_steps: 8, log_every_n_steps: 1}
callbacks: {cutmix: null, val: null, table: null, checkpoint: {init_args: {every_n_steps: 2}}}
""")
    return faulty


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "t2ikit", *words],
        capture_output=True,
        text=True,
        timeout=240,
        **options,  # type: ignore
    )


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of its own at ``folder``, of ``size``; skips where this user may mount none."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.fault("a worker of the loader is killed", "the run ends with the command that goes on, which ends it")
@pytest.mark.long
def test_a_worker_of_the_loader_is_killed(faulty: Path) -> None:
    done = run("run", "short.yaml", "--data.num_workers", "2", *at(5, "kill a worker"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "lower data.num_workers" in done.stderr and "--resume auto" in done.stderr
    assert run("run", "short.yaml", "--resume", "auto").returncode == 0
    assert [step for step, _ in losses()] == list(range(1, 9))


@pytest.mark.fault("the data folder is moved away", "named; with the folder back the same command goes on")
@pytest.mark.long
def test_the_data_vanish(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "photo.yaml", "--data.num_workers", "2"]
    assert cli.main([*words, *at(4, "rename", "root")]) == 1
    said = capsys.readouterr().err
    assert "root/train" in said and "--resume auto" in said, said[-1000:]
    Path("root.gone").rename("root")
    assert cli.main([*words, "--resume", "auto"]) == 0
    assert [step for step, _ in losses("photo")] == list(range(1, 9))


@pytest.mark.fault("the clock goes backwards", "nothing changes")
def test_the_clock_goes_backwards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["run", "short.yaml", "--run.name", "whole"]) == 0
    start, calls = time.time(), count()
    monkeypatch.setattr(time, "time", lambda: start - 3600 * next(calls))
    assert cli.main(["run", "short.yaml", "--callbacks.checkpoint.every", "1 s"]) == 0
    assert losses() == losses("whole")


@pytest.mark.fault("the disk is full at the start", "refused, and no folder stays")
@pytest.mark.long
def test_the_disk_is_full_at_the_start(folder: Path) -> None:
    with small_disk(folder / "runs", "200k"):
        done = run("run", "short.yaml")
        assert done.returncode == 2 and "No space left on device" in done.stderr and "Traceback" not in done.stderr
        assert not list((folder / "runs").rglob("version_*"))


@pytest.mark.fault(
    "the disk fills up in a run",
    "the run goes on and warns; the older checkpoint stays; status 1; with room the same command ends it",
)
@pytest.mark.long
def test_the_disk_fills_up(faulty: Path) -> None:
    with small_disk(faulty / "runs", "3000k"):
        done = run("run", "short.yaml", *at(3, "fill", "runs/filler"))
        newest = "runs/short/version_0/checkpoints/step-00000002.ckpt"
        assert done.returncode == 1, done.stderr[-2000:]
        assert f"the newest one stays {newest}" in done.stderr and "--resume auto" in done.stderr
        assert [path.name for path in Path(newest).parent.iterdir()] == ["step-00000002.ckpt"]
        Path("runs/filler").unlink()
        assert run("run", "short.yaml", "--resume", "auto").returncode == 0
        assert [step for step, _ in losses()] == list(range(1, 9))


@pytest.mark.fault("garbage in metrics.csv", "the line is named before a step is made; nothing is overwritten")
@pytest.mark.fault("garbage in config.yaml, environment.yaml, finished", "the run goes on from its checkpoint")
def test_damaged_files_of_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "short.yaml", "--resume", "runs/short/version_0", "--trainer.max_steps"]
    assert cli.main(["run", "short.yaml", "--trainer.max_steps", "4"]) == 0
    metrics = folder / "runs/short/version_0/metrics.csv"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole + b"\x00\xff\xfegarbage\n")
    capsys.readouterr()
    assert cli.main([*words, "6"]) == 2
    assert f"metrics.csv: line {whole.count(10) + 1} is damaged" in capsys.readouterr().err
    metrics.write_bytes(whole)
    for step, name in ((6, "config.yaml"), (8, "environment.yaml")):
        (folder / "runs/short/version_0" / name).write_bytes(b"\xff\xfe{]: garbage")
        assert cli.main([*words, str(step)]) == 0
    (folder / "runs/short/version_0/finished").write_bytes(b"\xff{]:")
    assert cli.main(["run", "short.yaml", "--resume", "auto", "--trainer.max_steps", "10"]) == 0
    assert [step for step, _ in losses()] == list(range(1, 11))


@pytest.mark.fault("a .partial file of a killed process", "removed when the run goes on")
def test_files_of_a_killed_process_are_removed(folder: Path) -> None:
    assert cli.main(["run", "short.yaml", "--trainer.max_steps", "4"]) == 0
    left = folder / "runs/short/version_0/checkpoints" / ".step-00000006.ckpt.99999999-0badcafe.partial"
    left.write_bytes(bytes(1000))
    assert cli.main(["run", "short.yaml", "--resume", "last"]) == 0
    assert not left.exists()


@pytest.mark.fault("an experiment or prompts that are not UTF-8", "refused with the name of the file")
def test_text_that_is_not_utf8(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "latin.yaml").write_bytes("extends: [short.yaml]\n# für\n".encode("latin-1"))
    (folder / "prompts.txt").write_bytes("ein grüner Kreis\n".encode("latin-1"))
    assert cli.main(["run", "latin.yaml"]) == 2
    assert "latin.yaml" in capsys.readouterr().err
    assert cli.main(["run", "short.yaml", "--trainer.max_steps", "2"]) == 0
    assert cli.main(["sample", "runs/short/version_0", "--prompts", "prompts.txt", "--steps", "2"]) == 2
    assert "prompts.txt" in capsys.readouterr().err


@pytest.mark.fault("no photos, or fewer than a batch", "refused with the option to change")
def test_sets_that_are_too_small(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "empty").mkdir()
    assert cli.main(["prepare", "images", "--source", "empty", "--out", "out"]) == 2
    assert "no photos: empty" in capsys.readouterr().err
    assert cli.main(["run", "short.yaml", "--data.count", "4"]) == 2
    assert "fewer than one batch of 8: lower data.batch_size" in capsys.readouterr().err
    snapshot = ["--callbacks.geneval", "null", "--callbacks.cutmix", "null", "--data.settings", "[]"]
    sizes = ["--data.val_count", "3", "--callbacks.val.prompts.limit", "8", "--callbacks.val.steps", "2"]
    assert cli.main(["run", "tiny.yaml", "--trainer.max_steps", "2", *snapshot, *sizes]) == 2
    assert "3 generated images, but k=5 needs at least 7: raise data.val_count" in capsys.readouterr().err
