"""The exact detector: right on real renderings, silent on noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t2ikit.metrics.base import Samples
from t2ikit.metrics.geneval.metric import GenEval
from t2ikit.metrics.geneval.rules import judge
from t2ikit.shapes.detector import LargestColorShare, ShapesDetector, largest_color
from t2ikit.shapes.scenes import Scene, SceneObject, render, scenes
from t2ikit.shapes.segments import background, components

DETECTOR = ShapesDetector()


def share_right(block: list[Scene], size: int) -> tuple[float, int, int]:
    """Share of the objects found with their class, colour and place; objects; detections that belong to none."""
    right = objects = extra = 0
    for scene in block:
        found = DETECTOR(torch.from_numpy(render(scene, size)))
        extra += max(len(found) - len(scene.objects), 0)
        objects += len(scene.objects)
        right += sum(any(_same(one, detection, size) for detection in found) for one in scene.objects)
    return right / objects, objects, extra


def _same(one: SceneObject, found: dict, size: int) -> bool:  # type: ignore[type-arg]
    x0, y0, x1, y1 = (side / size for side in found["box"])
    near = abs((x0 + x1) / 2 - one.x) < 0.12 and abs((y0 + y1) / 2 - one.y) < 0.12
    return near and (found["class"], found["color"]) == (one.class_name, one.color) and found["score"] > 0.3


@pytest.mark.parametrize(
    ("size", "difficulty", "count"),
    [
        (16, "simple", 200),
        (32, "simple", 150),
        (32, "full", 200),
        (48, "full", 50),
        (64, "full", 50),
        (130, "full", 15),
    ],
)
def test_objects_are_found_with_class_and_color(size: int, difficulty: str, count: int) -> None:
    share, objects, extra = share_right(scenes(11, "val", 0, count, difficulty), size)
    assert share >= 0.99 and extra <= 0.01 * objects


def test_single_full_objects_at_sixteen_pixels() -> None:
    single = [scene for scene in scenes(12, "train", 0, 1100, "full") if len(scene.objects) == 1]
    assert len(single) > 200
    share, objects, extra = share_right(single, 16)
    assert share >= 0.99 and extra <= 0.01 * objects


@pytest.mark.parametrize("size", [16, 32, 64])
def test_noise_holds_no_confident_object(size: int) -> None:
    draws = np.random.default_rng(0)
    for _ in range(20):
        normal = draws.normal(size=(3, size, size))
        for values in (127 + 127 * normal, 127 + 40 * normal, 127 + 8 * normal, 255.0 * (normal > 0)):
            image = np.clip(values, 0, 255).astype(np.uint8)
            assert not any(one["score"] > 0.3 for one in DETECTOR(image))
            assert largest_color(image) is None


def test_blur_and_mild_noise_keep_color_and_class() -> None:
    block, right, colors = scenes(13, "val", 0, 60, "simple"), 0, 0
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).expand(3, 1, 3, 3) / 16
    for number, scene in enumerate(block):
        image = torch.from_numpy(render(scene, 32)).float()[None]
        padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")
        image = torch.nn.functional.conv2d(padded, kernel, groups=3)
        image = image + 8 * torch.randn(image.shape, generator=torch.Generator().manual_seed(number))
        degraded = image.clamp(0, 255).to(torch.uint8)[0]
        found = DETECTOR(degraded)
        right += bool(found) and found[0]["class"] == scene.main.class_name
        colors += largest_color(degraded) == scene.main.color
    assert right >= 57 and colors >= 57


def test_half_an_object_is_less_certain_than_a_whole_one() -> None:
    scene = next(one for one in scenes(0, "val", 0, 50, "simple") if one.main.shape == "circle")
    image = render(scene, 32)
    whole = DETECTOR(image)[0]["score"]
    x0, _, x1, _ = DETECTOR(image)[0]["box"]
    image[:, :, int((x0 + x1) / 2) :] = image[:, :1, :1]
    cut = DETECTOR(image)
    assert whole > 0.9 and (not cut or cut[0]["class"] != "circle" or cut[0]["score"] < 0.9)


def test_real_renderings_pass_the_tasks_that_they_fulfil() -> None:
    passed = asked = 0
    for scene in scenes(14, "val", 0, 70, "full"):
        found = DETECTOR(render(scene, 48))
        name, color = scene.main.class_name, scene.main.color
        clause = {"class": name, "count": scene.count}
        lines = [
            {"tag": "counting", "include": [clause], "exclude": [{"class": name, "count": scene.count + 1}]},
            {"tag": "colors", "include": [{**clause, "color": color}]},
        ]
        for other in scene.secondary:
            both = [{"class": name, "count": 1}, {"class": other.class_name, "count": 1, "color": other.color}]
            lines.append({"tag": "color_attr", "include": both})
        passed += sum(judge(line, found)[0] for line in lines)
        asked += len(lines)
    assert passed / asked >= 0.97


def test_geneval_runs_on_it() -> None:
    scene = scenes(0, "val", 0, 1, "simple")[0]
    include = [{"class": scene.main.class_name, "count": 1, "color": scene.main.color}]
    samples = Samples(
        torch.from_numpy(render(scene, 32))[None], ["p"], [{"tag": "colors", "include": include, "prompt": "p"}]
    )
    metric = GenEval(DETECTOR)
    assert metric.compute(samples).values["colors"] == 1.0
    assert metric.fingerprint()["features"] == "shapes-detector-1"


def test_largest_color_share() -> None:
    block = scenes(0, "val", 0, 8, "simple")
    images = torch.stack([torch.from_numpy(render(scene, 16)) for scene in block])
    prompts = [f"A {scene.main.color} thing." for scene in block]
    metadata = [{"color": scene.main.color} for scene in block]
    metric = LargestColorShare()
    assert metric.compute(Samples(images, prompts, metadata)).values == {"largest_color_share": 1.0}
    clauses = [{"tag": "colors", "include": [{"class": "x", "count": 1, "color": one["color"]}]} for one in metadata]
    assert metric.compute(Samples(images, prompts, clauses)).values == {"largest_color_share": 1.0}
    images[:4] = torch.randint(0, 256, images[:4].shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert metric.compute(Samples(images, prompts, metadata)).values == {"largest_color_share": 0.5}
    with pytest.raises(ValueError, match=r"data\.captions=long"):
        metric.compute(Samples(images, ["An image of a circle"] * 8, metadata))


def test_only_pixels_are_taken() -> None:
    with pytest.raises(ValueError, match="uint8"):
        DETECTOR(torch.zeros(3, 16, 16))


def test_components_touch_at_corners() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]], dtype=bool)
    parts = components(mask)
    assert sorted(int(part.sum()) for part in parts) == [1, 2, 2, 2]
    np.testing.assert_array_equal(sum(part.astype(int) for part in parts), mask.astype(int))
    spiral = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)
    assert len(components(spiral)) == 1


def test_background_is_the_gradient_behind_the_object() -> None:
    y, x = np.mgrid[:24, :24] / 24
    gradient = np.stack([100 + 60 * x, 120 + 30 * y, 140 - 40 * x], axis=2)
    image = gradient.copy()
    image[8:18, 6:16] = (215, 35, 40)
    fitted = background(image)
    assert fitted is not None and np.abs(fitted - gradient).max() < 1
