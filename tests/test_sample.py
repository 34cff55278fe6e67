"""``t2ikit sample``: what it draws, that batches do not matter, and the message of every mistake."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import tiny
from t2ikit import cli
from t2ikit.checkpoints import load_denoiser
from t2ikit.config.errors import ConfigError
from t2ikit.config.origins import Origins
from t2ikit.diffusion import GaussianDiffusion, RectifiedFlow
from t2ikit.run.trained import load_trained

PROMPTS = ["a large red circle", "a blue square", "", "a blue square"]
EXPERIMENT = """
extends: [tiny.yaml]
model: {init_args: {optimizer: {init_args: {lr: 0.05}}}}
data: {init_args: {root: data}}
trainer: {max_steps: 2}
callbacks:
  val: null
  geneval: null
  table: null
  cutmix: null
  progress: null
  drawn:
    class_path: t2ikit.callbacks.Snapshot
    init_args:
      prompts: {class_path: t2ikit.prompts.PromptFile, init_args: {path: prompts.txt}}
      at_start: false
      steps: 3
      guidance: 0.0
      seed: 5
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data/, prompts.txt and runs/small/version_0, made by ``t2ikit run``."""
    folder = tmp_path_factory.mktemp("trained")
    prompts = "a large red circle\n\n  a blue square \na green ring\n"
    with pytest.MonkeyPatch.context() as patch:
        tiny.enter(folder, patch, {"small.yaml": EXPERIMENT, "prompts.txt": prompts})
        assert cli.main(["run", "small.yaml"]) == 0
    return folder


@pytest.fixture
def folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the current folder."""
    return tiny.current(trained, monkeypatch)


RUN = Path("runs/small/version_0")
CHECKPOINT = RUN / "checkpoints" / "step-00000002.ckpt"


def sample(*words: str | Path, out: Path, checkpoint: Path = CHECKPOINT) -> np.ndarray:
    """All images [N, H, W, 3] of ``t2ikit sample``."""
    assert cli.main(["sample", str(checkpoint), "--steps", "3", "--out", str(out), *map(str, words)]) == 0
    return read(out)


