"""Rewards: their arithmetic, small networks in the ordinary format, missing packages and files."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from t2ikit.metrics import Samples
from t2ikit.metrics.alignment.image_reward import image_reward
from t2ikit.metrics.alignment.rewards import AestheticHead, AestheticScore, HPSv2, PickScore, pick_scores
from t2ikit.metrics.features.pixels import preprocess

IMAGES = torch.randint(0, 256, (3, 3, 40, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["w1", "w2 w3", "w4"]


def test_arithmetic() -> None:
    images, texts = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert float(pick_scores(images, texts, math.log(100))) == pytest.approx(100 / math.sqrt(2))
    raw = torch.tensor([0.16717362830052426, 0.16717362830052426 + 1.0333394966054072], dtype=torch.float64)
    torch.testing.assert_close(image_reward(raw), torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_the_aesthetic_head_is_linear_on_unit_embeddings() -> None:
    torch.manual_seed(0)
    head = AestheticHead(24).eval()
    assert [name for name in head.state_dict() if name.endswith("weight")] == [
        f"layers.{place}.weight" for place in (0, 2, 4, 6, 7)
    ]
    rows = torch.randn(2, 24)
    torch.testing.assert_close(head(rows), head(rows * 7))
    unit = torch.nn.functional.normalize(rows, dim=1)
    middle = torch.nn.functional.normalize(unit.sum(dim=0, keepdim=True), dim=1)
    length = unit.sum(dim=0).norm()
    bias = head.layers(torch.zeros(1, 24))[0, 0]
    torch.testing.assert_close((head(middle) - bias)[0] * length, (head(unit) - bias).sum(), rtol=1e-4, atol=1e-5)


def test_pick_score_of_a_small_clip(small_clip: Path) -> None:
    metric = PickScore(str(small_clip), tokenizer=str(small_clip), batch_size=2)
    encoder = metric.encoder
    scale = float(encoder.network.logit_scale)  # type: ignore[arg-type]
    expected = pick_scores(encoder.images(IMAGES), encoder.texts(PROMPTS), scale).mean()
    result = metric.compute(Samples(IMAGES, PROMPTS))
    assert result.values["pick_score"] == pytest.approx(float(expected), rel=1e-4)
    values = pick_scores(encoder.images(IMAGES), encoder.texts(PROMPTS), scale)
    assert result.errors["pick_score"] == pytest.approx(float(values.std()) / math.sqrt(3), rel=1e-3)
    # Images of one prompt are alike: of two prompts there are two means, whose halved difference is the error.
    values = pick_scores(encoder.images(IMAGES[:2].repeat(2, 1, 1, 1)), encoder.texts(PROMPTS[:2] * 2), scale)
    result = metric.compute(Samples(IMAGES[:2].repeat(2, 1, 1, 1), PROMPTS[:2] * 2))
    halved = abs(float(values[0] - values[1])) / 2
    assert result.errors["pick_score"] == pytest.approx(halved, rel=1e-3)
    assert metric.compute(Samples(IMAGES[:1], PROMPTS[:1])).errors == {}
    with pytest.raises(ValueError, match="needs images and their prompts"):
        metric.compute(Samples(IMAGES))
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        PickScore(str(small_clip), tokenizer=str(small_clip / "none")).compute(Samples(IMAGES, PROMPTS))


def test_aesthetic_score(small_clip: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    head = AestheticHead(24).eval()
    torch.save(head.state_dict(), tmp_path / "head.pth")
    metric = AestheticScore(str(tmp_path / "head.pth"), model=str(small_clip), batch_size=2)
    expected = head(metric.encoder.images(IMAGES)).mean().detach()
    assert metric.compute(Samples(IMAGES, PROMPTS)).values["aesthetic"] == pytest.approx(float(expected), rel=1e-4)
    assert len(metric.fingerprint()["head_sha256"]) == 64
    with pytest.raises(FileNotFoundError, match="init_args.weights"):
        AestheticScore(str(tmp_path / "none.pth"), model=str(small_clip)).head()
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds no aesthetic head"):
        AestheticScore(str(tmp_path / "other.pth"), model=str(small_clip)).head()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"t2ikit\[rewards\]"):
        HPSv2("weights.pt").compute(Samples(IMAGES, PROMPTS))


def test_hps_of_a_small_open_clip(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    tower = {"width": 64, "layers": 2}
    settings = {
        "embed_dim": 24,
        "vision_cfg": {**tower, "image_size": 224, "head_width": 32, "patch_size": 56},
        "text_cfg": {**tower, "context_length": 77, "vocab_size": 49408, "heads": 2},
    }
    (tmp_path / "t2ikit-small.json").write_text(json.dumps(settings))
    open_clip.add_model_config(tmp_path / "t2ikit-small.json")
    torch.manual_seed(0)
    network = open_clip.create_model("t2ikit-small").eval()
    torch.save({"epoch": 1, "state_dict": network.state_dict()}, tmp_path / "hps.pt")
    prompts = ["a dog", "two red cats", "a long prompt " * 60]
    metric = HPSv2(str(tmp_path / "hps.pt"), "t2ikit-small", batch_size=2)
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("t2ikit-small")(prompts)
        pixels = torch.stack([preprocess("hpsv2", image) for image in IMAGES])
        pictures, texts, _ = network(pixels, tokens)  # of length one
    assert tokens[2, -1] == 49407  # the end token of the cut prompt stays
    expected = float((pictures * texts).sum(dim=1).mean())
    assert metric.compute(Samples(IMAGES, prompts)).values == {"hps_v2": pytest.approx(expected, rel=1e-4, abs=1e-6)}
    assert len(metric.fingerprint()["features_sha256"]) == 64
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"init_args\.weights"):
        HPSv2(str(tmp_path / "other.pt"), "t2ikit-small").compute(Samples(IMAGES, prompts))
    with pytest.raises(FileNotFoundError, match=r"init_args\.weights"):
        HPSv2(str(tmp_path / "none.pt")).fingerprint()


def test_only_numbers_are_scores(small_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = PickScore(str(small_clip), tokenizer=str(small_clip))
    monkeypatch.setattr(metric, "_values", lambda images, prompts: torch.tensor([1.0, float("nan"), 2.0]))
    with pytest.raises(ValueError, match="pick_score of image 1 is not finite"):
        metric.compute(Samples(IMAGES, PROMPTS))
