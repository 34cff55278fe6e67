"""One text encoder of ``prepare encode``: captions to the states that are stored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2ikit.encoders.limits import cut_texts
from t2ikit.encoders.text import TextEncoder
from t2ikit.pretrained import EncoderReference
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.records.states import States, groups, quantise_states

EncodedTexts = tuple[list[Tensor], Tensor | None]
"""States of B texts, [L, D] each, and their pooled vectors [B, P] from an encoder that gives some."""

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TextOptions:
    """How captions are encoded.

    Attributes:
        token_format: "int8" or "float16".
        max_tokens: longer captions are cut.
        dtype: "float32" or "bfloat16", of the text encoders.

    Raises:
        ValueError: another word; names the option.
    """

    token_format: str
    max_tokens: int
    dtype: str

    def __post_init__(self) -> None:
        if self.token_format not in ("int8", "float16"):
            raise ValueError(f"--token-format is int8 or float16; got {self.token_format!r}")
        if self.dtype not in _TYPES:
            raise ValueError(f"--text-dtype is float32 or bfloat16 (T5 overflows in float16); got {self.dtype!r}")


class CaptionEncoder:
    """A text encoder, loaded when it is first needed; without its weights when pickled.

    Args:
        name: folder or repository.
        revision: of the repository.
        options: how captions are encoded.
        stored_as: its name in the manifest, where it is not ``name``.

    Attributes:
        kind: what transformers calls the model, up to the first underscore, such as "t5"; its name in a record.
        source: what the manifest says of it; ``kind`` and this are known after ``look``.
    """

    kind: str
    source: TextSource

    def __init__(self, name: str, revision: str | None, options: TextOptions, stored_as: str | None = None) -> None:
        self.name = name
        self.revision = revision
        self.options = options
        self.stored_as = stored_as
        self.device = torch.device("cpu")
        self.empty_prompt: States | None = None
        self._encoder: TextEncoder | None = None
        self._has_weights = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None, "_has_weights": False, "device": torch.device("cpu")}

    @property
    def encoder(self) -> TextEncoder:
        """The encoder with its weights."""
        if self._encoder is None or not self._has_weights:
            dtype = _TYPES[self.options.dtype]
            self._encoder = TextEncoder.load(self.name, self.revision, self.device, dtype, self.options.max_tokens)
            self._has_weights = True
        return self._encoder

    @property
    def sha256(self) -> str:
        """Of its weights and tokenizer."""
        assert self.source.encoder is not None
        return self.source.encoder.sha256

    def look(self) -> None:
        """Loads it, and learns what the manifest says of it.

        Raises:
            FileNotFoundError, ValueError: it cannot be loaded.
        """
        encoder = self.encoder
        reference = encoder.reference
        if self.stored_as is not None:
            reference = EncoderReference(self.stored_as, None, reference.sha256)
        vectors = self.encode([""])[1]
        self.kind = re.split("[^a-z0-9]", encoder.model.config.model_type.lower())[0]
        self.source = TextSource(encoder.dim, reference, 0 if vectors is None else vectors.shape[1])

    def to(self, device: torch.device) -> None:
        """Moves the model."""
        self.device = device
        self.encoder.model.to(device)

    def finish(self) -> None:
        """Keeps the states of the empty prompt, encoded where the captions were, as the last thing it does."""
        self.empty_prompt = stored_states(self.encode([""]), self.options.token_format)[0]

    def release(self) -> None:
        """Gives the memory of the weights back; the tokenizer stays."""
        if self._encoder is not None:
            self._encoder.model.to("meta")
        self._has_weights = False

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Encodes texts at once; results stay on the device."""
        with_vectors = getattr(self.encoder, "encode_pooled", None)
        if with_vectors is not None:
            states, vectors = with_vectors(texts)
            return states, vectors
        return self.encoder.encode(texts), None

    @property
    def limit(self) -> int:
        """Tokens that it takes of a caption."""
        return (self._encoder or self.encoder).max_tokens

    def cut(self, texts: Iterable[str], manifest: Manifest) -> tuple[int, str]:
        """How many captions of an encoded set are longer than it takes, and the first of them; needs no weights."""
        return cut_texts(self._encoder or self.encoder, texts) if manifest.max_tokens >= self.limit else (0, "")

    def bytes_of(self, texts: Sequence[str]) -> int:
        """Size of the stored states of some texts; needs no weights."""
        tokens = sum((self._encoder or self.encoder).lengths(texts))
        width = self.source.dim
        per_token = 2 * width if self.options.token_format == "float16" else width + 2 * groups(width)
        return per_token * tokens + 2 * self.source.pooled * len(texts)


def stored_states(texts: EncodedTexts, token_format: str) -> list[States]:
    """Encoded texts as they are stored.

    Raises:
        ValueError: states or vectors are not finite.
    """
    tokens = quantise_states(texts[0], token_format)
    vectors: list[np.ndarray | None] = [None] * len(tokens)
    if texts[1] is not None:
        pooled = texts[1].to(torch.float16).cpu()
        if not torch.isfinite(pooled).all():
            raise ValueError("pooled vectors hold values that do not fit float16: run the text encoder in float32")
        vectors = list(pooled.numpy())
    return [States(states, vector) for states, vector in zip(tokens, vectors, strict=True)]
