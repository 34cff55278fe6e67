"""Captions say what the scene holds, in many wordings; prompts are in GenEval's format."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from t2ikit.metrics.geneval.rules import TASKS, judge
from t2ikit.records.manifest import Manifest
from t2ikit.shapes.captions import aio_caption, cutmix_caption, long_caption, plural, visible, vocabulary
from t2ikit.shapes.prompts import ShapesGenEvalPrompts, geneval_prompts, source_name
from t2ikit.shapes.scenes import DIFFICULTIES, Scene, scenes

LEAST_OF_IMAGENET = {"two_object": 4, "position": 16, "colors": 24}
"""Prompts that there are at difficulty "imagenet", which asks for two pairs of its four shapes."""


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_long_captions_name_the_facts(difficulty: str) -> None:
    for scene in scenes(0, "train", 0, 300, difficulty):
        text, words = long_caption(scene), words_of(long_caption(scene))
        main = scene.main.class_name if scene.count == 1 else plural(scene.main.class_name)
        assert f"{scene.main.color} {main}" in text
        if scene.count > 1:
            assert ("no", "one", "two", "three", "four")[scene.count] in words
        for other in scene.secondary:
            assert f"{other.color} {other.class_name}" in text
        assert scene.background.color in words and "background" in words
        if scene.background.kind == "gradient":
            assert scene.background.other in words
        assert text[0].isupper() and text.endswith(".") and "  " not in text
        assert not re.search(r"\ba [aeiou]", text.lower()) and not re.search(r"\ban [^aeiou]", text.lower())


def test_wording_varies_and_is_drawn_with_the_scene() -> None:
    scene = scenes(0, "train", 0, 1, "full")[0]
    others = [replace(scene, wording=one.wording) for one in scenes(0, "train", 0, 200, "full")]
    assert len({long_caption(one) for one in others}) > 100
    assert long_caption(scene) == long_caption(scenes(0, "train", 0, 1, "full")[0])
    lengths = [len(words_of(long_caption(one))) for one in scenes(0, "train", 0, 200, "full")]
    assert 12 < sum(lengths) / len(lengths) < 35


def test_relations_are_true() -> None:
    found = 0
    for scene in scenes(0, "train", 0, 600, "full"):
        for other in scene.secondary:
            pattern = rf"{other.shape}(?: with \w+ \w+)? is (?:to the )?(left|right|above|below)"
            match = re.search(pattern, long_caption(scene), flags=re.IGNORECASE)
            if match and len(scene.secondary) == 1:
                found += 1
                dx, dy = other.x - scene.main.x, other.y - scene.main.y
                assert {"left": dx < 0, "right": dx > 0, "above": dy < 0, "below": dy > 0}[match[1]]
    assert found > 50


def test_aio_captions_name_the_class_alone() -> None:
    assert aio_caption(["striped circle"]) == "An image of a striped circle"
    assert aio_caption(["arrow", "ring"]) == "An image of an arrow and a ring"


def one_object(index: int, x: float, y: float) -> Scene:
    scene = scenes(0, "train", index, 1, "simple")[0]
    return replace(scene, objects=(replace(scene.main, x=x, y=y, diameter=0.3),))


def test_cutmix_captions_name_what_is_seen_of_both() -> None:
    base, other = one_object(1, 0.25, 0.25), one_object(6, 0.75, 0.5)
    names = [f"{scene.main.color} {scene.main.shape}" for scene in (base, other)]
    corner = cutmix_caption(base, other, (8, 8, 16, 16), 16, "cm4")
    assert all(name in corner for name in names) and "In the lower right" in corner
    hidden = cutmix_caption(base, other, (0, 0, 8, 8), 16, "cm4")
    assert names[0] not in hidden and names[1] in hidden and base.background.color in hidden
    half = cutmix_caption(base, other, (8, 0, 16, 16), 16, "cm2")
    assert all(name in half for name in names) and "In the right half" in half
    lower = cutmix_caption(base, one_object(6, 0.75, 0.2), (0, 8, 16, 16), 16, "cm2")
    assert names[0] in lower and names[1] not in lower
    assert visible(base, (0, 0, 1, 1), inside=False).objects == ()


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_vocabulary_covers_everything(difficulty: str) -> None:
    known = {word for text in vocabulary(difficulty) for word in words_of(text)}
    block = scenes(0, "train", 0, 400, difficulty) + scenes(5, "val", 0, 100, difficulty)
    texts = [long_caption(scene) for scene in block] + [aio_caption([scene.main.class_name]) for scene in block]
    for base, other in zip(block, block[1:], strict=False):
        texts.append(cutmix_caption(base, other, (0, 8, 16, 16), 16, "cm2"))
        texts.append(cutmix_caption(base, other, (0, 3, 5, 8), 16, "cm9"))
    texts += [line["prompt"] for line in geneval_prompts(difficulty, 60)]
    assert {word for text in texts for word in words_of(text)} <= known
    assert {",", "."} & set("".join(vocabulary(difficulty))) == {",", "."}


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_prompts_are_in_the_official_format(difficulty: str) -> None:
    lines = geneval_prompts(difficulty, 40)
    assert [line["tag"] for line in lines] == [task for task in TASKS for _ in range(40)]
    assert lines == geneval_prompts(difficulty, 40) and lines != geneval_prompts(difficulty, 40, seed=1)
    for line in lines:
        assert line["prompt"].startswith("a photo of ")
        assert ("exclude" in line) == (line["tag"] == "counting")
        assert not judge(line, [])[0]
        assert judge(line, _ideal(line)) == (True, "")
    for task in TASKS[1:2] + TASKS[3:]:
        own = [line["prompt"] for line in lines if line["tag"] == task]
        assert len(set(own)) >= (LEAST_OF_IMAGENET.get(task, 30) if difficulty == "imagenet" else 30)


def _ideal(line: dict) -> list[dict]:  # type: ignore[type-arg]
    """Detections that fulfil a prompt."""
    places = {"left of": (10, 100), "right of": (190, 100), "above": (100, 10), "below": (100, 190)}
    found = []
    for number, clause in enumerate(line["include"]):
        x, y = places[clause["position"][0]] if "position" in clause else (100, 100)
        for i in range(clause["count"]):
            box = [x - 5, y - 5 + 20 * i + number, x + 5, y + 5 + 20 * i + number]
            color = clause.get("color", "red")
            found.append({"class": clause["class"], "box": box, "score": 0.99, "color": color})
    return found


def test_prompt_source_takes_the_difficulty_of_the_data() -> None:
    class Data:
        manifest = Manifest(kind="pixels", image_shape=(3, 16, 16), source=source_name("full"))

    prompts = ShapesGenEvalPrompts(per_task=3).with_data(Data()).prompts()  # type: ignore[arg-type]
    assert [prompt.metadata for prompt in prompts] == geneval_prompts("full", 3)
    assert all(prompt.text == prompt.metadata["prompt"] for prompt in prompts)
    Data.manifest = Manifest(kind="pixels", image_shape=(3, 16, 16), source="photos")
    with pytest.raises(ValueError, match="set difficulty"):
        ShapesGenEvalPrompts(per_task=3).with_data(Data())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="set difficulty"):
        ShapesGenEvalPrompts(per_task=3).prompts()
    assert len(ShapesGenEvalPrompts(per_task=1, difficulty="simple").prompts()) == 6
    with pytest.raises(ValueError, match="per_task"):
        ShapesGenEvalPrompts(per_task=0)
