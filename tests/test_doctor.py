"""``t2ikit doctor``: what is missing is said, with exit status 1; weights are tried with tiny models of the classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from t2ikit import cli
from t2ikit.encoders.autoencoders import LatentSpace
from t2ikit.metrics.features.networks import DINOv2Features, InceptionFeatures
from t2ikit.pretrained import cache_folder, find_cached
from t2ikit.run import doctor
from t2ikit.run.weights import Weights, try_weights
from tiny import enter

CPU = torch.device("cpu")
NETWORKS = """
extends: [tiny.yaml]
loggers: {web: {class_path: lightning.pytorch.loggers.WandbLogger, init_args: {offline: true}}}
callbacks:
  val:
    init_args:
      metrics:
        - class_path: t2ikit.metrics.DistributionMetrics
          init_args:
            features: {class_path: t2ikit.metrics.features.networks.DINOv2Features, init_args: {model: dino, dim: 32}}
        - class_path: t2ikit.metrics.DistributionMetrics
          init_args: {features: {class_path: t2ikit.metrics.features.networks.InceptionFeatures}, name: inception}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path / "cache"))  # no data of another test
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return enter(tmp_path, monkeypatch, {"networks.yaml": NETWORKS})


def test_a_callback_that_lacks_a_file_is_named_and_the_others_are_tried(capsys: pytest.CaptureFixture[str]) -> None:
    dpg = "{class_path: t2ikit.metrics.DPGBench, init_args: {questions: none.csv, answerer: {class_path: "
    dpg += "t2ikit.metrics.questions.models.BlipAnswerer}}}"
    words = ["doctor", "tiny.yaml", "--callbacks.val.metrics", f"[{dpg}]"]
    assert cli.main(words) == 1
    assert "cannot be built: callbacks.val" in capsys.readouterr().out
    assert cli.main([*words, "--weights", "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "not tried     callbacks.val" in printed and "1 of 1 do not work" in printed


@pytest.fixture
def dino(folder: Path) -> Path:
    """A DINOv2 of two small blocks."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14)
    Dinov2Model(config).save_pretrained(folder / "dino")
    return folder / "dino"


def test_a_machine_that_lacks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "tiny.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "nothing is missing" in printed and "made at the first use" in printed
    assert "ok      packages" in printed and "ok      logger csv" in printed


def test_what_an_experiment_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(
        doctor, "requires", lambda name: ["torch>=99", "nowhere-to-be-found", "s3fs; extra == 'remote'"]
    )
    words = ["--data.class_path", "t2ikit.data.DataModule", "--data.root", "elsewhere"]
    assert cli.main(["doctor", "networks.yaml", *words, "--data.text_encoder", "owner/encoder"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missing")]
    said = "\n".join(lines)
    assert "t2ikit needs >=99" in said and "pip install 'nowhere-to-be-found'" in said and "s3fs" not in said
    assert "wandb: pip install wandb" in said
    assert "there is no prepared set elsewhere/train" in said and "elsewhere/val" in said
    assert "dino is no folder of this machine" in said
    assert "hf download owner/encoder" in said
    assert "pt_inception" in said and not (Path.cwd() / "torch").exists(), "nothing is downloaded"


def test_weights_that_are_here(dino: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "networks.yaml", "--loggers.web", "null"]) == 1
    printed = capsys.readouterr().out
    assert f"dino is here: {dino.name}" in printed
    assert find_cached("embedded:shapes-full") is not None and find_cached("owner/name") is None


def test_every_loader_is_tried_and_its_output_compared(dino: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "doctor",
        "--weights",
        "networks.yaml",
        "--callbacks.val.metrics.1",
        "{class_path: t2ikit.shapes.LargestColorShare}",
    ]
    words += ["--loggers.web", "null"]
    assert cli.main(words) == 0
    first = capsys.readouterr().out
    assert "recorded now  dino" in first and "SHA-256" in first and first.startswith("t2ikit ")
    assert cli.main(words) == 0
    assert "as recorded   dino" in capsys.readouterr().out
    (record,) = (path for path in (cache_folder() / "doctor").glob("DINOv2Features-dino*.json"))
    content = json.loads(record.read_text())
    content["output"][0] += 1.0
    record.write_text(json.dumps(content))
    assert cli.main(words) == 1
    assert "differs       dino" in capsys.readouterr().out
    record.unlink()


def test_trials_of_one_network_each(dino: Path) -> None:
    space = Weights("model", LatentSpace("embedded:shapes-full", None, "autoencoder", 3), "embedded:shapes-full")
    assert try_weights(space, CPU).state == "recorded now"
    assert try_weights(space, CPU).state == "as recorded"
    features = DINOv2Features(str(dino), dim=32)
    assert try_weights(Weights("val", features, str(dino)), CPU).good
    missing = try_weights(Weights("val", InceptionFeatures(weights="no.pth"), "no.pth", is_file=True), CPU)
    assert missing.state == "fails" and "no Inception weights" in missing.said and not missing.good
    strange = try_weights(Weights("val", object(), str(dino)), CPU)
    assert strange.state == "not tried" and strange.good


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--weights"]) == 2
    assert "which experiment?" in capsys.readouterr().err
