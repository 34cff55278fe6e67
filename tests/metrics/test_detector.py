"""GenEval's detector: post-processing by hand, the colour crop against PIL, a small Mask2Former and CLIP."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2ikit.metrics.geneval.detector import (
    CLASSES,
    ColorClassifier,
    Mask2FormerDetector,
    color_crop,
    detector_input,
    detector_size,
    mask_boxes,
    postprocess,
)
from t2ikit.metrics.geneval.rules import COLORS


def test_one_query_may_give_two_classes() -> None:
    logits = torch.tensor([[2.0, 1.5, -9.0, 0.0], [-9.0, -9.0, 3.0, 9.0]])
    masks = torch.full((2, 4, 4), -2.0)
    masks[0, 1:3, 2:] = 3.0
    found = postprocess(logits, masks, (4, 4), (4, 4), (4, 4), max_detections=3)
    probabilities = logits.softmax(dim=1)
    assert found.labels.tolist() == [0, 1, 2]
    inside = torch.tensor(3.0).sigmoid()
    torch.testing.assert_close(found.scores[:2], probabilities[0, :2] * inside, rtol=1e-5, atol=1e-6)
    # The background of the second query takes nearly all; its mask is empty, so box and score are zero.
    assert found.scores[2] == 0
    assert found.boxes.tolist() == [[2, 1, 4, 3], [2, 1, 4, 3], [0, 0, 0, 0]]
    assert torch.equal(found.masks[0], masks[0] > 0)


def test_masks_are_resized_padded_size_first() -> None:
    generator = torch.Generator().manual_seed(0)
    masks, logits = torch.randn(5, 8, 8, generator=generator), torch.randn(5, 4, generator=generator)
    found = postprocess(logits, masks, (32, 32), (20, 30), (41, 57), max_detections=4)
    grown = torch.nn.functional.interpolate(masks[None], (32, 32), mode="bilinear")[:, :, :20, :30]
    grown = torch.nn.functional.interpolate(grown, (41, 57), mode="bilinear")[0]
    scores = logits.softmax(dim=1)[:, :3]
    pairs = sorted(itertools.product(range(5), range(3)), key=lambda pair: -float(scores[pair]))[:4]
    for number, (query, label) in enumerate(pairs):
        assert int(found.labels[number]) == label
        assert torch.equal(found.masks[number], grown[query] > 0)
        inside = grown[query][grown[query] > 0]
        expected = scores[query, label] * inside.sigmoid().mean()
        torch.testing.assert_close(found.scores[number], expected, rtol=1e-4, atol=1e-6)


def test_boxes_end_one_past_the_mask() -> None:
    masks = torch.zeros(2, 5, 7, dtype=torch.bool)
    masks[0, 4, 6] = True
    assert mask_boxes(masks).tolist() == [[6, 4, 7, 5], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 512), (800, 800)), ((300, 1000), (400, 1333)), ((1000, 300), (1333, 400))]
)
def test_input_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert detector_size(*size) == expected
    pixels, resized = detector_input(torch.full((3, *size), 124, dtype=torch.uint8))
    assert resized == expected
    assert all(side % 32 == 0 and side >= length for side, length in zip(pixels.shape[1:], expected, strict=True))
    torch.testing.assert_close(pixels[0, 0, 0], torch.tensor((124 - 123.675) / 58.395))
    assert pixels[:, expected[0] :].abs().sum() == 0


@pytest.mark.parametrize("box", [(2, 3, 9, 8), (-2, 1, 5, 14), (0.5, 1.5, 2.5, 3.5), (8.6, 4.2, 30.0, 12.4)])
def test_color_crop_equals_pil(box: tuple[float, ...]) -> None:
    random = np.random.default_rng(0)
    pixels, mask = random.integers(0, 256, size=(11, 13, 3), dtype=np.uint8), random.random((11, 13)) > 0.5
    image = Image.fromarray(pixels)
    composed = Image.composite(image, Image.new("RGB", image.size, "#999"), Image.fromarray(mask))
    expected = torch.from_numpy(np.array(composed.crop(box))).permute(2, 0, 1)
    found = color_crop(torch.from_numpy(pixels).permute(2, 0, 1), box, torch.from_numpy(mask))
    assert torch.equal(found, expected)


def test_color_crop_errors() -> None:
    image = torch.zeros(3, 5, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="differ in size"):
        color_crop(image, (0, 0, 2, 2), torch.ones(4, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="is empty"):
        color_crop(image, (2, 0, 2, 2))


@pytest.fixture(scope="module")
def small_detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    heads, depths = [1, 1, 2, 2], [1, 1, 1, 1]
    backbone = SwinConfig(embed_dim=8, depths=depths, num_heads=heads, window_size=4, out_features=stages)
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=7,
        num_labels=80,
    )
    folder = tmp_path_factory.mktemp("mask2former")
    Mask2FormerForUniversalSegmentation(config).eval().save_pretrained(folder)
    return folder


class FirstColor(ColorClassifier):
    """Red for everything, but only crops may come."""

    def __call__(self, crops: object, name: str) -> list[str]:
        assert name in CLASSES
        assert isinstance(crops, list)
        assert all(crop.dtype == torch.uint8 and crop.shape[0] == 3 for crop in crops)
        return ["red"] * len(crops)


def test_small_mask2former(small_detector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A smaller input keeps the test short; the published size is tested above.
    monkeypatch.setattr("t2ikit.metrics.geneval.detector.LONG_SIDE", 160)
    monkeypatch.setattr("t2ikit.metrics.geneval.detector.SHORT_SIDE", 96)
    detector = Mask2FormerDetector(str(small_detector), color=FirstColor(), threshold=0.0)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8, generator=generator)
    found = detector.instances(image)
    assert found.masks.shape == (100, 50, 70)
    detections = detector(image)
    assert 0 < len(detections) <= 100
    scores = [one["score"] for one in detections]
    assert scores == sorted(scores, reverse=True)
    assert all(one["color"] == "red" and one["class"] in CLASSES and len(one["box"]) == 4 for one in detections)


def test_colors_by_averaged_prompts(small_clip: Path) -> None:
    crops = [torch.full((3, 30, 20), value, dtype=torch.uint8) for value in (0, 90, 250)]
    classifier = ColorClassifier(str(small_clip))
    found = classifier(crops, "car")
    rows = []
    for color in COLORS:
        prompts = [f"a photo of a {color} car", f"a photo of a {color}-colored car", f"a photo of a {color} object"]
        texts = classifier.encoder.texts(prompts)
        mean = (texts / texts.norm(dim=1, keepdim=True)).mean(dim=0)
        rows.append(mean / mean.norm())
    similarity = classifier.encoder.images(crops) @ torch.stack(rows).T
    best = similarity.topk(2, dim=1).values
    assert (best[:, 0] - best[:, 1]).min() > 1e-6  # no tie that another version of torch would break otherwise
    assert found == [COLORS[index] for index in similarity.argmax(dim=1).tolist()]
    assert classifier([], "car") == []


def test_class_names_are_the_benchmarks(sample_data: Path) -> None:
    names = (sample_data / "benchmarks" / "geneval" / "object_names.txt").read_text().split("\n")
    assert tuple(name for name in names if name) == CLASSES
