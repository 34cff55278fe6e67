"""What captioners share: prompts word for word, tidy answers, seeds, and the second attempt at an empty answer."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t2ikit.prepare.captions.captioner import CUTMIX_PROMPT, PROMPT, Captioner, Decoding, Prompts, tidy

IMAGE = np.zeros((3, 4, 4), np.uint8)
MIX = {"key": "train_cm4/a", "setting": "cm4", "rectangle": [2, 0, 4, 2]}


def test_the_prompts_are_those_of_the_papers(sample_data: Path) -> None:
    papers = sorted((sample_data.parent / "seeds").glob("*.txt"))
    texts = [" ".join(path.read_text(errors="replace").split()) for path in papers]
    texts = [text for text in texts if "llama3-llava-next-8b-hf" in text]
    if not texts:
        pytest.skip("no texts of the papers beside the sample data")
    for text in texts:
        assert re.search(rf"with the prompt \W*{re.escape(PROMPT)}\W*\. LLaVA", text)
        assert len(re.findall(re.escape(CUTMIX_PROMPT), text)) == 2  # for CM 1/2, and for the smaller ones


def test_cutmix_images_have_a_prompt_of_their_own() -> None:
    assert PROMPT == "Describe this image"
    assert CUTMIX_PROMPT.startswith("Describe this image. Consider all the objects in the picture. Describe them,")
    assert CUTMIX_PROMPT.endswith("as a composite of images. The image is a single scene image")
    assert Prompts().of({"key": "a"}) == PROMPT and Prompts().of(MIX) == CUTMIX_PROMPT
    assert Prompts("a", "b").of(MIX) == "b"
    with pytest.raises(ValueError, match="--cutmix-prompt is empty"):
        Prompts(cutmix=" \n")


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("A dog.", "A dog."),
        ("  A dog\n\nsits.\tA cat  ", "A dog sits."),
        ("A dog. It is about 3.5 met", "A dog."),
        ("A sign says “Stop!” and 'go.' Behind it", "A sign says “Stop!” and 'go.'"),
        ("Is it a dog? Yes", "Is it a dog?"),
        ("A dog on grass", "A dog on grass."),
        ("A dog, ", "A dog."),
        ("一只狗。天空", "一只狗。"),
        ("", ""),
        (" \n ", ""),
        ("...", ""),
        ("7", "7."),
    ],
)
def test_tidy(answer: str, caption: str) -> None:
    assert tidy(answer) == caption and tidy(caption) == caption


def test_every_image_and_attempt_has_a_seed_of_its_own() -> None:
    seeds = {Decoding(seed=s).seed_of({"key": k}, attempt) for s in (0, 1) for k in "ab" for attempt in (0, 1)}
    assert len(seeds) == 8 and all(0 <= seed < 2**31 for seed in seeds)
    assert Decoding().of_attempt(0).temperature == 0 and Decoding().of_attempt(1).temperature == 1
    assert Decoding(temperature=0.5).of_attempt(1).temperature == 0.5
    for option, values in {"max-new-tokens": {"max_new_tokens": 0}, "top-p": {"top_p": 0.0}}.items():
        with pytest.raises(ValueError, match=f"--{option} must"):
            Decoding(**values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="--temperature must be 0"):
        Decoding(temperature=-1.0)


class Scripted(Captioner):
    """Answers from a list for each key, one an attempt."""

    kind = "scripted"
    model = "none"

    def __init__(self, script: dict[str, list[str]], **options: Any) -> None:
        super().__init__(options.pop("prompts", Prompts()), options.pop("decoding", Decoding()))
        self.script = script
        self.asked: list[tuple[str, int]] = []

    def setup(self, device: torch.device) -> None: ...

    def answers(self, images: list[np.ndarray], metadata: list[dict[str, Any]], attempt: int = 0) -> list[str]:
        self.asked += [(own["key"], attempt) for own in metadata]
        return [self.script[own["key"]][attempt] for own in metadata]


def test_an_empty_answer_is_asked_for_once_more() -> None:
    captioner = Scripted({"a": ["A dog."], "b": ["", "A cat. And"], "c": [" ", "..."]})
    metadata = [{"key": key} for key in "abc"]
    assert captioner.caption([IMAGE] * 3, metadata) == ["A dog.", "A cat.", ""]
    assert captioner.asked == [("a", 0), ("b", 0), ("c", 0), ("b", 1), ("c", 1)]


def test_identity_follows_all_that_decides() -> None:
    captioners = [
        Scripted({}),
        Scripted({}, prompts=Prompts("What is this?")),
        Scripted({}, prompts=Prompts(cutmix="What is this?")),
        Scripted({}, decoding=Decoding(max_new_tokens=100)),
        Scripted({}, decoding=Decoding(temperature=0.2)),
        Scripted({}, decoding=Decoding(seed=1)),
    ]
    assert len({captioner.identity for captioner in captioners}) == len(captioners)
    assert Scripted({"a": []}).identity == captioners[0].identity
