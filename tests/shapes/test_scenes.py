"""Scenes are pure functions of their index, lie inside the image, and render to what they say."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from t2ikit.shapes.geometry import SHAPES, TEXTURES, class_id, class_name, inside, local, marked, moments
from t2ikit.shapes.palette import BACKGROUNDS, COLORS, MARKS
from t2ikit.shapes.scenes import COLORS_OF, DIFFICULTIES, RELATIONS, SHAPES_OF, Scene, held_out, render, scenes


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_scene_depends_on_its_index_alone(difficulty: str) -> None:
    block = scenes(3, "train", 10, 8, difficulty)
    assert block == [scenes(3, "train", 10 + i, 1, difficulty)[0] for i in range(8)]
    assert block != scenes(4, "train", 10, 8, difficulty)
    for scene in block:
        np.testing.assert_array_equal(render(scene, 20), render(scene, 20))


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_validation_split_is_held_out(difficulty: str) -> None:
    train, val = ({render(s, 16).tobytes() for s in scenes(0, split, 0, 150, difficulty)} for split in ("train", "val"))
    assert len(train) == len(val) == 150 and not train & val


def test_simple_scenes_hold_one_plain_object() -> None:
    block = scenes(0, "train", 0, 600, "simple")
    assert all(len(scene.objects) == scene.count == 1 and scene.background.kind == "plain" for scene in block)
    assert {scene.main.shape for scene in block} == set(SHAPES_OF["simple"]) and len(SHAPES_OF["simple"]) == 6
    assert {scene.main.color for scene in block} == set(COLORS_OF["simple"]) and len(COLORS_OF["simple"]) == 6
    assert {scene.main.texture for scene in block} == {"plain"}
    assert {scene.background.color for scene in block} == set(BACKGROUNDS)


def test_imagenet_scenes_hold_out_pairs() -> None:
    block = scenes(0, "train", 0, 6000, "imagenet")
    two = [scene for scene in block if scene.secondary]
    assert all(scene.count == 1 and len(scene.objects) <= 2 for scene in block)
    assert 0.455 < len(two) / len(block) < 0.5  # a minority
    assert all(scene.main.color != scene.secondary[0].color for scene in two)
    shown = set()
    for scene in two:
        other = scene.secondary[0]
        dx, dy = other.x - scene.main.x, other.y - scene.main.y
        assert max(abs(dx), abs(dy)) > 2 * min(abs(dx), abs(dy))  # the relation is plain
        across = abs(dx) > abs(dy)
        relation = RELATIONS[int(dx > 0)] if across else RELATIONS[2 + int(dy > 0)]
        shown.add((scene.main.shape, other.shape, relation))
    shapes = SHAPES_OF["imagenet"]
    every = {(a, b, relation) for a, b in itertools.permutations(shapes, 2) for relation in RELATIONS}
    assert shown == {(a, b, relation) for a, b, relation in every if not held_out(a, b)}
    assert all(sum(held_out(a, b) and held_out(b, a) for b in shapes if b != a) == 1 for a in shapes)


def test_full_scenes_hold_what_the_class_does_not_tell() -> None:
    block = scenes(0, "train", 0, 2000, "full")
    assert {scene.class_id for scene in block} == set(range(len(SHAPES) * len(TEXTURES)))
    assert {scene.count for scene in block} == {1, 2, 3, 4}
    assert {len(scene.secondary) for scene in block} == {0, 1, 2}
    assert {scene.background.kind for scene in block} == {"plain", "gradient", "noisy"}
    assert {one.color for scene in block for one in scene.objects} == set(COLORS)
    for scene in block:
        assert len({(one.class_name, one.color) for one in scene.objects[: scene.count]}) == 1
        assert all(one.shape != scene.main.shape and one.color != scene.main.color for one in scene.secondary)
    counts = Counter(scene.main.color for scene in block if scene.main.shape == "circle")
    assert len(counts) == len(COLORS)  # colour and class are independent


def test_objects_lie_inside_and_apart() -> None:
    for difficulty in DIFFICULTIES:
        for scene in scenes(1, "train", 0, 500, difficulty):
            for i, one in enumerate(scene.objects):
                half = one.diameter / 2
                assert half < one.x < 1 - half and half < one.y < 1 - half
                for other in scene.objects[:i]:
                    reach = half + other.diameter / 2
                    assert abs(one.x - other.x) > reach or abs(one.y - other.y) > reach


def test_class_names_and_numbers_are_one_to_one() -> None:
    pairs = [(class_id(shape, texture), class_name(shape, texture)) for texture in TEXTURES for shape in SHAPES]
    assert [number for number, _ in pairs] == list(range(40))
    assert len({name for _, name in pairs}) == 40
    assert class_name("star", "plain") == "star" and class_name("star", "dotted") == "dotted star"


def test_colors_are_far_from_each_other_and_from_backgrounds() -> None:
    colors = np.array(list(COLORS.values()), dtype=float)
    apart = np.linalg.norm(colors[:, None] - colors[None], axis=2) + 999 * np.eye(len(colors))
    behind = np.array(list(BACKGROUNDS.values()), dtype=float)
    assert apart.min() > 80 and np.linalg.norm(colors[:, None] - behind[None], axis=2).min() > 75
    assert len({frozenset(pair) for pair in MARKS.items()}) == len(COLORS)


def plain_scene(shape: str) -> Scene:
    scene = scenes(0, "train", 0, 1, "simple")[0]
    main = replace(scene.main, shape=shape, color="red", x=0.5, y=0.5, diameter=0.8, angle=0.0, tint=(0.0, 0.0, 0.0))
    return replace(scene, objects=(main,))


@pytest.mark.parametrize("shape", SHAPES)
def test_rendered_area_and_centroid_are_those_of_the_outline(shape: str) -> None:
    size = 64
    scene = plain_scene(shape)
    behind = np.array(BACKGROUNDS[scene.background.color]) + scene.background.shade
    line = np.array(COLORS["red"]) - behind
    covered = ((render(scene, size).transpose(1, 2, 0) - behind) @ line) / (line @ line)
    radius, own = 0.4 * size, moments(shape)
    assert covered.sum() == pytest.approx(own.area * radius**2, rel=0.01)
    x = covered.sum(axis=0) @ (np.arange(size) + 0.5) / covered.sum()
    y = covered.sum(axis=1) @ (np.arange(size) + 0.5) / covered.sum()
    assert (x - size / 2, y - size / 2) == pytest.approx((own.u * radius, own.v * radius), abs=0.1)


def test_moments_against_closed_forms() -> None:
    assert moments("circle").area == pytest.approx(np.pi, rel=2e-3)
    assert moments("square").area == pytest.approx(1.76**2, rel=5e-3)
    assert moments("ring").area == pytest.approx(np.pi * 0.75, rel=5e-3)
    assert moments("diamond").area == pytest.approx(2 * 0.68 * 1.05, rel=5e-3)
    assert moments("triangle").area == pytest.approx(1.85, rel=5e-3)
    assert moments("triangle").v == pytest.approx(-1 + 1.85 * 2 / 3, abs=5e-3)


def test_geometry() -> None:
    u, v = local(np.array([0.0]), np.array([2.0]), np.pi / 2, 2.0)
    assert (u[0], v[0]) == pytest.approx((1.0, 0.0))  # clockwise: what lies below is the turned object's right
    side = np.linspace(-1, 1, 101)
    u, v = np.meshgrid(side, side)
    assert not marked("plain", 0, u, v).any()
    for texture in TEXTURES[1:]:
        assert 0.2 < marked(texture, 0, u, v).mean() < 0.6
        assert (marked(texture, 0, u, v) != marked(texture, 1, u, v)).any()
    assert not inside("ring", np.zeros(1), np.zeros(1))[0] and inside("circle", np.zeros(1), np.zeros(1))[0]


def test_any_size_from_sixteen_up() -> None:
    scene = next(one for one in scenes(0, "val", 0, 9, "full") if one.background.kind == "gradient")
    for size in (16, 17, 40, 100):
        image = render(scene, size)
        assert image.shape == (3, size, size) and image.dtype == np.uint8 and image.flags["C_CONTIGUOUS"]
    small, large = render(scene, 16).astype(float), render(scene, 64).astype(float)
    averaged = large.reshape(3, 16, 4, 16, 4).mean(axis=(2, 4))
    assert np.abs(small - averaged).mean() < 3


def test_bad_requests_name_the_option() -> None:
    scene = scenes(0, "val", 0, 1, "simple")[0]
    with pytest.raises(ValueError, match=r"data\.size"):
        render(scene, 15)
    with pytest.raises(ValueError, match=r"data\.difficulty"):
        scenes(0, "val", 0, 1, "hard")
    with pytest.raises(ValueError, match="split"):
        scenes(0, "test", 0, 1, "simple")