def read(out: Path) -> np.ndarray:
    assert not list(out.glob("*.partial"))
    return np.stack([np.asarray(Image.open(path)) for path in sorted(out.glob("0*.png"))]).astype(int)


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The message of a call that is refused."""
    capsys.readouterr()
    assert cli.main(["sample", *map(str, words)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_images_do_not_depend_on_the_batch(folder: Path, tmp_path: Path) -> None:
    words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    one, three, again = (
        sample(*words, "--count", 2, "--guidance", 3.0, "--batch-size", size, out=tmp_path / str(size))
        for size in (1, 3, 16)
    )
    assert one.shape == (8, 16, 16, 3) and one.std() > 10
    assert np.abs(one - three).max() <= 1 and np.abs(one - again).max() <= 1
    differing = {image.tobytes() for image in one}
    assert len(differing) == 8  # every image has noise of its own, also those of one prompt
    other = sample(*words, "--count", 2, "--guidance", 3.0, "--seed", 1, out=tmp_path / "other")
    assert min(np.abs(other - one).max(axis=(1, 2, 3))) > 20


@pytest.mark.parametrize("method", ["ddpm", "heun"])
def test_other_methods_do_not_depend_on_the_batch_either(folder: Path, tmp_path: Path, method: str) -> None:
    words = ["--prompts", "prompts.txt", "--method", method]
    one, three = (sample(*words, "--batch-size", size, out=tmp_path / str(size)) for size in (1, 3))
    assert np.abs(one - three).max() <= 1


def test_sample_draws_what_a_snapshot_of_the_run_drew(folder: Path, tmp_path: Path) -> None:
    grid = tmp_path / "new" / "grid.png"
    sample("--prompts", "prompts.txt", "--guidance", 0, "--seed", 5, "--grid", grid, out=tmp_path / "out")
    drawn = np.asarray(Image.open(RUN / "samples" / "drawn" / "step-00000002.png")).astype(int)
    assert np.abs(np.asarray(Image.open(grid)) - drawn).max() <= 1


def test_a_threshold_of_sample_of_python_and_of_a_snapshot(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--prompts", "prompts.txt", "--guidance", 0, "--seed", 5]
    plain = sample(*words, out=tmp_path / "plain")
    # The bound of pixels is 1, and they end there.
    assert np.array_equal(plain, sample(*words, "--threshold", "clamp:1", out=tmp_path / "same"))
    assert "threshold" not in Image.open(tmp_path / "plain" / "00000.png").info
    bounded = sample(*words, "--threshold", "clamp:0.25", "--grid", tmp_path / "grid.png", out=tmp_path / "bounded")
    assert Image.open(tmp_path / "bounded" / "00000.png").info["threshold"] == "clamp:0.25"
    assert np.abs(bounded - 127.5).max() <= 32 < np.abs(plain - 127.5).max()
    again = load_trained(CHECKPOINT).sample(
        "a large red circle", seed=5, steps=3, guidance=0.0, threshold=("clamp", 0.25)
    )
    assert np.array_equal(np.asarray(again[0]), bounded[0])
    loose = sample(*words, "--threshold", "none", out=tmp_path / "none")
    assert not np.array_equal(plain, loose)
    for text, message in (
        ("clamp", "expected none, clamp:C, dynamic:Q or per_channel:Q"),
        ("round:1", "expected none, clamp:C, dynamic:Q or per_channel:Q"),
        ("dynamic:2", "a quantile in (0, 1]"),
        ("clamp:-1", "a bound above 0"),
    ):
        out = tmp_path / "refused"
        try:
            refused_with = refused(capsys, CHECKPOINT, "--prompt", "a", "--threshold", text, "--out", out)
        except SystemExit:
            refused_with = capsys.readouterr().err
        assert message in refused_with and not out.exists()
    command = ["run", "small.yaml", "--run.directory", str(tmp_path / "runs")]
    assert cli.main([*command, "--callbacks.drawn.threshold=[clamp, 0.25]"]) == 0
    (drawn,) = tmp_path.glob("runs/**/samples/drawn/step-00000002.png")
    assert np.abs(np.asarray(Image.open(tmp_path / "grid.png")).astype(int) - np.asarray(Image.open(drawn))).max() <= 1
    assert cli.main([*command, "--callbacks.drawn.threshold=[dynamic, 2]"]) == 2
    assert "a quantile in (0, 1]" in capsys.readouterr().err


def test_a_png_says_how_it_was_made(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    sample("--prompt", "a ré ☃", "--negative", "a blue square", "--seed", 9, out=tmp_path, checkpoint=RUN)
    assert "1 image of step 2 in" in capsys.readouterr().out
    text = Image.open(tmp_path / "00000.png").text  # type: ignore[attr-defined]
    expected = {
        "prompt": "a ré ☃",
        "index": "0",
        "negative": "a blue square",
        "seed": "9",
        "steps": "3",
        "method": "ddim",
        "guidance": "2.0",
        "weights": "ema",
        "checkpoint": "step-00000002.ckpt",
        "checkpoint_sha256": hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest(),
    }
    assert {key: text[key] for key in expected} == expected
    plain = sample("--prompt", "a ré ☃", "--seed", 9, out=tmp_path / "plain")
    assert np.abs(plain - read(tmp_path)).max() > 1  # the negative prompt acts


def test_the_sampler_is_that_of_the_process_where_none_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = sample("--prompt", "a red circle", "--method", "ddim", out=tmp_path / "given")
    assert np.array_equal(given, sample("--prompt", "a red circle", out=tmp_path / "none"))
    assert "(ddim, 3 steps, guidance 2)" in capsys.readouterr().out
    assert GaussianDiffusion().solver == "ddim" and RectifiedFlow().solver == "euler"
    trained = load_trained(RUN)
    trained.module.objective.process = RectifiedFlow()
    pictures, euler = (trained.sample("a red circle", steps=3, method=method) for method in (None, "euler"))
    assert np.array_equal(np.asarray(pictures[0]), np.asarray(euler[0]))


def test_an_experiment_is_no_trained_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "mine.yaml", "--prompt", "a red circle")
    assert (
        "mine.yaml: an experiment says how to train" in said and "runs/mine" in said and "t2ikit run mine.yaml" in said
    )


def test_the_name_of_an_experiment_and_the_folder_of_all_runs_say_which_to_give(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "small: no such file; the runs of this name are in runs/small" in refused(capsys, "small", "--prompt", "x")
    assert "runs: name one of the runs in it: runs/small" in refused(capsys, "runs", "--prompt", "x")


def test_which_weights_and_which_experiment(folder: Path, tmp_path: Path) -> None:
    stored = torch.load(CHECKPOINT, weights_only=True)
    (averages,) = stored["callbacks"]["EMA"]["profiles"].values()
    ema, raw = (load_trained(RUN, weights) for weights in ("ema", "raw"))  # type: ignore[arg-type]
    for name, value in raw.module.denoiser.state_dict().items():
        assert torch.equal(value, stored["state_dict"]["denoiser." + name])
        assert torch.equal(ema.module.denoiser.state_dict()[name], averages.get(name, value))
    assert any(not torch.equal(value, stored["state_dict"]["denoiser." + name]) for name, value in averages.items())
    assert not ema.module.training and (ema.step, ema.manifest.image_shape) == (2, (3, 16, 16))
    # A checkpoint holds its experiment: it may lie anywhere, and may be named by its folder.
    copy = shutil.copytree(RUN / "checkpoints", tmp_path / "checkpoints")
    assert load_trained(copy).config == yaml.safe_load((RUN / "config.yaml").read_text())
    denoiser = load_denoiser(copy / CHECKPOINT.name)
    for name, value in ema.module.denoiser.state_dict().items():
        assert torch.equal(denoiser.state_dict()[name], value)
    assert not denoiser.training and not any(p.requires_grad for p in denoiser.parameters())


def test_the_experiment_of_a_checkpoint_names_no_strangers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, installed, checkpoint = tmp_path / "mark", tmp_path / "installed", tmp_path / CHECKPOINT.name
    installed.mkdir()
    code = f"from t2ikit.shapes import ShapesData\nopen({str(mark)!r}, 'w')\nclass Data(ShapesData):\n    pass\n"
    (installed / "unknown_part.py").write_text(code)
    monkeypatch.syspath_prepend(str(installed))
    stored = torch.load(CHECKPOINT, weights_only=True)
    objective = stored["experiment"]["model"]["init_args"]["objective"]["init_args"]
    for key, value in (("terms", {"a": "unknown_part.Data"}), ("weighting", "unknown_part.Data")):
        before, objective[key] = objective[key], value
        torch.save(stored, checkpoint)
        with pytest.raises(ConfigError, match="--trust unknown_part"):
            load_trained(checkpoint)
        objective[key] = before
    stored["experiment"]["data"]["class_path"] = "unknown_part.Data"
    torch.save(stored, checkpoint)
    with pytest.raises(FileNotFoundError, match="no text encoder nowhere"):  # searched by its name only
        list(load_trained(checkpoint, text_encoders=["nowhere"]).text_encoders())
    assert load_trained(checkpoint)._data_root() is None and not mark.exists()
    trusted = load_trained(checkpoint, origins=Origins(trusted=("unknown_part",)))
    assert trusted._data_root() == Path("data") and mark.exists()


def test_no_data_set_is_needed_but_its_text_encoder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--prompt", "a blue square"]
    before = sample(*words, out=tmp_path / "before")
    shutil.copytree(RUN, tmp_path / "run")
    encoder = shutil.copytree("data/text_encoder", tmp_path / "t5")
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(before, sample(*words, out=tmp_path / "kept", checkpoint=Path("run")))
    shutil.rmtree("run/text_encoder")
    message = refused(capsys, "run", *words)
    assert "no text encoder text_encoder, nor in the data root data" in message and "--text-encoder" in message
    assert not (tmp_path / "samples").exists()
    after = sample(*words, "--text-encoder", encoder, out=tmp_path / "after", checkpoint=Path("run"))
    assert np.array_equal(before, after)
    file = encoder / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    assert "has other weights" in refused(capsys, "run", *words, "--text-encoder", encoder)
    assert "no text encoder nowhere: give" in refused(capsys, "run", *words, "--text-encoder", "nowhere")


def test_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ["--prompt", "a blue square", "--out", str(tmp_path / "out")]
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(CHECKPOINT.read_bytes()[:500])
    bare = Path(shutil.copytree(RUN, tmp_path / "bare") / "checkpoints" / CHECKPOINT.name)
    content = torch.load(bare, weights_only=True)
    del content["callbacks"]["EMA"]
    torch.save(content, bare)
    other = tmp_path / "bare" / "checkpoints" / "other.ckpt"
    torch.save({"weights": torch.zeros(1)}, other)
    (tmp_path / "shards.ckpt").mkdir()
    (tmp_path / "shards.ckpt" / "0").touch()
    (tmp_path / "none.txt").write_text("\n \n")
    for words, message in [
        (["nowhere.ckpt", *one], "checkpoint nowhere.ckpt: no such file"),
        ([CHECKPOINT.with_name("step-00000003.ckpt"), *one], f"nearest known: '{CHECKPOINT}'"),
        ([folder / "data", *one], "no complete checkpoint in"),
        ([torn, *one], "not a complete checkpoint"),
        ([other, *one], "not a checkpoint of a run"),
        ([tmp_path / "shards.ckpt", *one], "it is a folder, as FSDP"),
        ([bare, *one], "--weights raw"),
        ([RUN, *one, "--method", "dpmp"], "unknown sampling method 'dpmp'; the nearest is 'ddpm'"),
        ([RUN, *one, "--negative", "a ring", "--guidance", "0"], "--negative acts through guidance"),
        ([RUN, *one, "--autoencoder", "vae"], "--autoencoder vae: the model of this checkpoint has none"),
        ([RUN, *one, "--device", "abacus"], "--device abacus: "),
        ([RUN, "--prompts", "no.txt"], "no prompt file no.txt: set --prompts"),
        ([RUN, "--prompts", tmp_path / "none.txt"], "holds no prompt"),
    ]:
        assert message in refused(capsys, *words), words
    assert cli.main(["sample", str(bare), *one, "--weights", "raw", "--steps", "1"]) == 0
    for words, message in [
        ([RUN], "one of the arguments --prompt --prompts is required"),
        ([RUN, *one, "--prompts", "prompts.txt"], "not allowed with argument"),
        ([RUN, *one, "--steps", "0"], "0 is less than 1"),
        (one, "required: CHECKPOINT"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            cli.main(["sample", *map(str, words)])
        assert message in capsys.readouterr().err


def test_latents_are_decoded_by_the_autoencoder_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint as `t2ikit run` writes it, of an untrained model on the latents of a tiny autoencoder."""
    from diffusers import AutoencoderKL

    from t2ikit.config.class_nodes import check_component
    from t2ikit.encoders import LatentSpace, TextEncoder, build_small_t5
    from t2ikit.module import TextToImage
    from t2ikit.records.manifest import Manifest, TextSource

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    torch.manual_seed(0)
    vae = AutoencoderKL(**blocks, block_out_channels=(4,) * 2, layers_per_block=1, norm_num_groups=2, latent_channels=4)
    vae.save_pretrained(tmp_path / "vae")
    build_small_t5(tmp_path / "t5", ["a blue square"], dim=16)
    text = TextEncoder.load(str(tmp_path / "t5")).reference
    image = LatentSpace(str(tmp_path / "vae")).reference
    denoiser = yaml.safe_load(tiny.EXPERIMENT)["model"]["init_args"]["denoiser"]
    denoiser["init_args"] |= {"patch_size": 2, "input_size": 8, "text_dim": 16}
    arguments = {
        "denoiser": {"class_path": "t2ikit.denoisers.CADI", **denoiser},
        "space": {"class_path": "t2ikit.encoders.LatentSpace", "init_args": {"autoencoder": image.name}},
    }
    node = {"class_path": "t2ikit.module.TextToImage", "init_args": arguments}
    module = check_component("model", node, TextToImage).build()
    module.manifest = Manifest(
        "latents", (2, 4, 8, 8), texts={"t5": TextSource(16, text)}, token_limit=4, autoencoder=image
    )
    content = {"state_dict": module.state_dict(), "global_step": 0, "callbacks": {}}
    module.experiment = {
        "model": node,
        "data": {"class_path": "t2ikit.data.DataModule", "init_args": {"root": "gone"}},
    }
    module.on_save_checkpoint(content)
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints" / "step-00000000.ckpt")

    words = ["--prompt", "a blue square", "--weights", "raw"]
    images = sample(*words, out=tmp_path / "out", checkpoint=tmp_path)
    assert images.shape == (1, 16, 16, 3)
    sample("--prompt", "a blue square a", "--weights", "raw", out=tmp_path / "cut", checkpoint=tmp_path)
    assert "1 of 1 prompts are longer than the 4 tokens" in capsys.readouterr().out  # as its captions were cut
    (tmp_path / "vae").rename(tmp_path / "moved")
    assert "--autoencoder" in refused(capsys, tmp_path, *words, "--out", tmp_path / "none")
    moved = sample(*words, "--autoencoder", tmp_path / "moved", out=tmp_path / "again", checkpoint=tmp_path)
    assert np.array_equal(images, moved)
    with torch.no_grad():
        vae.decoder.conv_out.bias.add_(1.0)
    vae.save_pretrained(tmp_path / "another")
    with pytest.raises(ValueError, match="the prepared latents are those of"):
        load_trained(tmp_path, "raw", str(tmp_path / "another"))
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        load_trained(tmp_path / "moved")
