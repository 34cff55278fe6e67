"""Two text encoders, one with pooled vectors, from photos to scores: prepare, train, resume, sample, evaluate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import pre_tokenizers

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.data.datamodule import DataModule
from t2ikit.encoders import build_small_t5
from t2ikit.metrics.fingerprint import read_scores
from t2ikit.records.manifest import Manifest
from t2ikit.run.trained import load_trained

pytestmark = pytest.mark.long  # the module trains first

EXPERIMENT = """
extends: [tiny.yaml]
model:
  init_args:
    denoiser: {init_args: {text_dim: [16, 24], pooled_dim: 20}}
    optimizer: {init_args: {lr: 0.05}}
trainer: {max_steps: 6}
data:
  class_path: t2ikit.data.DataModule
  init_args: {root: data, num_workers: 0, batch_size: 8, length_bucket: 4}
callbacks:
  geneval: null
  table: null
  cutmix: null
  val:
    init_args:
      steps: 2
      every_n_steps: 3
      at_start: false
      metrics:
        - class_path: t2ikit.metrics.DistributionMetrics
          init_args: {features: {class_path: t2ikit.metrics.RandomConvFeatures, init_args: {dim: 8}}, k: 2}
  checkpoint: {init_args: {every_n_steps: 2, keep: 9}}
  stop: stop.Stop
"""
UVIT = """
extends: [two.yaml]
model:
  init_args:
    denoiser:
      class_path: t2ikit.denoisers.UViT
      init_args:
        input_size: 16
        core: {width: 32, blocks: 1, heads: 2, noise_width: 16}
        shell:
          class_path: t2ikit.denoisers.Levels
          init_args: {patch: 2, channels: [8], blocks: [1], head_channels: 8}
        text_dim: [16, 24]
    objective:
      init_args:
        process: {init_args: {schedule: shifted_cosine, prediction: v, log_snr_shift: 1.0}}
"""
CLASSES = ("n02012849", "n03126707")
END = "step-00000006.ckpt"


def tiny_clip(folder: Path) -> None:
    """A CLIP text model with its projection, whose tokens are bytes: states of width 24, pooled vectors of 20."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    transformers.CLIPTokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[]).save_pretrained(
        folder
    )
    sizes = {"vocab_size": 514, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "projection_dim": 20, "bos_token_id": 512, "eos_token_id": 513}
    torch.manual_seed(0)
    transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**sizes)).save_pretrained(folder)


def prepare(folder: Path) -> None:
    """Photos of two classes, prepared by the command line into ``data``."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name in CLASSES:
            (folder / "photos" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                photo = Image.fromarray(pixels).resize((20, 20))
                photo.save(folder / "photos" / split / name / f"{index}.png")
    build_small_t5(folder / "t5", ["An image of crane"], dim=16, layers=1)
    tiny_clip(folder / "clip")
    images = ["--source", "photos", "--size", "16", "--workers", "1", "--picture-format", "webp"]
    images += ["--crop", "random", "--min-side", "20"]
    encoders = ["--autoencoder", "pixels", "--text-encoder", "./t5", "--text-encoder", "./clip"]
    for words in (["images", *images], ["captions"], ["encode", *encoders]):
        assert cli.main(["prepare", *words, "--out", "data"]) == 0
    assert cli.main(["prepare", "check", "data"]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, encoders, data, and two runs: ``whole``, and ``killed``, which was resumed."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        tiny.enter(folder, patch, {"two.yaml": EXPERIMENT, "stop.py": tiny.STOP})
        prepare(folder)
        assert cli.main(["run", "two.yaml", "--run.name", "whole"]) == 0
        tiny.killed("5", "run", "two.yaml", "--run.name", "killed")
        assert cli.main(["run", "two.yaml", "--run.name", "killed", "--resume", "last"]) == 0
    return folder


@pytest.fixture
def folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the current folder."""
    return tiny.current(trained, monkeypatch)


def test_both_encoders_are_in_the_set(folder: Path) -> None:
    texts = Manifest.read(folder / "data" / "train").texts
    assert [(text.dim, text.pooled) for text in texts.values()] == [(16, 0), (24, 20)]


