"""CLIPScore: its arithmetic, the end token of long captions, a small CLIP in the ordinary format."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from t2ikit.metrics import Samples
from t2ikit.metrics.alignment.clip_score import CLIPScore, clip_score, pair_cosines
from t2ikit.metrics.features.clip import CLIPEncoder, pooled_position, truncate
from t2ikit.metrics.features.pixels import preprocess

START, END = 98, 99


def test_the_two_forms() -> None:
    images = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    texts = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-5.0, 0.0]])
    cosines = [1.0, 1 / math.sqrt(2), -1.0]
    measured = pair_cosines(images, texts)
    assert clip_score(measured) == pytest.approx(100 * sum(cosines) / 3)
    assert clip_score(measured, "hessel") == pytest.approx(2.5 * (cosines[0] + cosines[1]) / 3)
    # Clamped after the mean, not before it.
    assert clip_score(measured[2:]) == 0
    assert clip_score(measured[1:]) == 0


def test_arithmetic_errors() -> None:
    with pytest.raises(ValueError, match="form must be one of torchmetrics"):
        CLIPScore(form="mean")
    with pytest.raises(ValueError, match="two \\[N, D\\]"):
        pair_cosines(torch.ones(2, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="image or caption 1 is zero"):
        pair_cosines(torch.ones(2, 2), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))


def test_a_long_caption_keeps_its_end() -> None:
    short, long = [START, 5, END], [START, *range(1, 90), END]
    assert truncate(short, END) == short
    cut = truncate(long, END)
    assert (len(cut), cut[-1], cut[:3]) == (77, END, [START, 1, 2])
    assert truncate(long, END, legacy=True) == long[:77]
    exact = [START, *range(1, 76), END]
    assert truncate(exact, END) == truncate(exact, END, legacy=True) == exact


def test_pooling_place() -> None:
    padded = torch.tensor([[START, 5, END, 0, 0], [START, 7, 3, 2, END]])
    assert pooled_position(padded, END).tolist() == [2, 4]
    assert pooled_position(padded, END, legacy=True).tolist() == [2, 4]
    # Without its end token the largest id left is the start token, which has seen nothing of the caption.
    cut = torch.tensor([[START, 5, 97, 3, 2]])
    assert pooled_position(cut, END, legacy=True).tolist() == [0]
    with pytest.raises(ValueError, match="truncate"):
        pooled_position(cut, END)


def test_small_clip_scores_as_transformers_does(small_clip: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel

    images = torch.randint(0, 256, (3, 3, 50, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prompts = ["w1 w2", "w3", "w4 w5 w6 w7"]
    model, tokenizer = CLIPModel.from_pretrained(small_clip).eval(), AutoTokenizer.from_pretrained(small_clip)
    with torch.no_grad():
        pixels = torch.stack([preprocess("clip_224", image) for image in images])
        tokens = tokenizer(prompts, return_tensors="pt", padding=True)
        output = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    expected = clip_score(pair_cosines(output.image_embeds, output.text_embeds))
    metric = CLIPScore(str(small_clip), batch_size=2)
    result = metric.compute(Samples(images, prompts))
    assert result.values == {"clip_score": pytest.approx(expected, rel=1e-4, abs=1e-4)}
    cosines = (output.image_embeds * output.text_embeds).sum(dim=1)
    error = 100 * float(cosines.std()) / 3**0.5
    assert result.errors == {"clip_score": pytest.approx(error, rel=1e-3)}
    described = metric.fingerprint()
    assert (described["resize"], described["legacy"], described["form"]) == ("clip_224", False, "torchmetrics")
    with pytest.raises(ValueError, match="needs the prompts"):
        metric.compute(Samples(images))


def test_weights_in_half_precision_are_computed_in_full(small_clip: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel

    AutoTokenizer.from_pretrained(small_clip).save_pretrained(tmp_path)
    CLIPModel.from_pretrained(small_clip).to(torch.bfloat16).save_pretrained(tmp_path)
    encoder = CLIPEncoder(str(tmp_path))
    assert encoder.texts(["w1 w2"]).dtype == torch.float32
    assert encoder.images(torch.zeros(1, 3, 30, 30, dtype=torch.uint8)).dtype == torch.float32


def test_legacy_forgets_long_captions(small_clip: Path) -> None:
    first = " ".join(f"w{number % 90 + 1}" for number in range(100))
    second = " ".join(f"w{number % 80 + 5}" for number in range(100))
    legacy = CLIPEncoder(str(small_clip), legacy=True).texts([first, second])
    assert torch.allclose(legacy[0], legacy[1], atol=1e-6)
    encoder = CLIPEncoder(str(small_clip))
    right = encoder.texts([first, second])
    assert not torch.allclose(right[0], right[1], atol=1e-3)
    torch.testing.assert_close(encoder.texts(["w1", first])[1], right[0], rtol=1e-4, atol=1e-5)
