"""Rewards: their arithmetic, small networks in the ordinary format, missing packages and files."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from t2ikit.metrics import Samples
from t2ikit.metrics.rewards import AestheticHead, AestheticScore, HPSv2, PickScore, image_reward, pick_scores

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
    assert dict(metric.compute(Samples(IMAGES, PROMPTS)))["pick_score"] == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(ValueError, match="needs images and their prompts"):
        dict(metric.compute(Samples(IMAGES)))
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        dict(PickScore(str(small_clip), tokenizer=str(small_clip / "none")).compute(Samples(IMAGES, PROMPTS)))


def test_aesthetic_score(small_clip: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    head = AestheticHead(24).eval()
    torch.save(head.state_dict(), tmp_path / "head.pth")
    metric = AestheticScore(str(tmp_path / "head.pth"), model=str(small_clip), batch_size=2)
    expected = head(metric.encoder.images(IMAGES)).mean().detach()
    assert dict(metric.compute(Samples(IMAGES, PROMPTS)))["aesthetic"] == pytest.approx(float(expected), rel=1e-4)
    assert len(metric.fingerprint()["head_sha256"]) == 64
    with pytest.raises(FileNotFoundError, match="init_args.weights"):
        AestheticScore(str(tmp_path / "none.pth"), model=str(small_clip)).head()
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds no aesthetic head"):
        AestheticScore(str(tmp_path / "other.pth"), model=str(small_clip)).head()


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is not None, reason="open_clip is installed")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(ImportError, match=r"t2ikit\[rewards\]"):
        dict(HPSv2("weights.pt").compute(Samples(IMAGES, PROMPTS)))