@pytest.mark.fault("SIGKILL with two text encoders", "bit for bit as one that nobody disturbed")
def test_a_killed_run_ends_as_an_undisturbed_one(folder: Path) -> None:
    whole, killed = (folder / "runs" / name / "version_0" for name in ("whole", "killed"))
    expected, actual = (
        torch.load(run / "checkpoints" / END, weights_only=True, map_location="cpu") for run in (whole, killed)
    )
    tiny.assert_same(expected["state_dict"], actual["state_dict"], "state_dict")
    tiny.assert_same(expected["optimizer_states"][0]["state"], actual["optimizer_states"][0]["state"], "optimizer")
    averages = expected["callbacks"]["EMA"]["profiles"]
    tiny.assert_same(averages, actual["callbacks"]["EMA"]["profiles"], "EMA")
    assert averages
    rows, again = (read_metrics(run / "metrics.csv") for run in (whole, killed))
    assert rows["train/loss"] == again["train/loss"] and len(rows["train/loss"]) == 6
    scores = {name: values for name, values in rows.items() if name.startswith("val/") and "second" not in name}
    assert "val/frechet_distance" in scores and scores == {name: again[name] for name in scores}


def test_images_and_scores_of_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = Path("runs/whole/version_0")
    drawn = ["--prompt", "An image of crane", "--prompt", "crane", "--steps", "2", "--device", "cpu"]
    assert cli.main(["sample", str(run), *drawn, "--out", str(tmp_path / "images")]) == 0
    first, second = (np.asarray(Image.open(path)) for path in sorted((tmp_path / "images").rglob("0*.png"))[:2])
    assert first.shape == (16, 16, 3) and not np.array_equal(first, second)
    command = ["evaluate", str(run), "--snapshot", "val", "--device", "cpu", "--out", str(tmp_path / "scores")]
    assert cli.main(command) == 0
    scores = read_scores(tmp_path / "scores" / "step-00000006" / "scores")
    assert scores == read_scores(run / "samples" / "val" / "scores" / "step-00000006")
    assert "frechet_distance" in scores


def test_uvit_trains_samples_and_is_evaluated_on_compressed_pixels_and_both_texts(folder: Path, tmp_path: Path) -> None:
    assert Manifest.read(folder / "data" / "train").image_codec == "webp"
    (folder / "uvit.yaml").write_text(UVIT)
    assert cli.main(["run", "uvit.yaml"]) == 0
    run = Path("runs/uvit/version_0")
    options = ["--prompt", "An image of crane", "--steps", "2", "--device", "cpu", "--out", str(tmp_path / "images")]
    assert cli.main(["sample", str(run), *options]) == 0
    assert np.asarray(Image.open(tmp_path / "images" / "00000.png")).shape == (16, 16, 3)
    command = ["evaluate", str(run), "--snapshot", "val", "--device", "cpu", "--out", str(tmp_path / "scores")]
    assert cli.main(command) == 0
    scores = read_scores(tmp_path / "scores" / "step-00000006" / "scores")
    assert scores == read_scores(run / "samples" / "val" / "scores" / "step-00000006")


def test_masked_tokens_of_either_text_change_nothing_and_what_is_not_masked_does(folder: Path) -> None:
    data = DataModule("data", batch_size=8, num_workers=0)
    data.setup("fit")
    module = load_trained(Path("runs/whole/version_0")).module
    module.unconditional = data.unconditional()
    ready = module.ready(next(iter(data.train_dataloader())))
    for text in ready.text:
        text.mask[1:, 2:] = False

    def loss(texts: Any) -> torch.Tensor:
        part = replace(ready, text=tuple(texts))
        return module.objective(module.denoiser, part, module.objective.draw(part, module.rng, 0)).loss_B.detach()

    expected = loss(ready.text)
    for index, text in enumerate(ready.text):
        noise = torch.randn(text.embeddings.shape, generator=torch.Generator().manual_seed(index))
        for mask, equal in ((~text.mask, True), (text.mask, False)):
            changed = list(ready.text)
            changed[index] = replace(text, embeddings=torch.where(mask[..., None], noise, text.embeddings))
            assert torch.equal(loss(changed), expected) == equal
