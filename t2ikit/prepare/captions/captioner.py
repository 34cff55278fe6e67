"""Captioners: models that describe images. What every one of them has: prompts, decoding options, tidy answers.

Paper: "How far can we go with ImageNet for Text-to-Image generation?", v2 appendix D (v1 appendix B): raw images are
captioned with one prompt, CutMix images with another that keeps the model from describing two pictures.
The paper says nothing about decoding and about changes to the answers; the program that its authors released decodes
greedily, at most 200 tokens, and cuts an answer after its last full stop. So does this.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from t2ikit.files import check_text
from t2ikit.prepare.steps import sha256_of_json
from t2ikit.pretrained import EncoderReference

if TYPE_CHECKING:
    import torch

DEFAULT_CAPTIONER = "llava-hf/llama3-llava-next-8b-hf"
"""The paper's."""

PROMPT = "Describe this image"
"""The paper's prompt for plain images."""

CUTMIX_PROMPT = (
    "Describe this image. Consider all the objects in the picture. Describe them, describe their position and their "
    "relation. Do not consider the image as a composite of images. The image is a single scene image"
)
"""The paper's prompt for CutMix images of every setting."""

_SENTENCE_END = re.compile(r"""[.!?]["'”’»)\]]*(?=\s|$)|[。！？]""")


@dataclass(frozen=True)
class Prompts:
    """The questions to a captioner.

    Attributes:
        plain: for the images of train and val.
        cutmix: for the images of CutMix sets.
    """

    plain: str = PROMPT
    cutmix: str = CUTMIX_PROMPT

    def __post_init__(self) -> None:
        for option, prompt in (("--prompt", self.plain), ("--cutmix-prompt", self.cutmix)):
            if not prompt.strip():
                raise ValueError(f"{option} is empty: give a file with the question to ask about every image")

    def of(self, metadata: dict[str, Any]) -> str:
        """The prompt for the image with this metadata."""
        return self.cutmix if "rectangle" in metadata else self.plain


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    Attributes:
        max_new_tokens: longest answer, in the model's tokens.
        temperature: 0 is greedy: the likeliest token each time.
        top_p: with a temperature, tokens are sampled from the likeliest ones, up to this share of the probability.
        seed: with a temperature, decides the sampled tokens; every image has a seed of its own.
    """

    max_new_tokens: int = 200
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens must be at least 1; got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"--temperature must be 0 (greedy) or above; got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p must be above 0 and at most 1; got {self.top_p}")

    def of_attempt(self, attempt: int) -> Decoding:
        """For the second attempt at an image: never greedy, which would give the same answer again."""
        return replace(self, temperature=self.temperature or 1.0) if attempt else self

    def seed_of(self, metadata: dict[str, Any], attempt: int) -> int:
        """The seed of one image, in [0, 2**31)."""
        from t2ikit.rng import derived_seed  # loads torch, which `--help` of these options does without

        return derived_seed(self.seed, f"caption {metadata['key']}", attempt) >> 32


class Captioner(ABC):
    """Describes images.

    Attributes:
        kind: "llava" or "http".
        model: its name, as the user gave it.
        source: where it runs, if not here: the address of a server.
        prompts: the questions.
        decoding: how answers are decoded.
        reference: which weights it has; None where they cannot be known.
    """

    kind: str
    model: str
    source: str = ""
    reference: EncoderReference | None = None

    def __init__(self, prompts: Prompts, decoding: Decoding) -> None:
        self.prompts = prompts
        self.decoding = decoding

    @property
    def identity(self) -> str:
        """Hash of everything that decides the captions: weights (or the name of the model), prompts, decoding."""
        weights = self.reference.sha256 if self.reference else self.model
        return sha256_of_json([self.kind, weights, asdict(self.prompts), asdict(self.decoding), *self._details()])

    def _details(self) -> tuple[Any, ...]:
        """What else decides the captions."""
        return ()

    @abstractmethod
    def setup(self, device: torch.device) -> None:
        """Brings the model to the device, or checks that the server answers."""

    @abstractmethod
    def answers(self, images: list[np.ndarray], metadata: list[dict[str, Any]], attempt: int = 0) -> list[str]:
        """One answer per image, as the model gave it.

        Args:
            images: B images [3, S, S] uint8.
            metadata: of the images; "key", and for CutMix "setting" and "rectangle".
            attempt: 0, or 1 for images whose first answer was empty.
        """

    def caption(self, images: list[np.ndarray], metadata: list[dict[str, Any]]) -> list[str]:
        """One caption per image, "" where the model twice had nothing to say.

        Args:
            images: B images [3, S, S] uint8.
            metadata: of the images.
        """
        captions = [tidy(answer) for answer in self.answers(images, metadata)]
        empty = [index for index, caption in enumerate(captions) if not caption]
        if empty:
            again = self.answers([images[index] for index in empty], [metadata[index] for index in empty], 1)
            for index, answer in zip(empty, again, strict=True):
                captions[index] = tidy(answer)
        return captions


def tidy(answer: str) -> str:
    """A caption from an answer: white space becomes one space, and an unfinished last sentence is cut.

    As the authors' program does it, except that it joins words over a line break, takes every full stop for the end of
    a sentence ("3.5") and drops a closing quotation mark. An answer without an end gets a full stop; one without a
    letter or digit is empty, and so is one that no caption can be: of more than ``MOST_CHARACTERS``, or with half a
    character.

    Example:
        >>> tidy("A dog sits on\\n\\ngrass. Behind it, a fence of 3.5 met")
        'A dog sits on grass.'
    """
    text = " ".join(answer.split())
    try:
        check_text(text, "the answer")
    except ValueError:
        return ""
    if not any(character.isalnum() for character in text):
        return ""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else f"{text.rstrip(' ,;:-')}."
