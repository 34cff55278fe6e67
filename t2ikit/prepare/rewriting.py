"""What an instruction model is asked to make of a prompt; see ``extend_prompts.py``, which does it."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MODEL = "meta-llama/Llama-3.1-8B-Instruct"
INSTRUCTION = (
    "Rewrite this prompt for an image generator as one long, concrete description of the picture, in three to five "
    "sentences: {prompt}\n"
    "Keep every object, number, colour and position of the prompt, and add no further objects of the same kinds. "
    "Describe materials, surroundings and light. Answer with the description only."
)


@dataclass(frozen=True)
class Rewriting:
    """How prompts are extended; greedy.

    Attributes:
        instruction: what the model is asked; ``{prompt}`` stands for the prompt.
        max_new_tokens: longest answer; its last sentence is dropped where it is unfinished.
    """

    instruction: str = INSTRUCTION
    max_new_tokens: int = 200

    def __post_init__(self) -> None:
        if "{prompt}" not in self.instruction:
            raise ValueError("--instruction needs a file whose text holds {prompt}, the place of the prompt")
        if self.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens must be at least 1; got {self.max_new_tokens}")
