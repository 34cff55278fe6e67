"""Whole runs, as a user makes them: train, score, kill, go on, plug in, and the paper's file on small data."""

from __future__ import annotations

import contextlib
import io
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

import tiny
from t2ikit import cli
from t2ikit.callbacks.checkpoint import refuse_broken_weights
from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.checkpoints.runs import finish_record
from t2ikit.evaluation.comparison import find_scores
from t2ikit.metrics.fingerprint import read_scores
from t2ikit.run.folder import contents

pytestmark = pytest.mark.slow  # the module trains first

ROOT = Path(__file__).parent.parent
EXPERIMENT = """
extends: [tiny.yaml]
trainer: {max_steps: 8}
callbacks:
  val: {init_args: {steps: 2, grid: 4}}
  geneval: {init_args: {steps: 2, grid: 4, prompts: {init_args: {per_task: 2}}}}
  checkpoint: {init_args: {every_n_steps: 2}}
"""
LAST = "step-00000008"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder outside the repository, with small.yaml."""
    return tiny.enter(tmp_path, monkeypatch, {"small.yaml": EXPERIMENT})


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of eight steps without a break; what it printed is in printed.txt of the working folder."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as printed, contextlib.redirect_stdout(printed):
        tiny.enter(folder, patch, {"small.yaml": EXPERIMENT})
        assert cli.main(["run", "small.yaml"]) == 0
        (folder / "printed.txt").write_text(printed.getvalue())
    return folder / "runs" / "small" / "version_0"


@pytest.fixture
def killed(folder: Path) -> Path:
    """The run folder of the same run, killed after its checkpoint of step 4."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = folder / "runs" / "small" / "version_0"
    with open(folder / "killed.log", "w") as log:
        command = [sys.executable, "-m", "t2ikit", "run", "small.yaml"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (run / "checkpoints" / "step-00000004.ckpt").exists():
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait(10)
    assert process.returncode == -signal.SIGKILL, (folder / "killed.log").read_text()[-2000:]
    return run


def numbers(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every number of a run except those that a clock makes."""
    series = read_metrics(run / "metrics.csv")
    return {name: values for name, values in series.items() if "second" not in name}


def test_a_run_prints_its_scores(straight: Path) -> None:
    printed = (straight.parents[2] / "printed.txt").read_text()
    for line in ("val/loss", "val/frechet_distance", "val/coverage", "val/largest_color_share", "geneval/two_object"):
        assert line in printed
    assert "not comparable" in printed and "tensorboard --logdir" in printed
    following = printed.partition("Next:\n")[2].splitlines()
    assert [line.split()[:3] for line in following] == [
        ["t2ikit", "sample", "runs/small/version_0"],
        ["t2ikit", "evaluate", "runs/small/version_0"],
        ["t2ikit", "run", "small.yaml"],
    ]
    assert "--snapshot val" in following[1] and following[2].endswith("--resume runs/small/version_0")


def test_a_run_logs_every_step_and_keeps_its_last_checkpoints(straight: Path) -> None:
    assert [step for step, _ in numbers(straight)["train/loss"]] == list(range(1, 9))
    assert {path.name for path in (straight / "checkpoints").iterdir()} == {"step-00000006.ckpt", f"{LAST}.ckpt"}


@pytest.mark.parametrize("snapshot", ["val", "geneval"])
def test_a_snapshot_leaves_a_grid_and_scores_with_fingerprints(straight: Path, snapshot: str) -> None:
    samples = straight / "samples" / snapshot
    with Image.open(samples / f"{LAST}.png") as grid:
        assert min(grid.size) > 100
    scores = read_scores(samples / "scores" / LAST)
    assert all(score.fingerprint.sampler == "ddim" for name, score in scores.items() if not name.startswith("loss"))
    assert not list(samples.glob("*.sampling"))
    if snapshot == "val":
        assert {"loss", "frechet_distance", "largest_color_share"} < scores.keys()


@pytest.mark.fault("SIGKILL in a run", "resumed, it ends bit for bit as one that nobody disturbed")
def test_a_killed_run_goes_on_bit_for_bit(straight: Path, killed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert max(step for step, _ in read_metrics(killed / "metrics.csv")["train/loss"]) < 8
    assert cli.main(["run", "small.yaml", "--resume", "last"]) == 0
    assert "Resuming from" in capfd.readouterr().out
    assert numbers(killed) == numbers(straight), "a killed and resumed run must make the same numbers, bit for bit"
    assert (killed / "config.resume-1.yaml").exists()
    weights, of_killed = (
        torch.load(run / "checkpoints" / f"{LAST}.ckpt", weights_only=True)["state_dict"] for run in (straight, killed)
    )
    for name, weight in weights.items():
        assert torch.equal(weight, of_killed[name])


@pytest.mark.fault("the same command after a kill", "--resume auto goes on in the same folder")
def test_the_same_command_goes_on(killed: Path, straight: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A new run beside a killed one names the command that goes on; that one finishes it, and then begins another."""
    versions = killed.parent
    few = ["run", "small.yaml", "--callbacks.val", "null", "--callbacks.geneval", "null", "--trainer.max_steps", "1"]
    assert cli.main(few) == 0
    first = capfd.readouterr().out.splitlines()[0]
    assert "runs/small/version_0 has not ended (step " in first and "run small.yaml" in first
    assert first.endswith("--resume auto")
    assert cli.main(["run", "small.yaml", "--resume", "auto"]) == 0
    assert numbers(killed) == numbers(straight)
    assert sorted(path.name for path in versions.iterdir()) == ["version_0", "version_1"]
    assert cli.main([*few, "--resume", "auto"]) == 0
    assert sorted(path.name for path in versions.iterdir()) == ["version_0", "version_1", "version_2"]
    assert "has not ended" not in capfd.readouterr().out


def test_a_folder_in_which_another_process_trains_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = ["run", "small.yaml", "--callbacks.val", "null", "--callbacks.geneval", "null"]
    assert cli.main([*few, "--trainer.max_steps", "2"]) == 0
    run = folder / "runs" / "small" / "version_0"
    (run / "finished").unlink()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with tiny.locked(run):
        for resume in ("last", "auto", str(run)):
            assert cli.main([*few, "--resume", resume]) == 2
            assert "version_0: another process trains in this run folder" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    assert cli.main([*few, "--trainer.max_steps", "3", "--resume", "last"]) == 0


def test_a_fork_and_a_trial_leave_the_run_as_it_is(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = ["run", "small.yaml", "--callbacks.val", "null", "--callbacks.geneval", "null"]
    assert cli.main([*few, "--trainer.max_steps", "4"]) == 0
    run = folder / "runs" / "small" / "version_0"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    fork = [*few, "--resume", str(run / "checkpoints" / "step-00000002.ckpt"), "--run.name", "fork"]
    assert cli.main(fork) == 2
    assert "Add --fork" in capfd.readouterr().err and not (folder / "runs" / "fork").exists()
    assert cli.main([*fork, "--fork", "--trainer.max_steps", "4"]) == 0
    forked = numbers(folder / "runs" / "fork" / "version_0")["train/loss"]
    assert forked == [row for row in numbers(run)["train/loss"] if row[0] > 2]
    assert cli.main([*few, "--trainer.fast_dev_run", "true"]) == 0
    assert (folder / "runs" / "small" / "fast_dev_run_0").is_dir() and not (run.parent / "version_1").exists()
    assert cli.main([*few, "--trainer.fast_dev_run", "true", "--resume", "last"]) == 2
    assert cli.main([*few, "--fork"]) == 2
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


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
    aside = "left-at-00000004"
    assert kept == [f"{aside}/step-00000008.ckpt", "step-00000004.ckpt", "step-00000008.ckpt"]
    left = {path: path.read_bytes() for path in (run / "checkpoints" / aside).iterdir()}
    assert {path.name for path in left} == {"finished", "step-00000008.ckpt"}
    assert cli.main([*plain, "--resume", str(older), "--model.optimizer.lr", "0.02", "--allow", "model.optimizer"]) == 0
    assert {path: path.read_bytes() for path in left} == left, "what was kept the first time stays as it was"
    assert (run / "checkpoints" / f"{aside}-2" / "step-00000008.ckpt").is_file()
    record = finish_record(run)
    assert record is not None and record["experiment"]["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.02
    rates = dict(numbers(run)["train/learning_rate"])
    for step, rate in first["train/learning_rate"]:
        assert rates[step] == pytest.approx(rate * (10 if step > 4 else 1))
    assert numbers(run)["train/loss"][:4] == first["train/loss"][:4]
    assert numbers(run)["train/loss"][5:] != first["train/loss"][5:]


def test_going_back_leaves_no_snapshot_of_later_steps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Grids, scores and evaluations of later steps are kept aside, as metrics.csv leaves their lines out."""
    plain = ["run", "small.yaml", "--callbacks.geneval", "null", "--callbacks.val.keep_images", "true"]
    plain += ["--callbacks.val.every_n_steps", "2", "--callbacks.checkpoint.keep", "9"]
    assert cli.main(plain) == 0
    run = folder / "runs" / "small" / "version_0"
    assert cli.main(["evaluate", str(run), "--snapshot", "val", "--device", "cpu"]) == 0
    older = run / "checkpoints" / "step-00000002.ckpt"

    def labelled(place: Path) -> set[str]:
        return {path.relative_to(place).as_posix() for path in place.glob("*/**/step-*") if ".ckpt" not in path.name}

    before = labelled(run)
    assert {"evaluations/val/step-00000008", "samples/val/step-00000008", "samples/val/step-00000008.png"} < before
    refused = [*plain, "--resume", str(older), "--callbacks.val.ema_decay", "0.7"]
    assert cli.main(refused) == 2
    assert labelled(run) == before and not list(run.rglob("left-at-*")), "a refused resume moves nothing"
    assert "ema_decay 0.7 is no profile" in capsys.readouterr().err

    assert cli.main([*plain, "--resume", str(older), "--trainer.max_steps", "4"]) == 0
    later = {name for name in before if int(re.findall(r"step-(\d+)", name)[-1]) > 2}
    assert labelled(run / "left-at-00000002") == later
    assert {name for name in labelled(run) if not name.startswith("left-at")} == {
        name for name in before if name not in later or "00000004" in name
    }
    steps = {int(path.name[5:]) for path in (run / "samples/val/scores").iterdir()}
    assert steps == {step for step, _ in numbers(run)["val/loss"]} == {0, 2, 4}
    assert find_scores(run, "val", "").details.name == "step-00000004"
    assert contents(run)[-1].endswith("step-00000004.png")
    found = find_scores(run / "left-at-00000002", "val", "")
    assert found.details.name == "step-00000008", "what was left can still be compared with"


@pytest.mark.fault(
    "SIGKILL after going back, with Lightning's ModelCheckpoint", "the run goes on from what it made last"
)
def test_what_a_run_leaves_is_not_in_charge_of_it(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "stop.py").write_text(tiny.STOP)
    (folder / "theirs.yaml").write_text(
        "extends: [small.yaml]\ncallbacks:\n  val: null\n  geneval: null\n  stop: stop.Stop\n  checkpoint:\n"
        "    class_path: lightning.pytorch.callbacks.ModelCheckpoint\n"
        "    init_args: {every_n_train_steps: 2, save_top_k: -1, save_last: true}\n"
    )
    plain = ["run", "theirs.yaml"]
    assert cli.main(plain) == 0
    run = folder / "runs" / "theirs" / "version_0"
    older = next((run / "checkpoints").glob("*step=2.ckpt"))
    environment = {**os.environ, "KILL": "5", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "t2ikit", *plain, "--resume", str(older)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    left = {path.name for path in (run / "checkpoints" / "left-at-00000002").iterdir()}
    assert {"last.ckpt", "finished"} < left and {int(name[-6]) for name in left if "step=" in name} == {4, 6, 8}
    capfd.readouterr()
    assert cli.main([*plain, "--resume", "auto"]) == 0
    assert re.search(r"Resuming from .*/version_0/checkpoints/epoch=\d-step=4.ckpt", capfd.readouterr().out)
    assert [step for step, _ in numbers(run)["train/loss"]] == list(range(1, 9))


def test_an_average_that_is_allowed_begins_at_the_present_weights(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ["run", "small.yaml", "--callbacks.val", "null", "--callbacks.geneval", "null"]
    assert cli.main([*plain, "--trainer.max_steps", "2"]) == 0
    other = [*plain, "--trainer.max_steps", "4", "--resume", "last", "--callbacks.ema.decay", "[0.0, 0.9999]"]
    assert cli.main(other) == 2
    assert capsys.readouterr().err.endswith("--allow callbacks.ema.decay\n")
    assert cli.main([*other, "--allow", "callbacks.ema.decay"]) == 0
    said = "the checkpoint has no average of decay 0.0: a new one begins at the present weights"
    assert said in capsys.readouterr().out
    run = folder / "runs" / "small" / "version_0"
    content = torch.load(run / "checkpoints" / "step-00000004.ckpt", weights_only=True)
    profiles = content["callbacks"]["EMA"]["profiles"]
    assert profiles.keys() == {"0.0", "0.9999"} and content["callbacks"]["EMA"]["step"] == 4
    for name, average in profiles["0.0"].items():  # of decay 0: the weights themselves
        assert torch.equal(average, content["state_dict"][f"denoiser.{name}"])


def test_a_refused_resume_leaves_no_experiment_behind(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain = ["run", "small.yaml", "--callbacks.val", "null", "--callbacks.geneval", "null"]
    assert cli.main([*plain, "--trainer.max_steps", "2"]) == 0
    other = [*plain, "--resume", "last", "--model.denoiser.num_latents", "8"]
    assert cli.main(other) == 2
    printed = capfd.readouterr()
    assert "changed: model.denoiser.num_latents: 4 -> 8" in printed.out
    assert printed.err.endswith("accept the change with --allow model.denoiser.num_latents\n")
    assert cli.main([*other, "--allow", "model.denoiser.num_latents"]) == 2
    printed = capfd.readouterr()
    assert "another network (size mismatch for denoiser.latents" in printed.err
    assert [path.name for path in (folder / "runs" / "small" / "version_0").glob("config*")] == ["config.yaml"]


def test_a_resume_that_would_be_another_run_is_refused_until_that_is_allowed(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One list and one message for what the experiment and what the data say; what decides nothing is only listed."""
    plain = ["run", "small.yaml", "--callbacks.val", "null", "--callbacks.geneval", "null"]
    assert cli.main([*plain, "--trainer.max_steps", "2"]) == 0
    run = folder / "runs" / "small" / "version_0"
    first = numbers(run)["train/loss"]
    free = ["--trainer.max_steps", "4", "--data.num_workers", "0", "--trainer.accumulate_grad_batches", "2"]
    free += ["--callbacks.checkpoint.keep", "5", "--model.noise_bins", "5", "--callbacks.guard.policy", "skip"]
    deciding = ["--data.seed", "1", "--model.optimizer.lr", "0.01", "--trainer.gradient_clip_val", "0.5"]
    deciding += ["--callbacks.ema.warmup", "false", "--callbacks.cutmix.tau", "0.5"]
    other = [*plain, *free, "--resume", "last", *deciding]
    assert cli.main(other) == 2
    printed = capfd.readouterr()
    assert "changed: callbacks.checkpoint.keep: " in printed.out and "changed: model.noise_bins: 10 -> 5" in printed.out
    message = printed.err.splitlines()[-1]
    assert "data.seed was 0 and is 1 now" in message and "stream cmall had the quantile" in message
    keys = ["callbacks.ema.warmup", "model.optimizer.lr", "trainer.gradient_clip_val", "data.seed", "gates"]
    assert message.endswith(" ".join(f"--allow {key}" for key in keys))
    assert numbers(run)["train/loss"] == first
    allow = [word for key in ("callbacks.ema", *keys[1:]) for word in ("--allow", key)]
    assert cli.main([*other, *allow]) == 0
    losses = numbers(run)["train/loss"]
    assert losses[:2] == first and [step for step, _ in losses] == [1, 2, 3, 4]


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

    from t2ikit.encoders.small_t5 import build_small_t5

    random = np.random.default_rng(0)
    for split, classes in (("train", ("n01440764", "n02012849", "n03126707")), ("val", ("n01443537",))):
        for wnid in classes:
            (folder / "photos" / split / wnid).mkdir(parents=True)
            for index in range(4):
                pixels = random.integers(0, 256, (80, 70, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / split / wnid / f"{index}.JPEG")
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
