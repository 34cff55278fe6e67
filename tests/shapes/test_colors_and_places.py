"""Colours, numbers and places are judged, outlines are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from t2ikit.metrics.base import Samples
from t2ikit.shapes import ColorsAndPlaces
from t2ikit.shapes.extension import extended_prompt, extended_scene
from t2ikit.shapes.prompts import geneval_prompts
from t2ikit.shapes.scenes import SHAPES_OF, Scene, render

TASKS = ("single_object", "two_object", "colors", "position", "color_attr")


def scores(scenes: list[Scene], prompts: list[str], lines: list[dict]) -> dict[str, float]:
    images = torch.from_numpy(np.stack([render(scene, 48) for scene in scenes]))
    samples = Samples(images, prompts, lines)
    metric = ColorsAndPlaces()
    metric.check(samples)
    return dict(metric.score(samples, metric.observe(samples.batch(0, len(images)))).values)


def test_any_outline_in_the_right_colour_and_place() -> None:
    lines = [line for line in geneval_prompts("imagenet", 6) if line["tag"] != "counting"]
    prompts = [extended_prompt(line, "imagenet", 0, index) for index, line in enumerate(lines)]
    right = [extended_scene(line, "imagenet", 0, index) for index, line in enumerate(lines)]
    others = SHAPES_OF["imagenet"]
    shapes = [
        replace(
            scene,
            objects=tuple(replace(one, shape=others[(others.index(one.shape) + 1) % 4]) for one in scene.objects),
        )
        for scene in right
    ]
    for scenes in (right, shapes):
        got = scores(scenes, prompts, lines)
        assert set(got) == {f"colors_and_places/{name}" for name in (*TASKS, "overall")}
        assert set(got.values()) == {1.0}


def test_wrong_colours_places_and_numbers_are_seen() -> None:
    lines = [line for line in geneval_prompts("imagenet", 6) if line["tag"] in ("two_object", "position", "color_attr")]
    indices = range(len(lines))
    prompts = [extended_prompt(line, "imagenet", 0, index) for index, line in enumerate(lines)]
    right = [extended_scene(line, "imagenet", 0, index) for index, line in enumerate(lines)]
    alone = [replace(scene, objects=scene.objects[:1]) for scene in right]
    assert set(scores(alone, prompts, lines).values()) == {0.0}
    swapped = []
    for index in indices:
        first, second = right[index].objects
        swapped.append(
            replace(
                right[index], objects=(replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y))
            )
        )
    got = scores(swapped, prompts, lines)
    assert got["colors_and_places/position"] == 0 and got["colors_and_places/two_object"] == 1
    pink = [replace(scene, objects=tuple(replace(one, color="pink") for one in scene.objects)) for scene in right]
    assert set(scores(pink, prompts, lines).values()) == {0.0}


def test_original_prompts_ask_for_the_colours_that_they_name() -> None:
    lines = [line for line in geneval_prompts("imagenet", 6) if line["tag"] != "counting"]
    prompts = [line["prompt"] for line in lines]
    right = [extended_scene(line, "imagenet", 0, index) for index, line in enumerate(lines)]
    pink = [replace(scene, objects=tuple(replace(one, color="pink") for one in scene.objects)) for scene in right]
    assert set(scores(right, prompts, lines).values()) == {1.0}
    got = scores(pink, prompts, lines)
    asked = {"single_object": 1.0, "two_object": 1.0, "colors": 0.0, "position": 1.0, "color_attr": 0.0}
    assert {name: got[f"colors_and_places/{name}"] for name in asked} == asked


def test_a_number_is_exact() -> None:
    lines = [line for line in geneval_prompts("full", 4) if line["tag"] == "counting"]
    right = [extended_scene(line, "full", 0, index) for index, line in enumerate(lines)]
    prompts = [extended_prompt(line, "full", 0, index) for index, line in enumerate(lines)]
    fewer = [replace(scene, objects=scene.objects[:-1], count=scene.count - 1) for scene in right]
    assert scores(right, prompts, lines)["colors_and_places/counting"] == 1
    assert scores(fewer, prompts, lines)["colors_and_places/counting"] == 0


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"least_purity is in \[0, 1\]"):
        ColorsAndPlaces(1.5)
    with pytest.raises(ValueError, match="ShapesGenEvalPrompts"):
        ColorsAndPlaces().check(Samples(torch.zeros(0, 3, 16, 16, dtype=torch.uint8), [], []))
