"""``t2ikit evaluate``: the scores of the run again, sweeps, pictures of others, and the message of every mistake."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from t2ikit import cli
from t2ikit.evaluation.comparison import Found
from t2ikit.evaluation.image_store import ImageStore
from t2ikit.evaluation.overfitting import GAP
from t2ikit.lock import LOCK, is_locked
from t2ikit.metrics.fingerprint import Fingerprint, Score, UnlikeFingerprints, read_scores
from t2ikit.run.offline import _report
from t2ikit.run.trained import load_trained

EXPERIMENT = """
extends: [tiny.yaml]
model: {init_args: {optimizer: {init_args: {lr: 0.05}}}}
data: {init_args: {root: data}}
trainer: {max_steps: 2}
callbacks:
  progress: null
  table: null
  ema: {init_args: {decay: [0.9, 0.5]}}
  val: {init_args: {steps: 2, batch_size: 6, at_start: false, keep_images: true, validation_loss: true}}
  geneval: {init_args: {steps: 2, prompts: {init_args: {per_task: 2}}, at_start: false, ema_decay: 0.5}}
"""
RUN = Path("runs/small/version_0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data/ and runs/small/version_0, made by ``t2ikit run``."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        tiny.enter(folder, patch, {"small.yaml": EXPERIMENT})
        assert cli.main(["run", "small.yaml"]) == 0
    return folder


@pytest.fixture
def folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the current folder."""
    return tiny.current(trained, monkeypatch)


