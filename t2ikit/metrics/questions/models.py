"""Models of transformers that answer questions about images: BLIP, ViLT and chat models.

Shape legend::

    N  questions of one batch, each with its image    H, W  pixels    U  different images of the batch    L  tokens

Each takes images as its own processor does. Weights come from a local folder or the Hub by revision; their hash, with
that of tokenizer and processor, is part of every fingerprint.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from t2ikit.metrics.questions.answers import Choices, QuestionAnswerer
from t2ikit.pretrained import PretrainedFolder, find_pretrained, load_pretrained

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)
DTYPES = ("auto", "float32", "bfloat16", "float16")
SHORT_ANSWER = "{question}\nAnswer the question using a single word or phrase."
CHOOSE_ANSWER = "{question}\nAnswer with one of: {choices}."


def pictures(images: Tensor) -> list[Image.Image]:
    """PIL images of [N, 3, H, W] uint8."""
    return [Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()) for image in images]


@dataclass(eq=False)
class TransformersAnswerer(QuestionAnswerer):
    """A model of transformers with its processor, loaded at the first question.

    Attributes:
        model: repository or local folder.
        revision: commit, branch or tag of the repository.
        dtype: of the weights: "float32", "bfloat16", "float16", or "auto" for that of the file.
        batch_size: questions a pass.
        reading: how answers are read, see ``t2ikit.metrics.questions.answers.READINGS``.
    """

    model: str
    revision: str | None = None
    dtype: str = field(default="float32", kw_only=True)
    batch_size: int = field(default=32, kw_only=True)
    reading: str = field(default="as_is", kw_only=True)

    def __post_init__(self) -> None:
        super().__init__(self.batch_size, self.reading)
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}")
        self._found: PretrainedFolder | None = None
        self._loaded: tuple[Any, Any] | None = None

    @abstractmethod
    def _model_class(self) -> Any:
        """A class with ``from_pretrained``."""

    def _load(self) -> tuple[Any, Any]:
        """Model and processor."""
        if self._loaded is None:
            from transformers import AutoProcessor

            network, self._found = load_pretrained(
                self._model_class(), self.model, self.revision, "answerer.init_args.model", PROCESSOR_FILES,
                dtype=self.dtype,
            )  # fmt: skip
            try:
                processor = AutoProcessor.from_pretrained(self._found.folder, trust_remote_code=False)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise FileNotFoundError(
                    f"no processor in {self._found.folder} ({error}): give a model with its processor with "
                    "answerer.init_args.model"
                ) from error
            self._loaded = (network, processor)
        return self._loaded

    def identity(self) -> dict[str, Any]:
        """Model, hash of weights and processor, number format; the weights are not loaded for it."""
        if self._found is None:
            self._found = find_pretrained(self.model, self.revision, "answerer.init_args.model", PROCESSOR_FILES)
        reference = self._found.reference
        return {
            "features": f"{type(self).__name__}:{self.model}",
            "features_revision": reference.revision,
            "features_sha256": reference.sha256,
            "dtype": self.dtype,
        }


@dataclass(eq=False)
class BlipAnswerer(TransformersAnswerer):
    """BLIP fine-tuned for questions (Li et al. 2022): answers freely, in a word or two.

    Attributes:
        model: a ``BlipForQuestionAnswering``: repository or local folder.
        max_new_tokens: of an answer.
        num_beams: of the search; 1 is greedy.
    """

    model: str = "Salesforce/blip-vqa-capfilt-large"
    max_new_tokens: int = 10
    num_beams: int = 1

    def _model_class(self) -> Any:
        from transformers import BlipForQuestionAnswering

        return BlipForQuestionAnswering

    @torch.no_grad()
    def free_answers(self, images: Tensor, questions: Sequence[str], choices: Choices = None) -> list[str]:
        """Answers to one batch; an image that comes several times is encoded once."""
        network, processor = self._load()
        network = network.to(images.device)
        unique, rows_of = images.flatten(1).unique(dim=0, return_inverse=True)
        shown = processor.image_processor(pictures(unique.unflatten(1, images.shape[1:])), return_tensors="pt")
        pixels = shown["pixel_values"].to(images.device, network.dtype)
        seen = network.vision_model(pixel_values=pixels).last_hidden_state[rows_of]
        longest = network.config.text_config.max_position_embeddings
        rows = processor.tokenizer(list(questions), truncation=True, max_length=longest)["input_ids"]
        answers = [""] * len(rows)
        # BLIP's cross-attention in transformers looks at padding whatever the mask says, and an answer would depend on
        # the other questions of the batch: only questions of one length go together.
        for length in sorted({len(row) for row in rows}):
            group = [index for index, row in enumerate(rows) if len(row) == length]
            ids = torch.tensor([rows[index] for index in group], device=images.device)
            output = self._generate(network, ids, seen[group])
            written = processor.tokenizer.batch_decode(output, skip_special_tokens=True)
            for index, answer in zip(group, written, strict=True):
                answers[index] = answer.strip()
        return answers

    def _generate(self, network: Any, ids: Tensor, seen: Tensor) -> Tensor:
        """Tokens of the answers to questions [B, L] without padding about images whose states are [B, P, D]."""
        text = network.config.text_config
        states = network.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
        return network.text_decoder.generate(
            input_ids=torch.full((len(ids), 1), network.decoder_start_token_id, device=ids.device),
            eos_token_id=text.sep_token_id,
            pad_token_id=text.pad_token_id,
            encoder_hidden_states=states,
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            do_sample=False,
        )

    def identity(self) -> dict[str, Any]:
        """Model and generation."""
        return {**super().identity(), "max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}


@dataclass(eq=False)
class ViltAnswerer(TransformersAnswerer):
    """ViLT fine-tuned for questions (Kim et al. 2021): chooses one of the about 3,000 answers that it knows.

    Attributes:
        model: a ``ViltForQuestionAnswering``: repository or local folder. Its positions bound a question's length;
            longer ones are cut.
    """

    model: str = "dandelin/vilt-b32-finetuned-vqa"

    def _model_class(self) -> Any:
        from transformers import ViltForQuestionAnswering

        return ViltForQuestionAnswering

    @torch.no_grad()
    def free_answers(self, images: Tensor, questions: Sequence[str], choices: Choices = None) -> list[str]:
        """The likeliest known answer to each question of one batch."""
        network, processor = self._load()
        network = network.to(images.device)
        inputs = processor(
            images=pictures(images),
            text=list(questions),
            padding=True,
            truncation=True,
            max_length=network.config.max_position_embeddings,
            return_tensors="pt",
        ).to(images.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(network.dtype)
        return [network.config.id2label[int(index)] for index in network(**inputs).logits.argmax(dim=1)]


@dataclass(eq=False)
class ChatAnswerer(TransformersAnswerer):
    """A chat model that sees images: LLaVA, LLaVA-NeXT, PaliGemma, Qwen-VL and their like; greedy.

    Attributes:
        model: what ``AutoModelForImageTextToText`` loads: repository or local folder.
        prompt: what is asked; ``{question}`` stands for the question.
        prompt_with_choices: the same where choices are shown, ``{choices}`` stands for them.
        chat: put the prompt into the model's chat template, after the image. False gives the processor ``prompt`` as it
            is, with the model's image token in it if it needs one (PaliGemma: ``answer en {question}``).
        max_new_tokens: of an answer.
    """

    prompt: str = SHORT_ANSWER
    prompt_with_choices: str = CHOOSE_ANSWER
    chat: bool = True
    max_new_tokens: int = 20
    dtype: str = field(default="auto", kw_only=True)
    batch_size: int = field(default=8, kw_only=True)
    reading: str = field(default="yes_or_no", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, text, wanted in (
            ("prompt", self.prompt, "{question}"),
            ("prompt_with_choices", self.prompt_with_choices, "{choices}"),
        ):
            if wanted not in text:
                raise ValueError(f"{name} must hold {wanted}; got {text!r}")

    def _model_class(self) -> Any:
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText

    def _texts(self, processor: Any, questions: Sequence[str], choices: Choices) -> list[str]:
        texts = []
        for index, question in enumerate(questions):
            text = (self.prompt if choices is None else self.prompt_with_choices).replace("{question}", question)
            texts.append(text if choices is None else text.replace("{choices}", ", ".join(choices[index])))
        if not self.chat:
            return texts
        if not getattr(processor, "chat_template", None):
            raise ValueError(f"{self.model} has no chat template: set answerer.init_args.chat to false")
        turns = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text in texts
        ]  # fmt: skip
        return [processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]

    @torch.no_grad()
    def free_answers(self, images: Tensor, questions: Sequence[str], choices: Choices = None) -> list[str]:
        """What the model writes after each prompt of one batch."""
        network, processor = self._load()
        network = network.to(images.device)
        processor.tokenizer.padding_side = "left"  # so that every answer starts right after its prompt
        inputs = processor(
            images=[[picture] for picture in pictures(images)],
            text=self._texts(processor, questions, choices),
            padding=True,
            return_tensors="pt",
            # A chat template writes the start token itself.
            add_special_tokens=not self.chat,
        ).to(images.device)
        for name, values in inputs.items():
            if values.is_floating_point():
                inputs[name] = values.to(network.dtype)
        output = network.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        answers = processor.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    def identity(self) -> dict[str, Any]:
        """Model, prompts and generation."""
        described = {"prompt": self.prompt, "prompt_with_choices": self.prompt_with_choices, "chat": self.chat}
        return {**super().identity(), **described, "max_new_tokens": self.max_new_tokens}
