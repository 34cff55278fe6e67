"""The small network that chooses among images of shapes: what is asked, and that it learns it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from t2ikit.metrics.base import Samples
from t2ikit.shapes import AskedProbability
from t2ikit.shapes.classifier import SIZE, asked_object
from t2ikit.shapes.scenes import render, scenes


@pytest.mark.parametrize(
    ("prompt", "metadata", "asked"),
    [
        ("a large red circle on the left", {}, ("circle", "red")),
        ("A star, on grey.", {}, ("star", None)),
        ("a red circle and a blue square", {}, (None, None)),
        ("a redish thing", {}, (None, None)),
        ("red", {"include": [{"class": "star", "count": 1, "color": "green"}]}, ("star", "green")),
        ("red", {"include": [{"class": "star", "count": 2}]}, (None, None)),
        ("red", {"include": [{"class": "star", "count": 1}, {"class": "ring", "count": 1}]}, (None, None)),
        ("red", {"class_name": "ring", "color": "blue"}, ("ring", "blue")),
        ("red", {"class_name": "striped ring", "color": "pink"}, (None, None)),
    ],
)
def test_what_is_asked(prompt: str, metadata: dict[str, Any], asked: tuple[str | None, str | None]) -> None:
    assert asked_object(prompt, metadata) == asked


def test_it_learns_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path))
    found = scenes(0, "val", 0, 48, "simple")
    images = torch.stack([torch.from_numpy(render(scene, 2 * SIZE)) for scene in found])
    right = [f"a {scene.main.color} {scene.main.shape}" for scene in found]
    before = torch.random.get_rng_state()
    with torch.inference_mode():  # as in a snapshot
        good = AskedProbability(1024, 3).compute(Samples(images, right, [{}] * 48))
    assert torch.equal(torch.random.get_rng_state(), before)
    shifted = AskedProbability(1024, 3)
    wrong = shifted.compute(Samples(images, right[1:] + right[:1], [{}] * 48))
    assert good.values["asked_probability"] > 0.5 > 0.3 > wrong.values["asked_probability"]
    assert 0 < good.errors["asked_probability"] < 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["shapes-classifier-1-1024-3.pt"]
    again = AskedProbability(1024, 3)
    assert again.fingerprint() == shifted.fingerprint() and again.fingerprint()["features"] == "shapes-classifier-1"


def test_what_asks_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path))
    metric = AskedProbability(64, 1)
    image = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    with pytest.raises(ValueError, match="no prompt asks for one object"):
        metric.check(Samples(image, ["a dog", ""], [{}, {}]))
    some = Samples(image, ["a dog", "a star"], [{}, {}])
    assert metric.observe(some.batch(0, 2)).isnan().tolist() == [True, False]  # type: ignore[union-attr]
    nothing = metric.score(Samples(image[:1], ["a dog"], [{}]), torch.tensor([math.nan]))
    assert math.isnan(nothing.values["asked_probability"])