def evaluate(*words: str | Path, out: Path, checkpoint: Path | None = RUN, snapshot: str = "val") -> None:
    given = [] if checkpoint is None else [str(checkpoint)]
    command = ["evaluate", *given, "--snapshot", snapshot, "--device", "cpu", "--out", str(out), *map(str, words)]
    assert cli.main(command) == 0


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The message of a call that is refused."""
    capsys.readouterr()
    assert cli.main(["evaluate", *map(str, words)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("snapshot", ["val", "geneval"])
def test_the_scores_of_the_run_again(folder: Path, tmp_path: Path, snapshot: str) -> None:
    evaluate(out=tmp_path, snapshot=snapshot)
    of_run = read_scores(RUN / "samples" / snapshot / "scores" / "step-00000002")
    ours = read_scores(tmp_path / "step-00000002" / "scores")
    assert ours == of_run and len(ours) > 5
    assert ours.keys() >= ({"loss", "frechet_distance"} if snapshot == "val" else {"overall", "two_object"})
    weights = {score.fingerprint.extra["weights"] for score in ours.values()}
    assert weights == {"ema 0.9" if snapshot == "val" else "ema 0.5"}
    files = {path.name for path in (tmp_path / "step-00000002").iterdir() if path.name != LOCK}
    assert files == {"scores", "grid.png", "images" if snapshot == "val" else "details"}
    if snapshot == "val":
        for number in range(16):
            places = (tmp_path / "step-00000002" / "images", RUN / "samples" / "val" / "step-00000002")
            first, second = (Image.open(place / f"{number:05d}.png").tobytes() for place in places)
            assert first == second


def test_other_settings_are_other_scores(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ["--steps", "3", "--callbacks.val.keep_images", "false", "--compare", RUN]
    with_message = [
        "evaluate",
        str(RUN),
        "--snapshot",
        "val",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
        *map(str, plain),
    ]
    assert cli.main(with_message) == 2
    assert "these scores cannot be compared, they differ in steps: 3 and 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # refused before anything is drawn
    evaluate(*plain, "--varied", "steps", out=tmp_path)
    assert "difference" in capsys.readouterr().out
    where = tmp_path / "step-00000002-steps-3-keep_images-false"
    assert {path.name for path in where.iterdir() if path.name != LOCK} == {"scores", "grid.png"}
    assert {
        score.fingerprint.steps for name, score in read_scores(where / "scores").items() if not name.startswith("loss")
    } == {3}
    evaluate("--weights", "raw", "--limit", "8", "--seed", "4", "--batch-size", "3", out=tmp_path)
    raw = read_scores(tmp_path / "step-00000002-weights-raw-seed-4-limit-8" / "scores")
    fingerprint = raw["frechet_distance"].fingerprint
    assert (fingerprint.num_images, fingerprint.seeds, fingerprint.extra["weights"]) == (8, "4", "raw")


def test_overrides_are_part_of_the_folders_name(folder: Path, tmp_path: Path) -> None:
    """What was overridden is another evaluation: it does not replace the scores of an earlier one."""
    few = ["--callbacks.geneval.prompts.per_task", "1", "--limit", "3", "--data.root", Path("data").resolve()]
    evaluate(*few, snapshot="geneval", out=tmp_path)
    evaluate("--limit", "3", snapshot="geneval", out=tmp_path)
    one, plain = sorted(tmp_path.iterdir(), reverse=True)
    assert (one.name, plain.name) == ("step-00000002-limit-3-prompts.per_task-1", "step-00000002-limit-3")
    assert read_scores(one / "scores") != read_scores(plain / "scores")


def test_a_weaker_network_is_loaded_from_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    """Guided by itself a network draws what it draws without guidance."""
    itself = f"{{class_path: t2ikit.diffusion.Guidance, init_args: {{weight: 3, weaker: {{checkpoint: {RUN}}}}}}}"
    evaluate("--limit", "8", "--guidance", "0", out=tmp_path / "none")
    evaluate("--limit", "8", "--callbacks.val.guidance", itself, out=tmp_path / "itself")
    evaluate("--limit", "8", "--callbacks.val.guidance", itself, "--guidance", "1,2", out=tmp_path / "sweep")
    drawn = []
    for name, count in (("none", 8), ("itself", 8), ("sweep", 16)):
        paths = sorted((tmp_path / name).rglob("images/*.png"))
        assert len(paths) == count
        drawn.append(np.stack([np.asarray(Image.open(path), dtype=float) for path in paths]))
    assert np.abs(drawn[1] - drawn[0]).mean() < 0.5  # of 255; rounding
    assert np.abs(drawn[2] - np.concatenate([drawn[0]] * 2)).mean() < 0.5


@pytest.mark.fault("SIGKILL in an evaluation", "the same command ends with the same scores")
@pytest.mark.long
def test_a_sweep_goes_on_where_it_was_killed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 in the second weight: the call again draws the batches that are missing, and no other."""
    words = ["--guidance", "0,3,1", "--snapshot", "val", "--device", "cpu", "--out", str(tmp_path)]
    script = f"""
import os, signal, sys
from t2ikit import cli
from t2ikit.evaluation.image_store import ImageStore
add, made = ImageStore.add, []
def counted(self, first, images):
    if len(made) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    made.append(first)
    add(self, first, images)
ImageStore.add = counted
cli.main(["evaluate", {str(RUN)!r}, *{words!r}])
"""
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240)
    assert killed.returncode == -signal.SIGKILL
    where = tmp_path / "step-00000002-guidance-sweep"
    assert len(list(where.rglob("*.npy"))) == 4  # 16 images by 6: three batches of the first weight, one of the second
    add, made = ImageStore.add, list[tuple[str, int]]()

    def counted(self: ImageStore, first: int, images: torch.Tensor) -> None:
        made.append((self.folder.parent.name, first))
        add(self, first, images)

    monkeypatch.setattr(ImageStore, "add", counted)
    evaluate(*words[:2], out=tmp_path)
    assert made == [("guidance-3", 6), ("guidance-3", 12), ("guidance-1", 0), ("guidance-1", 6), ("guidance-1", 12)]
    assert {path.name for path in where.iterdir() if path.name != LOCK} == {
        "guidance-0", "guidance-1", "guidance-3", "scores.csv", "guidance.png"
    }  # fmt: skip
    assert not list(where.rglob("*.sampling")) and "w = 3" in capsys.readouterr().out
    assert (where / "scores.csv").read_text().startswith("guidance,frechet_distance,precision,")
    swept = read_scores(where / "guidance-3" / "scores")  # the snapshot's own weight
    of_run = read_scores(RUN / "samples" / "val" / "scores" / "step-00000002")
    assert {name: score for name, score in of_run.items() if not name.startswith("loss")} == swept


