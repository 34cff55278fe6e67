"""The encoders of ``prepare encode``: one call of each model per batch, everything quantised on the device.

A GPU is not waited for: a batch is sent to it, and fetched later (``Encoded``).

Shapes: [B, 3, S, S] uint8 images, [B, 2, C, h, w] float16 posteriors, [T, D] states of all tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2ikit.encoders.autoencoders import LatentSpace
from t2ikit.prepare.captions.caption_file import CaptionHeader
from t2ikit.prepare.encode.caption_encoder import CaptionEncoder, EncodedTexts, TextOptions, stored_states
from t2ikit.prepare.steps import sha256_of_json, versions
from t2ikit.records.manifest import Manifest, StoredArray
from t2ikit.records.states import States


class Encoded:
    """A batch that was sent to the device, and its result once it is asked for, by whichever thread.

    Args:
        images: [B, 3, S, S] uint8 pixels, or [B, 2, C, h, w] float16 posteriors on the device; None for texts alone.
        texts: what the text encoder gave, in the groups that went through it.
        token_format: "int8" or "float16".
        device: where they are.
    """

    def __init__(
        self, images: np.ndarray | Tensor | None, texts: list[EncodedTexts], token_format: str, device: torch.device
    ) -> None:
        self._images = images
        self._texts = texts
        self._token_format = token_format
        self._sent = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        self._result: tuple[np.ndarray | None, list[States]] | None = None

    def result(self, stream: torch.cuda.Stream | None = None) -> tuple[np.ndarray | None, list[States]]:
        """Images as they are stored, and the states of the texts.

        Args:
            stream: fetches them, so that batches sent later are not waited for.
        """
        if self._result is None:
            with torch.cuda.stream(stream):
                if stream is not None and self._sent is not None:
                    stream.wait_event(self._sent)
                states = list(chain.from_iterable(stored_states(group, self._token_format) for group in self._texts))
                images = self._images.cpu().numpy() if isinstance(self._images, Tensor) else self._images
            self._result = images, states
            self._images, self._texts = images, []  # what was copied is not needed on the device any more
        return self._result


@dataclass
class Encoders:
    """Autoencoder and text encoders, loaded when they are first needed; without their weights when pickled.

    Attributes:
        space: encodes the images; None stores pixels.
        texts: encode the captions, one after the other.
        options: how captions are encoded.
        batch_size: images, and captions, that go through a model at once.
        picture: "png" or "webp" to keep the 8-bit picture beside latents; empty keeps none.
    """

    space: LatentSpace | None
    texts: Sequence[CaptionEncoder]
    options: TextOptions
    batch_size: int
    picture: str = ""

    def __post_init__(self) -> None:
        self.device = torch.device("cpu")
        self.names: dict[str, CaptionEncoder] = {}
        for text in self.texts:
            text.look()
            count = sum(name.partition("-")[0] == text.kind for name in self.names)
            self.names[f"{text.kind}-{count + 1}" if count else text.kind] = text
            if len(self.texts) > 1:
                text.release()

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "device": torch.device("cpu")}
        if self.space is not None:
            state["space"] = replace(self.space)  # without weights
        return state

    @property
    def identity(self) -> str:
        """Hash of all that decides what the encoders give."""
        images = None if self.space is None else self.space.reference.sha256
        options = [self.options.token_format, self.options.max_tokens, self.options.dtype, self.picture]
        return sha256_of_json([images, [text.sha256 for text in self.texts], *options])

    def manifest(self, images: Manifest, captions: CaptionHeader) -> Manifest:
        """Description of an encoded set.

        Args:
            images: of its image set.
            captions: header of its captions.
        """
        shape = images.image_shape
        if self.space is not None:
            height, width = (size // self.space.downsampling for size in shape[-2:])
            shape = (2, self.space.channels, height, width)
        return Manifest(
            kind="pixels" if self.space is None else "latents",
            image_shape=shape,
            image_codec=images.image_codec if self.space is None else "",
            texts={name: text.source for name, text in self.names.items()},
            further={"picture": StoredArray(self.picture, images.image_shape)} if self.picture else {},
            token_format=self.options.token_format,
            token_limit=self.options.max_tokens,
            text_dtype=self.options.dtype,
            autoencoder=None if self.space is None else self.space.reference,
            autoencoder_dtype="" if self.space is None else "float32",
            captions=captions.kind,
            captioners=_captioners(captions),
            setting=images.setting,
            source=images.source,
            versions=versions("torch", "transformers", "diffusers"),
        )

    def finish(self, encoder: str) -> None:
        """Ends the pass of a text encoder: keeps its empty prompt; of several, only one stays in memory."""
        text = self.names[encoder]
        text.finish()
        if len(self.texts) > 1:
            text.release()

    @property
    def empty_prompt(self) -> dict[str, States]:
        """The states of the empty prompt; known when all passes are done."""
        return {name: text.empty_prompt for name, text in self.names.items() if text.empty_prompt is not None}

    def bytes_of(self, texts: Sequence[str]) -> int:
        """Size of the stored states of some texts."""
        return sum(text.bytes_of(texts) for text in self.texts)

    def begin(self, pixels: np.ndarray | None, texts: Sequence[str], encoder: CaptionEncoder) -> Encoded:
        """Sends a batch to the device; neither the images nor the states are waited for.

        The autoencoder is at work on a GPU while the texts are cut into tokens here.

        Args:
            pixels: [B, 3, S, S] uint8; None encodes no images.
            texts: any number.
            encoder: of the texts, one of ``texts``.
        """
        images: np.ndarray | Tensor | None = pixels
        if self.space is not None and pixels is not None:
            sent = torch.from_numpy(pixels)
            if self.device.type == "cuda":
                # A copy from memory that is not pinned waits until the device has finished its earlier work.
                sent = sent.pin_memory()
            mean, std = self.space.encode(sent.to(self.device, non_blocking=True))
            images = torch.stack([mean, std], dim=1).to(torch.float16)
        groups = range(0, len(texts), self.batch_size)
        states = [encoder.encode(texts[first : first + self.batch_size]) for first in groups]
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
