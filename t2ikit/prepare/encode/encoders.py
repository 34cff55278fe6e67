"""The encoders of ``prepare encode``: one call of each model per batch, everything quantised on the device.

A GPU is not waited for: a batch is sent to it, and fetched later (``Encoded``).

Shapes: [B, 3, S, S] uint8 images, [B, 2, C, h, w] float16 posteriors, [T, D] states of all tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2ikit.encoders.autoencoders import LatentSpace
from t2ikit.encoders.text import TextEncoder
from t2ikit.prepare.captions.caption_file import CaptionHeader
from t2ikit.prepare.steps import sha256_of_json, versions
from t2ikit.pretrained import EncoderReference
from t2ikit.records.manifest import Manifest
from t2ikit.records.record import Tokens, quantise_states

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TextOptions:
    """How captions are encoded.

    Attributes:
        token_format: "int8" or "float16".
        max_tokens: longer captions are cut.
        dtype: "float32" or "bfloat16", of the text encoder.

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


class Encoded:
    """A batch that was sent to the device, and its result once it is asked for, by whichever thread.

    Args:
        images: [B, 3, S, S] uint8 pixels, or [B, 2, C, h, w] float16 posteriors on the device.
        states: [L, D] of the texts, in the groups that went through the model.
        token_format: "int8" or "float16".
        device: where they are.
    """

    def __init__(
        self, images: np.ndarray | Tensor, states: list[list[Tensor]], token_format: str, device: torch.device
    ) -> None:
        self._images = images
        self._states = states
        self._token_format = token_format
        self._sent = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        self._result: tuple[np.ndarray, list[Tokens]] | None = None

    def result(self, stream: torch.cuda.Stream | None = None) -> tuple[np.ndarray, list[Tokens]]:
        """Images as they are stored, and the tokens of the texts.

        Args:
            stream: fetches them, so that batches sent later are not waited for.
        """
        if self._result is None:
            with torch.cuda.stream(stream):
                if stream is not None and self._sent is not None:
                    stream.wait_event(self._sent)
                tokens = list(chain.from_iterable(quantise_states(group, self._token_format) for group in self._states))
                images = self._images.cpu().numpy() if isinstance(self._images, Tensor) else self._images
            self._result = images, tokens
            self._images, self._states = images, []  # what was copied is not needed on the device any more
        return self._result


class Encoders:
    """Autoencoder and text encoder, loaded when they are first needed; without their weights when pickled.

    Args:
        autoencoder: folder or repository; None stores pixels.
        autoencoder_revision: of the repository.
        text_encoder: folder or repository.
        text_encoder_revision: of the repository.
        options: how captions are encoded.
        batch_size: images, and captions, that go through a model at once.
        stored_as: name of the text encoder in the manifest, where it is not ``text_encoder``.
    """

    def __init__(
        self,
        autoencoder: str | None,
        autoencoder_revision: str | None,
        text_encoder: str,
        text_encoder_revision: str | None,
        options: TextOptions,
        batch_size: int,
        stored_as: str | None = None,
    ) -> None:
        self.space = None
        if autoencoder is not None:
            self.space = LatentSpace(autoencoder, autoencoder_revision, batch_size=batch_size)
        self.text_encoder = text_encoder
        self.text_encoder_revision = text_encoder_revision
        self.options = options
        self.batch_size = batch_size
        self.stored_as = stored_as
        self.device = torch.device("cpu")
        self._texts: TextEncoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_texts": None, "device": torch.device("cpu")}
        if self.space is not None:
            state["space"] = LatentSpace(self.space.autoencoder, self.space.revision, batch_size=self.batch_size)
        return state

    @property
    def texts(self) -> TextEncoder:
        """The text encoder."""
        if self._texts is None:
            self._texts = TextEncoder.load(
                self.text_encoder,
                self.text_encoder_revision,
                self.device,
                _TYPES[self.options.dtype],
                self.options.max_tokens,
            )
        return self._texts

    @property
    def identity(self) -> str:
        """Hash of all that decides what the encoders give."""
        images = None if self.space is None else self.space.reference.sha256
        options = [self.options.token_format, self.options.max_tokens, self.options.dtype]
        return sha256_of_json([images, self.texts.reference.sha256, *options])

    @property
    def empty_prompt(self) -> Tokens:
        """States of the empty prompt."""
        return quantise_states(self.texts.encode([""]), self.options.token_format)[0]

    def to(self, device: torch.device) -> None:
        """Moves both models; the autoencoder follows the images."""
        self.device = device
        self.texts.model.to(device)

    def manifest(self, images: Manifest, captions: CaptionHeader) -> Manifest:
        """Description of an encoded set.

        Args:
            images: of its image set.
            captions: header of its captions.
        """
        shape = images.image_shape
        if self.space is not None:
            side = shape[-1] // self.space.downsampling
            shape = (2, self.space.channels, side, side)
        reference = self.texts.reference
        if self.stored_as is not None:
            reference = EncoderReference(self.stored_as, None, reference.sha256)
        return Manifest(
            kind="pixels" if self.space is None else "latents",
            image_shape=shape,
            text_dim=self.texts.dim,
            token_format=self.options.token_format,
            token_limit=self.options.max_tokens,
            text_dtype=self.options.dtype,
            text_encoder=reference,
            autoencoder=None if self.space is None else self.space.reference,
            autoencoder_dtype="" if self.space is None else "float32",
            captions=captions.kind,
            captioners=_captioners(captions),
            setting=images.setting,
            source=images.source,
            versions=versions("torch", "transformers", "diffusers"),
        )

    def bytes_of(self, texts: Sequence[str]) -> int:
        """Size of the stored states of some texts."""
        width = self.texts.dim
        per_token = 2 * width if self.options.token_format == "float16" else width + 2 * -(-width // 64)
        return per_token * sum(self.texts.lengths(texts))

    def begin(self, pixels: np.ndarray, texts: Sequence[str]) -> Encoded:
        """Sends a batch to the device; neither the images nor the states are waited for.

        The autoencoder is at work on a GPU while the texts are cut into tokens here.

        Args:
            pixels: [B, 3, S, S] uint8.
            texts: any number.
        """
        images: np.ndarray | Tensor = pixels
        if self.space is not None:
            sent = torch.from_numpy(pixels)
            if self.device.type == "cuda":
                # A copy from memory that is not pinned waits until the device has finished its earlier work.
                sent = sent.pin_memory()
            mean, std = self.space.encode(sent.to(self.device, non_blocking=True))
            images = torch.stack([mean, std], dim=1).to(torch.float16)
        groups = range(0, len(texts), self.batch_size)
        states = [self.texts.encode(texts[first : first + self.batch_size]) for first in groups]
        return Encoded(images, states, self.options.token_format, self.device)


def _captioners(captions: CaptionHeader) -> dict[str, dict[str, str]]:
    """What made each column of captions, as far as it is known."""
    captioners = {}
    for column in captions.columns:
        facts = {
            "kind": column.kind,
            "model": column.model,
            "sha256": column.captioner.sha256 if column.captioner else "",
            "revision": (column.captioner.revision or "") if column.captioner else "",
            "prompt": column.prompt,
            "cutmix_prompt": column.cutmix_prompt,
        }
        captioners[column.name] = {name: value for name, value in facts.items() if value}
    return captioners
