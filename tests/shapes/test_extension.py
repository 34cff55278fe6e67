"""Extended prompts: the facts that were asked for stay, the others are filled in, in the words of the captions."""

from __future__ import annotations

import re

import pytest
import torch

from t2ikit.metrics.geneval.rules import judge
from t2ikit.shapes import ShapesDetector, ShapesGenEvalPrompts
from t2ikit.shapes.captions import NUMBERS, plural, vocabulary
from t2ikit.shapes.extension import extended_prompt, extended_scene
from t2ikit.shapes.prompts import geneval_prompts
from t2ikit.shapes.scenes import COLORS_OF, SHAPES_OF, render

LEVELS = pytest.mark.parametrize("difficulty", ["simple", "imagenet", "full"])


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


@LEVELS
def test_a_scene_of_the_caption_fulfils_the_prompt(difficulty: str) -> None:
    detector = ShapesDetector()
    for index, line in enumerate(geneval_prompts(difficulty, 12)):
        image = torch.from_numpy(render(extended_scene(line, difficulty, 0, index), 64))
        correct, reason = judge(line, detector(image))
        assert correct, f"{line['prompt']}: {reason}"


@LEVELS
def test_captions_name_what_was_asked_for_and_nothing_else(difficulty: str) -> None:
    known = {word for text in vocabulary(difficulty) for word in words(text)}
    for index, line in enumerate(geneval_prompts(difficulty, 24)):
        text = extended_prompt(line, difficulty, 0, index)
        said = words(text)
        assert set(said) <= known
        asked = [clause["class"] for clause in line["include"]]
        forms = {form: shape for shape in SHAPES_OF[difficulty] for form in (shape, plural(shape))}
        assert {forms[word] for word in said if word in forms} == {name.split()[-1] for name in asked}
        for clause in line["include"]:
            noun = clause["class"] if clause["count"] == 1 else plural(clause["class"])
            assert f"{clause.get('color', '')} {noun}".strip() in text.lower()
            if clause["count"] > 1:
                assert NUMBERS[clause["count"]] in said
            if "position" in clause:
                relation = clause["position"][0]
                target = asked[0].split()[-1]
                assert re.search(rf"is (to the )?{relation} (it|the {target})", text)
        assert sum(word in COLORS_OF[difficulty] for word in said) >= len(asked)
        assert "background" in said


def test_the_random_facts_follow_seed_and_index() -> None:
    line = geneval_prompts("full", 1)[0]
    texts = [extended_prompt(line, "full", seed, index) for seed in (0, 1) for index in (0, 1)]
    assert len(set(texts)) == 4 and texts[0] == extended_prompt(line, "full", 0, 0)


def test_the_option_changes_the_texts_alone() -> None:
    plain = ShapesGenEvalPrompts(4, "full").prompts()
    extended = ShapesGenEvalPrompts(4, "full", extended=True).prompts()
    assert [prompt.metadata for prompt in plain] == [prompt.metadata for prompt in extended]
    assert [prompt.text for prompt in plain] == [prompt.metadata["prompt"] for prompt in plain]
    assert all(len(long.text) > len(short.text) for long, short in zip(extended, plain, strict=True))


@pytest.mark.parametrize("extended", [False, True])
def test_some_tasks_have_the_same_prompts_as_among_all(extended: bool) -> None:
    every = ShapesGenEvalPrompts(3, "simple", extended=extended).prompts()
    some = ShapesGenEvalPrompts(3, "simple", extended=extended, tasks=["colors", "single_object"])
    assert some.prompts() == [prompt for prompt in every if prompt.metadata["tag"] in ("colors", "single_object")]
    for wrong in ([], ["colours"]):
        with pytest.raises(ValueError, match=r"tasks are some of single_object, .*; got \["):
            ShapesGenEvalPrompts(3, "simple", tasks=wrong)


@pytest.mark.parametrize("pairs", ["held_out", "seen"])
def test_prompts_of_two_objects_ask_for_pairs_of_one_kind(pairs: str) -> None:
    lines = [line for line in geneval_prompts("imagenet", 40, 0, pairs) if len(line["include"]) == 2]
    asked = {tuple(sorted(clause["class"] for clause in line["include"])) for line in lines}
    held = {("circle", "triangle"), ("cross", "square")}
    assert asked == held if pairs == "held_out" else len(asked) == 4 and not asked & held
    assert ShapesGenEvalPrompts(3, "imagenet", pairs=pairs).prompts()[3].metadata in lines
    with pytest.raises(ValueError, match="pairs is held_out or seen; got 'both'"):
        ShapesGenEvalPrompts(3, "imagenet", pairs="both")