@pytest.mark.fault("two evaluations into one folder", "the second is refused; no images get the other's scores")
def test_a_folder_into_which_another_process_samples_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "step-00000002"
    where.mkdir()
    hold = """import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(where / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        other.stdout.readline()
        message = refused(capsys, RUN, "--snapshot", "geneval", "--device", "cpu", "--out", tmp_path)
        assert str(where) in message and "another process samples into this folder" in message and "--out" in message
        assert [path.name for path in where.iterdir()] == [LOCK]
        other.kill()
    evaluate(out=tmp_path, snapshot="geneval")
    assert (where / "scores").exists() and not is_locked(where)


def test_scores_of_losses_do_not_pass_for_pictures_of_another_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def scores(sampler: str | None, seed: str) -> list[Score]:
        images = Fingerprint(sampler=sampler, seeds=None if sampler is None else "0")
        losses = Fingerprint(reference="val", seeds=seed)
        names = ("loss", "loss_fixed_t", GAP, f"{GAP}_cutmix")
        return [Score("frechet_distance", 9.0, images), *(Score(name, 0.5, losses) for name in names)]

    def report(ours: list[Score], theirs: list[Score]) -> str:
        found = Found({score.name: score for score in theirs}, tmp_path)
        _report(tmp_path, ours, found, Namespace(varied=(), compare="other"))
        return capsys.readouterr().out

    assert "another program" not in report(scores("ddim", "0"), scores("ddim", "0"))
    with pytest.raises(UnlikeFingerprints, match="sampler: 'ddim' and 'ddpm'"):
        report(scores("ddim", "0"), scores("ddpm", "0"))
    # Pictures excuse what is not known of them, and no loss.
    assert "not known, and not compared: seeds, sampler" in report(scores("ddim", "0"), scores(None, "0"))
    with pytest.raises(UnlikeFingerprints, match="seeds: '0' and '7'"):
        report(scores("ddim", "0"), scores(None, "7"))


def test_pictures_of_another_program(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "peer"
    shutil.copytree(RUN / "samples" / "val" / "step-00000002", pictures)
    words = ["--images", pictures, "--experiment", "small.yaml", "--compare", RUN]
    evaluate(*words, out=tmp_path / "out", checkpoint=None)
    assert "not known, and not compared: seeds, sampler" in capsys.readouterr().out
    ours = read_scores(tmp_path / "out" / "peer" / "scores")
    of_run = read_scores(RUN / "samples" / "val" / "scores" / "step-00000002")
    assert {name: score.value for name, score in ours.items()} == {
        n: s.value for n, s in of_run.items() if not n.startswith("loss")
    }
    assert (tmp_path / "out" / "peer" / "grid.png").is_file()
    base = ["--images", pictures, "--experiment", "small.yaml", "--snapshot", "val", "--device", "cpu"]
    (pictures / "00003.png").unlink()
    message = refused(capsys, *base)
    assert "peer holds 15 pictures, CaptionPrompts has 16 prompts" in message and "--limit" in message
    (pictures / "00004.png").write_bytes(b"no picture")
    assert "00004.png is no whole image" in refused(capsys, *base, "--limit", "15")
    assert "no folder nowhere" in refused(capsys, "--images", "nowhere", *base[2:])


def test_a_folder_holds_scores_of_one_thing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for parent in ("a", "b"):
        shutil.copytree(RUN / "samples" / "val" / "step-00000002", tmp_path / parent / "images")
    words = ["--experiment", "small.yaml", "--snapshot", "val", "--device", "cpu", "--out", tmp_path / "out"]
    for _ in range(2):  # the same again replaces its own
        evaluate("--images", tmp_path / "a/images", *words[:2], out=tmp_path / "out", checkpoint=None)
    before = (tmp_path / "out" / "images" / "scores" / "frechet_distance.json").read_bytes()
    message = refused(capsys, "--images", tmp_path / "b/images", *words)
    assert f"holds scores of {tmp_path}/a/images by" in message and message.endswith("with --out")
    shutil.copy("small.yaml", "other.yaml")
    other = ["--experiment", "other.yaml", *words[2:]]
    assert "other.yaml: give another folder with --out" in refused(capsys, "--images", tmp_path / "a/images", *other)
    assert (tmp_path / "out" / "images" / "scores" / "frechet_distance.json").read_bytes() == before
    (tmp_path / "b/images/00003.png").unlink()
    new = [*words[:-1], tmp_path / "new"]
    assert "15 pictures" in refused(capsys, "--images", tmp_path / "b/images", *new)
    assert not (tmp_path / "new" / "images").exists()


def test_states_of_another_text_encoder_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["--data.root", tmp_path / "full", "--data.difficulty", "full"]  # which has more words
    message = refused(capsys, RUN, "--snapshot", "val", "--device", "cpu", *other)
    assert "trained on the text states of text_encoder" in message and "--data.root" in message
    assert "--data.word_order" in message


def test_the_reference_is_computed_once_for_all(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--write-reference", tmp_path, "--experiment", "small.yaml", "--snapshot", "val", "--device", "cpu"]
    assert cli.main(["evaluate", *map(str, words)]) == 0
    (written,) = tmp_path.glob("*.npz")
    assert f"reference_statistics: {written}  # init_args of DistributionMetrics" in capsys.readouterr().out
    metrics = f"""
