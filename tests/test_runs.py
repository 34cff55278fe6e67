"""Whole runs, as a user makes them: train, score, kill, go on, plug in, and the paper's file on small data."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from t2ikit import cli
from t2ikit.callbacks.checkpoint import refuse_broken_weights
from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.metrics.fingerprint import read_scores

ROOT = Path(__file__).parent.parent
SMALL = """
extends: [quickstart.yaml]
model:
  init_args:
    denoiser:
      init_args: {data_dim: 16, num_latents: 4, latent_dim: 16, num_blocks: 1, num_layers: 1, patch_size: 4}
data: {init_args: {count: 64, val_count: 16, batch_size: 8}}
trainer: {max_steps: 8, log_every_n_steps: 1, accelerator: cpu}
callbacks:
  val: {init_args: {steps: 2, grid: 4}}
  geneval: {init_args: {steps: 2, grid: 4, prompts: {init_args: {per_task: 2}}}}
  checkpoint: {init_args: {every_n_steps: 2}}
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder outside the repository, with small.yaml; shapes are cached beside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


def numbers(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every number of a run except those that a clock makes."""
    series = read_metrics(run / "metrics.csv")
    return {name: values for name, values in series.items() if "second" not in name}


def test_a_run_trains_scores_and_can_be_killed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "small.yaml", "--run.name", "straight"]) == 0
    printed = capfd.readouterr()
    for line in ("val/loss", "val/frechet_distance", "val/coverage", "val/largest_color_share", "geneval/two_object"):
        assert line in printed.out
    assert "not comparable" in printed.out and "tensorboard --logdir" in printed.out
    straight = folder / "runs" / "straight" / "version_0"
    assert {path.name for path in (straight / "checkpoints").iterdir()} == {"step-00000006.ckpt", "step-00000008.ckpt"}
    for snapshot in ("val", "geneval"):
        with Image.open(straight / "samples" / snapshot / "step-00000008.png") as grid:
            assert min(grid.size) > 100
        scores = read_scores(straight / "samples" / snapshot / "scores" / "step-00000008")
        assert all(score.fingerprint.sampler == "ddim" for name, score in scores.items() if name != "loss")
        assert not list((straight / "samples" / snapshot).glob("*.sampling"))
    assert {"loss", "frechet_distance", "largest_color_share"} < read_scores(
        straight / "samples" / "val" / "scores" / "step-00000008"
    ).keys()
    undisturbed = numbers(straight)
    assert [step for step, _ in undisturbed["train/loss"]] == list(range(1, 9))

    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "t2ikit", "run", "small.yaml", "--run.name", "killed"]
    killed = folder / "runs" / "killed" / "version_0"
    with open(folder / "killed.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (killed / "checkpoints" / "step-00000004.ckpt").exists():
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait(10)
    assert process.returncode == -signal.SIGKILL, (folder / "killed.log").read_text()[-2000:]
    assert max(step for step, _ in read_metrics(killed / "metrics.csv")["train/loss"]) < 8

    assert cli.main(["run", "small.yaml", "--run.name", "killed", "--resume", "last"]) == 0
    assert "Resuming from" in capfd.readouterr().out
    assert numbers(killed) == undisturbed, "a killed and resumed run must make the same numbers, bit for bit"
    assert (killed / "config.resume-1.yaml").exists()
    last = [torch.load(run / "checkpoints" / "step-00000008.ckpt", weights_only=True) for run in (straight, killed)]
    for name, weight in last[0]["state_dict"].items():
        assert torch.equal(weight, last[1]["state_dict"][name])


def test_going_back_keeps_what_it_leaves_and_takes_new_options(folder: Path) -> None:
    """Resumed from an older checkpoint, with dropout on: the same losses; later checkpoints are kept aside."""
    plain = ["run", "small.yaml", "--callbacks.val", "null", "--callbacks.geneval", "null"]
    plain += ["--model.denoiser.dropout", "0.2", "--callbacks.checkpoint.keep", "1"]
    plain += ["--callbacks.checkpoint.keep_every_n_steps", "4"]
    assert cli.main(plain) == 0
    run = folder / "runs" / "small" / "version_0"
    first = numbers(run)
    older = run / "checkpoints" / "step-00000004.ckpt"
    assert cli.main([*plain, "--resume", str(older)]) == 0
    assert numbers(run) == first
    kept = sorted(str(path.relative_to(run / "checkpoints")) for path in run.rglob("*.ckpt"))
    assert kept == ["left-at-00000004/step-00000008.ckpt", "step-00000004.ckpt", "step-00000008.ckpt"]
    assert cli.main([*plain, "--resume", str(older), "--model.optimizer.lr", "0.02"]) == 0
    rates = dict(numbers(run)["train/learning_rate"])
    for step, rate in first["train/learning_rate"]:
        assert rates[step] == pytest.approx(rate * (10 if step > 4 else 1))
    assert numbers(run)["train/loss"][:4] == first["train/loss"][:4]
    assert numbers(run)["train/loss"][5:] != first["train/loss"][5:]


def test_a_refused_resume_leaves_no_experiment_behind(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain = ["run", "small.yaml", "--callbacks.val", "null", "--callbacks.geneval", "null"]
    assert cli.main([*plain, "--trainer.max_steps", "2"]) == 0
    assert cli.main([*plain, "--resume", "last", "--model.denoiser.num_latents", "8"]) == 2
    printed = capfd.readouterr()
    assert "num_latents: 4 -> 8" in printed.out
    assert "another network (size mismatch for denoiser.latents" in printed.err
    assert [path.name for path in (folder / "runs" / "small" / "version_0").glob("config*")] == ["config.yaml"]


def test_a_checkpoint_of_broken_weights_is_refused() -> None:
    layer = torch.nn.Linear(2, 2)
    trainer = SimpleNamespace(lightning_module=layer, global_step=7)
    refuse_broken_weights(trainer)
    with torch.no_grad():
        layer.weight[0, 1] = float("inf")
    with pytest.raises(FloatingPointError, match="after optimizer step 7"):
        refuse_broken_weights(trainer)


def test_an_augmentation_of_ones_own(folder: Path) -> None:
    """The example of docs/extend.md, as it stands there, in a folder outside the repository."""
    page = (ROOT / "docs" / "extend.md").read_text()
    example = next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class Mirror" in block)
    (folder / "mirror.py").write_text(example)
    (folder / "mine.yaml").write_text(
        "extends: [small.yaml]\ncallbacks:\n  val: null\n  geneval: null\n"
        "  mirror: {class_path: mirror.Mirror, init_args: {p: 1.0, above: 0.0}}\n"
    )
    plain = ["run", "small.yaml", "--trainer.max_steps", "2", "--callbacks.val", "null", "--callbacks.geneval", "null"]
    assert cli.main(plain) == 0
    assert cli.main(["run", "mine.yaml", "--trainer.max_steps", "2"]) == 0
    mirrored = numbers(folder / "runs" / "mine" / "version_0")["train/loss"]
    assert mirrored != numbers(folder / "runs" / "small" / "version_0")["train/loss"]
    config = (folder / "runs" / "mine" / "version_0" / "config.yaml").read_text()
    assert "mirror.Mirror" in config


def small_latents(folder: Path) -> tuple[Path, Path]:
    """Prepared latents of a tiny autoencoder and states of a tiny T5, both of the paper's classes, and the first."""
    from diffusers import AutoencoderKL

    from t2ikit.encoders.text import build_small_t5

    random = np.random.default_rng(0)
    for split, classes in (("train", ("n01440764", "n02012849", "n03126707")), ("val", ("n01443537",))):
        for wnid in classes:
            (folder / "photos" / split / wnid).mkdir(parents=True)
            for number in range(4):
                pixels = random.integers(0, 256, (80, 70, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / split / wnid / f"{number}.JPEG")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**blocks, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2, latent_channels=4)
    vae.save_pretrained(folder / "vae")
    words = ["An image of tench crane goldfish bird machine and Carassius auratus"]
    build_small_t5(folder / "t5", words, dim=32)
    out = str(folder / "data")
    for step in (
        ["images", "--source", str(folder / "photos"), "--size", "64"],
        ["captions"],
        ["cutmix", "--setting", "cmall"],
        ["encode", "--autoencoder", str(folder / "vae"), "--text-encoder", str(folder / "t5"), "--batch-size", "4"],
    ):
        assert cli.main(["prepare", *step, "--out", out]) == 0
    return folder / "data", folder / "vae"


def test_the_paper_s_file_on_small_data(folder: Path) -> None:
    root, vae = small_latents(folder)
    sizes = {
        "data.root": str(root),
        "data.batch_size": 4,
        "data.num_workers": 0,
        "model.denoiser.input_size": 8,
        "model.denoiser.text_dim": 32,
        "model.denoiser.num_latents": 4,
        "model.denoiser.latent_dim": 32,
        "model.denoiser.data_dim": 32,
        "model.denoiser.num_blocks": 1,
        "model.denoiser.num_layers": 1,
        "model.space.autoencoder": str(vae),
        "callbacks.samples.steps": 2,
        "callbacks.samples.prompts.limit": 2,
        "trainer.max_steps": 3,
        "trainer.log_every_n_steps": 1,
        "trainer.accelerator": "cpu",
        "data.text_encoder": "null",  # a small one here
    }
    overrides = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
    assert cli.main(["run", str(ROOT / "experiments" / "cad_i_cmall.yaml"), *overrides]) == 0
    run = folder / "runs" / "cad_i_cmall" / "version_0"
    series = read_metrics(run / "metrics.csv")
    assert [step for step, _ in series["train/loss"]] == [1, 2, 3]
    assert all(np.isfinite(value) for values in series.values() for _, value in values)
    assert "train/share/raw" in series
    with Image.open(run / "samples" / "samples" / "step-00000003.png") as grid:
        assert grid.size[0] >= 2 * 64