extends: [small.yaml]
callbacks:
  val:
    init_args:
      reference: null
      metrics:
        - class_path: t2ikit.metrics.DistributionMetrics
          init_args:
            features: {{class_path: t2ikit.metrics.RandomConvFeatures}}
            reference_statistics: {written}
"""
    Path("stored.yaml").write_text(metrics)
    evaluate("--experiment", "stored.yaml", out=tmp_path / "out")
    ours = read_scores(tmp_path / "out" / "step-00000002-experiment-stored" / "scores")  # not the run's own `val`
    of_run = read_scores(RUN / "samples" / "val" / "scores" / "step-00000002")
    assert {"frechet_distance", "coverage"} <= ours.keys() <= of_run.keys()
    for name, score in ours.items():
        assert score.value == pytest.approx(of_run[name].value, rel=1e-5)
        assert score.fingerprint == of_run[name].fingerprint
    words[3] = "stored.yaml"
    assert "callbacks.val has no reference: set its reference" in refused(capsys, *words)
    words[3:6] = ["small.yaml", "--snapshot", "geneval"]
    assert "callbacks.geneval has no reference" in refused(capsys, *words)


def test_verdicts_are_compared_by_prompt(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate("--compare", RUN, out=tmp_path, snapshot="geneval")
    printed = capsys.readouterr().out
    assert "GenEval, paired by prompt" in printed and "95 % interval" in printed
    assert "[+0.000, +0.000]" in printed  # the same images


def test_which_weights(folder: Path) -> None:
    stored = torch.load(RUN / "checkpoints" / "step-00000002.ckpt", weights_only=True)
    for decay in (0.9, 0.5):
        model = load_trained(RUN, "auto", decay=decay)
        assert model.weights == f"ema {decay}"
        for name, value in stored["callbacks"]["EMA"]["profiles"][str(decay)].items():
            assert torch.equal(model.module.denoiser.state_dict()[name], value)
    assert load_trained(RUN, "raw").weights == "raw"
    with pytest.raises(ValueError, match=r"no averages of decay 0.7, only of 0.9, 0.5"):
        load_trained(RUN, "ema", decay=0.7)


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t2ikit.run.offline.load_trained", lambda *_: pytest.fail("it was loaded"))
    place = RUN / "evaluations"
    place.write_text("a file")
    try:
        said = refused(capsys, RUN, "--snapshot", "val", "--device", "cpu")
    finally:
        place.unlink()
    assert "evaluations is a file, no folder" in said and "--out" in said


def test_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = [RUN, "--device", "cpu", "--out", tmp_path / "out"]
    val = [*one, "--snapshot", "val"]
    pictures = ["--images", tmp_path, "--snapshot", "val"]
    for words, message in [
        ([*one, "--snapshot", "vall"], "no snapshot of that name in"),
        ([*one, "--snapshot", "vall"], "it has val, geneval; nearest known: 'val'"),
        ([*one, "--snapshot", "ema"], "it has val, geneval"),
        (["--snapshot", "val"], "Give either a CHECKPOINT or --images DIR"),
        ([RUN, *pictures], "Give either a CHECKPOINT or --images DIR"),
        (pictures, "--images needs --experiment FILE"),
        (["--write-reference", tmp_path, "--snapshot", "val"], "--write-reference needs --experiment FILE"),
        ([*pictures, "--experiment", "small.yaml", "--batch-size", "2"], "--batch-size is an option of sampling"),
        ([*val, "--method", "dpmp"], "unknown sampling method 'dpmp'"),
        ([*val, "--model.denoiser.patch_size", "2"], "the model is that of the checkpoint"),
        ([*val, "--callbacks.val.stps", "2"], "Snapshot takes no 'stps'; nearest known: 'steps'"),
        ([*val, "--callbacks.val.steps"], "--callbacks.val.steps needs a value"),
        ([*val, "--callbacks.vall.steps", "2"], "has no callback vall; nearest known: 'val'"),
        (
            [*val, "--callbacks.ema.decay", "0.7"],
            "changes nothing of the snapshot val: its own options begin with --callb",
        ),
        ([*val, "--callbacks.geneval.steps", "7"], "--callbacks.geneval.steps changes nothing of the snapshot val"),
        ([*val, "--data.root", "nowhere.else", "--data", "x"], "unrecognized arguments"),
        ([*val, "--compare", tmp_path], "no scores of val in it; give a run"),
        ([*val, "--guidance", "1,2", "--compare", RUN], "give --guidance one weight"),
        ([*val, "--varied", "steps"], "give --compare DIR"),
        ([*val, "--compare", str(RUN), "--varied", "step"], "scores of any two steps of training may be compared"),
        ([*val, "--compare", str(RUN), "--varied", "stepz"], "nearest known: 'steps'; the fields are"),
        (["nowhere", *val[1:]], "checkpoint nowhere: no such file"),
        ([*val, "--device", "abacus"], "--device abacus: "),
        ([*val, "--device", "cpu:0", "--devices", "2"], "--device cpu:0 is one device"),
        ([*val, "--callbacks.val.ema_decay", "0.7"], "no averages of decay 0.7"),
    ]:
        if "unrecognized" in message:
            with pytest.raises(SystemExit, match="2"):
                cli.main(["evaluate", *map(str, words)])
            assert message in capsys.readouterr().err
        else:
            assert message in refused(capsys, *words), words
    assert not (tmp_path / "out").exists()
    for words, message in [
        ([*val, "--guidance", "1,1"], "give different numbers, separated by commas, such as 0,1,2,4; got 1,1"),
        ([*val, "--guidance", "x"], "--guidance: give different numbers, separated by commas, such as 0,1,2,4; got x"),
        ([*val, "--steps", "0"], "0 is less than 1"),
        (one, "required: --snapshot"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            cli.main(["evaluate", *map(str, words)])
        assert message in capsys.readouterr().err


@pytest.mark.long
def test_two_devices(folder: Path, tmp_path: Path) -> None:
    """Lightning starts the second process by running the command again."""
    words = ["evaluate", str(RUN), "--snapshot", "val", "--device", "cpu", "--devices", "2", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "t2ikit", *words], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours = read_scores(tmp_path / "step-00000002" / "scores")
    of_run = read_scores(RUN / "samples" / "val" / "scores" / "step-00000002")
    assert ours.keys() == of_run.keys() and done.stdout.count("scores: ") == 1
    for name, score in ours.items():
        assert score.fingerprint == of_run[name].fingerprint
        assert score.value == pytest.approx(of_run[name].value, rel=1e-3, abs=1e-6)
